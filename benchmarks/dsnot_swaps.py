"""How much faster are DSnoT's swaps than the paper's loop, at the same masks, on every layer shape of SmolLM2-135M?

Goal: 5 times. The peer is a port of the paper's code: full stable sorts, float64 copies, one step of all rows a cycle.
The limit is what a matrix of weights, contributions and scores costs to read once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from harness import alternate, finish, memory_bandwidth, parser, print_table, ratio
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from reference_dsnot import reference_mask
from weightsmith.core.models import Layer
from weightsmith.core.statistics import InputStatistics
from weightsmith.sparsify import refine_mask
from weightsmith.sparsify._shared.pruning import Pattern, wanda_score

SHAPES = {"q, o": (576, 576), "k, v": (192, 576), "gate, up": (1536, 576), "down": (576, 1536)}
TIMES = {"q, o": 60, "k, v": 60, "gate, up": 60, "down": 30}


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    ours = peer = shipped = 0.0
    ratios = []
    for name, (outputs, inputs) in SHAPES.items():
        generator = torch.Generator().manual_seed(0)
        weight = 0.05 * torch.randn(outputs, inputs, generator=generator)
        x = torch.randn(1000, inputs, generator=generator) * 2 * torch.rand(inputs, generator=generator)
        statistics = InputStatistics(Layer(name, nn.Linear(inputs, outputs)))
        statistics.update((x + 0.3 * torch.randn(inputs, generator=generator)).unsqueeze(0))
        start = Pattern.parse(0.5).mask(wanda_score(weight, statistics))
        moments = (statistics.sum_I, statistics.square_sum_I, statistics.variance_I)
        arms = {
            "reference": lambda w=weight, s=start, m=moments: reference_mask(w, s, *m),
            "ours, reference rule": lambda w=weight, s=start, t=statistics: refine_mask(w, s, t, stop="reference"),
            "ours": lambda w=weight, s=start, t=statistics: refine_mask(w, s, t),
        }
        same = torch.equal(arms["reference"](), arms["ours, reference rule"]().pruned_OI)
        timings = alternate(arms, rounds=options.rounds)
        ratios.append((TIMES[name], ratio(timings["reference"], timings["ours, reference rule"])))
        peer += TIMES[name] * timings["reference"].median
        ours += TIMES[name] * timings["ours, reference rule"].median
        shipped += TIMES[name] * timings["ours"].median
        rows.append((name, *(1e3 * timing.median for timing in timings.values()), ratios[-1][1], same))
    print_table(
        ("layer", "reference ms", "ours, same rule ms", "ours, default rule ms", "times faster", "same mask"), rows
    )
    weights = sum(TIMES[name] * outputs * inputs for name, (outputs, inputs) in SHAPES.items())
    finish(
        "dsnot_swaps",
        ratio=peer / ours,
        goal=5.0,
        limit=peer / (4 * 4 * weights / memory_bandwidth()),
        ours=ours,
        peer=peer,
        unit="s for all 210 layers of SmolLM2",
        store=options.store,
        default_rule=shipped,
    )


if __name__ == "__main__":
    main()
