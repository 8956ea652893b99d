"""How much faster are DSnoT's swaps than the loop of the paper's code, on every layer shape of SmolLM2-135M?

The peer is a port of the paper's code: full stable sorts, one step of all rows per cycle, and its own stopping rule, so
that it makes more swaps. The limit is the time to read the weights, contributions and scores once.
"""

from __future__ import annotations

import torch
from harness import alternate, finish, memory_bandwidth, parser, print_table, ratio
from torch import nn

from weightsmith.claims.dsnot import authors_mask
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
    ours = peer = 0.0
    for name, (outputs, inputs) in SHAPES.items():
        generator = torch.Generator().manual_seed(0)
        weight = 0.05 * torch.randn(outputs, inputs, generator=generator)
        x = torch.randn(1000, inputs, generator=generator) * 2 * torch.rand(inputs, generator=generator)
        statistics = InputStatistics(Layer(name, nn.Linear(inputs, outputs)))
        statistics.update((x + 0.3 * torch.randn(inputs, generator=generator)).unsqueeze(0))
        start = Pattern.parse(0.5).mask(wanda_score(weight, statistics))
        arms = {
            "authors": lambda w=weight, s=start, t=statistics: authors_mask(w, s, t),
            "ours": lambda w=weight, s=start, t=statistics: refine_mask(w, s, t),
        }
        timings = alternate(arms, rounds=options.rounds)
        peer += TIMES[name] * timings["authors"].median
        ours += TIMES[name] * timings["ours"].median
        rows.append((name, *(1e3 * t.median for t in timings.values()), ratio(timings["authors"], timings["ours"])))
    print_table(("layer", "authors' loop ms", "ours ms", "times faster"), rows)
    weights = sum(TIMES[name] * outputs * inputs for name, (outputs, inputs) in SHAPES.items())
    finish(
        "dsnot_swaps",
        ratio=peer / ours,
        goal=2.0,
        limit=peer / (4 * 4 * weights / memory_bandwidth()),
        ours=ours,
        peer=peer,
        unit="s for all 210 layers of SmolLM2",
        store=options.store,
    )


if __name__ == "__main__":
    main()
