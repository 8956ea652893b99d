"""CaLoRAify: does a look-up that knows units survive noisy lists, and do the released predictions beat a constant?

The reference's released table and test outputs (in the user's data). Fractions are repaired first. Noise: items in
another order, words of an ingredient in another order, plurals of units and ingredients, and 5 % of an ingredient's
letters changed. No model is run here: the text and the table are judged. A third experiment, in ``_photos.py``, trains
models on photos. The paper reports none of the three.
"""

from __future__ import annotations

import json
import math
import re
import string
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering, each_seed, user_data
from weightsmith.core.errors import CalibrationError
from weightsmith_kitchen.calories import CalorieIndex, CalorieTable, ListItem, parse_list, repair_fractions
from weightsmith_kitchen.claims._photos import PHOTOS, run as run_photos

__all__ = ["NOISE", "PHOTOS", "PREDICTIONS", "run"]

LISTS = 1000
"""Lists per seed."""
TYPOS = 0.05
"""Share of the letters of an ingredient."""
LEAST = 0.1
"""Errors below 0.1 % count as 0.1 %: the metric is a logarithm."""
WELL_FORMED = re.compile(r"(\d+ )?\d+(/\d+)? \w+ of .+")

NOISE = Claim(
    slug="caloraify",
    experiment="noise",
    title="CaLoRAify, noisy lists",
    statement="On noisy lists unit-aware look-up keeps the median error of a recipe's energy at or below 2 %; look-up "
    "by the ingredient alone is at least ten times worse.",
    metric="log10 of the median error of the energy in %, at least 0.1 %",
    higher_is_better=False,
    expected=(Ordering("unit-aware", "bound of 2 %"), Ordering("unit-aware", "ingredient alone", 1.0)),
)
PREDICTIONS = Claim(
    slug="caloraify",
    experiment="predictions",
    title="CaLoRAify, released predictions",
    statement="Under no look-up do the released predictions of the 7 B model beat the median energy of other recipes.",
    metric="mean absolute error in kcal",
    higher_is_better=False,
    expected=(
        Ordering("constant median", "unit-aware"),
        Ordering("constant median", "exact key only"),
        Ordering("constant median", "nearest whole key"),
    ),
)


class _Totals:
    """Energies of lists under each look-up."""

    def __init__(self, table: CalorieTable) -> None:
        self.table = table
        self.index = CalorieIndex(table)
        self.guessing = CalorieIndex(table, floor=1e-6)
        self.first: dict[str, float] = {}
        for (_, name), kcal in table.rows.items():
            self.first.setdefault(name, kcal)
        # The reference compares unit and ingredient as one text.
        whole = {("row", f"{unit} {name}"): kcal for (unit, name), kcal in table.rows.items()}
        self.whole_kcal = np.array(list(whole.values()))
        self.whole = CalorieIndex(CalorieTable(whole, {}))

    def exact(self, items: Sequence[ListItem]) -> list[float]:
        """Energies per unit; 0 where the key is not in the table."""
        return [self.table.rows.get((item.unit, item.ingredient), 0.0) for item in items]

    def unit_aware(self, items: Sequence[ListItem]) -> list[float]:
        """Energies per unit of our look-up."""
        return [match.per_unit for match in self.index.look_up(items)]

    def unit_aware_guess(self, items: Sequence[ListItem]) -> list[float]:
        """Energies per unit of our look-up without a least similarity."""
        return [match.per_unit for match in self.guessing.look_up(items)]

    def ingredient_alone(self, items: Sequence[ListItem]) -> list[float]:
        """Energies per unit of the first row of the nearest ingredient, whatever its unit."""
        found = self.index.similarities([item.ingredient for item in items]).argmax(1)
        return [self.first[self.index.ingredients[place]] for place in found]

    def whole_key(self, items: Sequence[ListItem]) -> list[float]:
        """Energies per unit of the row whose whole key is nearest."""
        found: list[float] = self.whole_kcal[self.whole.similarities([item.key for item in items]).argmax(1)].tolist()
        return found

    def sums(
        self, rule: Callable[[Sequence[ListItem]], list[float]], lists: Sequence[Sequence[ListItem]]
    ) -> npt.NDArray[np.float64]:
        """Energy of each list; items with errors count 0."""
        rows = [
            (place, item, float(item.amount.middle))
            for place, items in enumerate(lists)
            for item in items
            if item.error is None and item.amount is not None
        ]
        per_unit = np.array(rule([item for _, item, _ in rows]))
        amounts = np.array([amount for *_, amount in rows])
        found = np.zeros(len(lists))
        np.add.at(found, [place for place, *_ in rows], per_unit * amounts)
        return found


def run(scale: str = "cpu", seeds: Sequence[int] = (20, 21, 22, 23, 24)) -> list[ClaimResult]:
    """Judge the look-ups on noisy lists, the released predictions, and what is written about photos.

    Raises
    ------
    CalibrationError
        If the user's data are not there.
    """
    folder = user_data("apps/caloraify", "the claim of caloraify on the released lists")
    if folder is None:
        raise CalibrationError(
            "the claim of caloraify needs apps/caloraify", do="Set WEIGHTSMITH_DATA to the folder of the data."
        )
    start = time.perf_counter()
    totals = _Totals(CalorieTable.from_json(folder / "database.json"))
    rows = _rows(folder / "test_result.json")
    truth = [parse_list(repair_fractions(row["GT"])) for row in rows]
    values = each_seed(lambda seed: noise(totals, truth, seed), seeds, "noisy lists")
    notes = [parsed(totals.table, rows), within(totals, truth, seeds[0])]
    seconds = time.perf_counter() - start
    roles: dict[str, Any] = {
        "unit-aware": "method",
        "unit-aware, no floor": "method",
        "bound of 2 %": "control",
        "constant median": "control",
    }

    def arms(found: Mapping[str, list[float]]) -> list[Arm]:
        return [Arm(name, roles.get(name, "baseline"), value) for name, value in found.items()]

    noisy = ClaimResult.judge(NOISE, arms(values), scale=scale, seeds=seeds, seconds=seconds, notes=notes)
    start = time.perf_counter()
    predicted = [parse_list(repair_fractions(row["pred"])) for row in rows]
    errors = _errors(totals, truth, predicted)
    values = each_seed(lambda seed: _halves(errors, seed), seeds, "released predictions")
    note = (
        f"{sum(not any(item.error is None for item in items) for items in predicted)} of {len(predicted)} predictions "
        f"have no usable item. All recipes: median energy {np.median(errors['truth']):.1f} kcal."
    )
    seconds = time.perf_counter() - start
    results = [
        noisy,
        ClaimResult.judge(PREDICTIONS, arms(values), scale=scale, seeds=seeds, seconds=seconds, notes=[note]),
    ]
    pictures = user_data("apps/ecustfd", PHOTOS.title)
    if pictures is not None:
        # A seed trains four language models; three are enough for the orderings.
        results.append(run_photos(pictures, scale, seeds[:3]))
    return results


def _rows(path: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def parsed(table: CalorieTable, rows: Sequence[Mapping[str, str]]) -> str:
    """How many items of the released ground truth the grammar reads and finds, as a note."""
    well = hits = items = found = 0
    for row in rows:
        for text in row["GT"].rpartition("They are:")[2].strip().rstrip(".").split(","):
            if WELL_FORMED.fullmatch(text.strip()):
                well += 1
                hits += all((item.unit, item.ingredient) in table.rows for item in parse_list(repair_fractions(text)))
        read = parse_list(repair_fractions(row["GT"]))
        items += len(read)
        found += sum((item.unit, item.ingredient) in table.rows for item in read)
    return (
        f"Exact keys of the ground truth: {hits} of {well} well-formed items; of all items, with "
        f"ranges, {found} of {items}. Fractions are repaired."
    )


def noise(totals: _Totals, truth: Sequence[Sequence[ListItem]], seed: int) -> dict[str, float]:
    """Logarithm of the median error of each look-up on noisy copies of lists."""
    chosen, wanted, rng = _drawn(totals, truth, seed)
    values = {"bound of 2 %": math.log10(2)}
    for name, error in _noisy_errors(totals, chosen, wanted, rng).items():
        values[name] = math.log10(max(float(np.median(error)), LEAST))
    return values


def within(totals: _Totals, truth: Sequence[Sequence[ListItem]], seed: int) -> str:
    """Share of noisy lists whose energy is within 2 %, for each look-up, as a note."""
    chosen, wanted, rng = _drawn(totals, truth, seed)
    shares = {name: float((error <= 2).mean()) for name, error in _noisy_errors(totals, chosen, wanted, rng).items()}
    listed = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    return f"Lists within 2 % of their energy, seed {seed}: {listed}."


def _drawn(
    totals: _Totals, truth: Sequence[Sequence[ListItem]], seed: int
) -> tuple[list[Sequence[ListItem]], npt.NDArray[np.float64], np.random.Generator]:
    rng = np.random.default_rng(seed)
    chosen = [truth[place] for place in rng.choice(len(truth), min(LISTS, len(truth)), replace=False)]
    wanted = totals.sums(totals.exact, chosen)
    chosen = [items for items, kcal in zip(chosen, wanted, strict=True) if kcal > 0]
    return chosen, wanted[wanted > 0], rng


def _noisy_errors(
    totals: _Totals,
    chosen: Sequence[Sequence[ListItem]],
    wanted: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> dict[str, npt.NDArray[np.float64]]:
    """Errors in % of each look-up on one noisy copy."""
    noisy = [parse_list(fuzz(items, rng)) for items in chosen]
    return {name: 100 * np.abs(totals.sums(rule, noisy) - wanted) / wanted for name, rule in _rules(totals).items()}


def _rules(totals: _Totals) -> dict[str, Callable[[Sequence[ListItem]], list[float]]]:
    return {
        "unit-aware": totals.unit_aware,
        "unit-aware, no floor": totals.unit_aware_guess,
        "ingredient alone": totals.ingredient_alone,
        "nearest whole key": totals.whole_key,
        "exact key only": totals.exact,
    }


def fuzz(items: Sequence[ListItem], rng: np.random.Generator) -> str:
    """Write a list with the noise that the module's docstring names."""
    parts = []
    for place in rng.permutation(len(items)):
        item = items[place]
        words = item.ingredient.split()
        if rng.random() < 0.5:
            words = [words[number] for number in rng.permutation(len(words))]
        if rng.random() < 0.5:
            words[-1] = words[-1][:-1] if words[-1].endswith("s") else words[-1] + "s"
        plural = "s" if rng.random() < 0.5 and item.unit in ("cup", "tablespoon", "teaspoon", "pound", "ounce") else ""
        parts.append(f"{item.amount} {item.unit}{plural} of {_typos(' '.join(words), rng)}")
    return ", ".join(parts)


def _typos(name: str, rng: np.random.Generator) -> str:
    """Replace, drop, double or swap letters; each is hit with the same chance."""
    letters = list(name)
    for place in range(len(letters)):
        if not letters[place].isalpha() or rng.random() >= TYPOS:
            continue
        kind = rng.integers(4)
        if kind == 0:
            letters[place] = string.ascii_lowercase[rng.integers(26)]
        elif kind == 1:
            letters[place] = ""
        elif kind == 2:
            letters[place] *= 2
        elif place + 1 < len(letters) and letters[place + 1].isalpha():
            letters[place], letters[place + 1] = letters[place + 1], letters[place]
    return "".join(letters)


def _errors(
    totals: _Totals, truth: Sequence[Sequence[ListItem]], predicted: Sequence[Sequence[ListItem]]
) -> dict[str, npt.NDArray[np.float64]]:
    wanted = totals.sums(totals.exact, truth)
    rules = _rules(totals)
    return {"truth": wanted} | {name: np.abs(totals.sums(rule, predicted) - wanted) for name, rule in rules.items()}


def _halves(errors: Mapping[str, npt.NDArray[np.float64]], seed: int) -> dict[str, float]:
    """Errors on one half of the recipes; the median is that of the other half."""
    truth = errors["truth"]
    order = np.random.default_rng(seed).permutation(len(truth))
    known, tested = order[: len(order) // 2], order[len(order) // 2 :]
    values = {name: float(error[tested].mean()) for name, error in errors.items() if name != "truth"}
    values["constant median"] = float(np.abs(truth[tested] - np.median(truth[known])).mean())
    values["always 0"] = float(truth[tested].mean())
    return values
