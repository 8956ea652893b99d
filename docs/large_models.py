"""The page "Large models": what the commands need on a language model of 8 billion weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["page", "processor"]

STORED = Path(__file__).parent / "comparisons" / "large-models.json"


def page() -> str:
    """Return the page in Markdown."""
    stored = json.loads(STORED.read_text("utf-8"))
    machine = stored["machine"]
    lines = [
        "<!-- written by docs/generate.py -->",
        "",
        "# Large models\n",
        "A model need not fit in memory. Merges read and write tensor by tensor; `rebasin` also holds a score for each",
        "pair of units of the widest layer. The option `--stream` of `magnitude`, `wanda`, `sparsegpt`, `dsnot`,",
        "`modhifi` and `curvature-edit` reads, changes and writes one block at a time. A method that needs all weights",
        "at once says so and writes nothing. `analyze condition` reads one matrix at a time.\n",
        "```bash",
        "weightsmith merge wise-ft BASE TUNED OUT --alpha 0.5",
        "weightsmith sparsify wanda MODEL OUT --stream --calibration train.txt",
        "```\n",
        f"Measured on folders in the shape of Llama 3.1 8B, bfloat16 ({processor(machine)}, {machine['cores']} cores,",
        f"{stored['texts']} calibration texts of {stored['tokens']} tokens). The limit is what no implementation can",
        "do without: copying the result at the speed at which this disk copies a folder, and the matrix products of",
        "the method at the rate of a float32 product. Memory is the largest resident memory of the command's process.",
        "Other programs shared the machine, which the load shows: 2 is a machine busy with the command alone.\n",
        "| command | blocks | weights | seconds | limit | share of the limit | memory | load |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in stored["rows"]:
        share, peak = row["limit"] / row["seconds"], row["peak"] / 1e9
        lines.append(
            f"| `{row['command']}` | {row['blocks']} of 32 | {row['weights'] / 1e9:.1f} billion | "
            f"{row['seconds']:,.0f} | {row['limit']:,.0f} | {share:.0%} | {peak:.2f} GB | {row['load']:.0f} |"
        )
    lines.append("")
    if any(row["blocks"] < 32 for row in stored["rows"]):
        lines += [
            "A method whose work is the same in every block was measured on fewer blocks where all 32 take hours: its",
            "time grows with the blocks, its memory does not.\n",
        ]
    lines += [
        "`curvature-edit` edits three blocks of 32, and holds the curvature of as many of their matrices as fit into",
        "`--memory`, 4 GB by default. `rebasin` holds a score in float64 for each pair of the 14,336 units of a",
        "feed-forward layer, 1.6 GB.\n",
        "`python benchmarks/large_models.py --work FOLDER --store` measures the table.",
    ]
    return "\n".join(lines) + "\n"


def processor(machine: Mapping[str, Any]) -> str:
    """Name the processor with its vector instructions, which decide what a product costs."""
    instructions = machine.get("instructions", "").replace("AVX512", "AVX-512")
    return f"{machine['device']} with {instructions}" if instructions else str(machine["device"])
