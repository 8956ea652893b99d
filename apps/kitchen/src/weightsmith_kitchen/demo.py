"""The demonstration: a recipe, its meal kit, a correction in words, and three files."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from weightsmith.core.io import write_file
from weightsmith.core.progress import stage
from weightsmith_kitchen.kit import edit, make_kit, read_recipe, to_csv, to_pdf
from weightsmith_kitchen.nutrition import NutritionTable
from weightsmith_kitchen.report import kit_text

__all__ = ["RECIPE", "run"]

RECIPE = """Lentil soup with lemon
Serves 4

Ingredients
2 tbsp olive oil
1 large onion, chopped
2-3 cloves garlic, minced
1 1/2 cups red lentils
1 (14 ounce) can chopped tomatoes
1 tsp ground cumin
1 litre vegetable stock
juice of 1 lemon
salt to taste

Method
1. Heat the oil in a large pot and cook the onion and garlic until soft.
2. Stir in the cumin, then add lentils, tomatoes and stock.
3. Simmer for 25 minutes, season, and add the lemon juice.
"""
SAID = "butter instead of olive oil, 1 onion, for 6 people"


def run(out: Path, console: Console) -> None:
    """Make the kit of a recipe, correct it, and write it.

    Parameters
    ----------
    out : Path
        Folder; it is made. Files of an earlier demonstration are replaced.
    console : Console
        Where it is shown.
    """
    with stage("opening the nutrition table"):
        table = NutritionTable.default()
    kit = make_kit(read_recipe(RECIPE), table)
    console.print(escape(RECIPE), highlight=False)
    console.print(kit_text(kit))
    reply = edit(kit, SAID, table)
    console.print(f"\n[bold]You say:[/] {escape(SAID)}\n[bold]Done:[/] {escape(reply.said)}\n")
    console.print(kit_text(reply.kit))
    made: dict[str, str | bytes] = {
        "recipe.txt": RECIPE,
        "kit.json": reply.kit.to_json(indent=2),
        "kit.csv": to_csv(reply.kit),
        "kit.pdf": to_pdf(reply.kit),
    }
    for name, content in made.items():
        write_file(out / name, content)
    console.print(f"\nWritten to {escape(str(out))}: {', '.join(made)}")
    console.print("Next: [bold]weightsmith kitchen serve[/] opens the page; it works without the internet.")
