"""How long does one step of an alpha sweep take, before the evaluation, on 150 million weights in float32?

The peer builds a new state dict for each alpha and loads it, as the reference code of WiSE-FT does; ours interpolates
into the model's own weights. The limit reads both ends and writes the weights once, at the memory's speed.
"""

from __future__ import annotations

import torch
from harness import alternate, finish, memory_bandwidth, parser, print_table, ratio
from torch import nn

from weightsmith.core.models import along_line

STEPS = 6


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(2048, 2048) for _ in range(36)])
    start = {name: value.clone() for name, value in model.state_dict().items()}
    end = {name: value + 0.01 * torch.randn_like(value) for name, value in start.items()}
    alphas = [step / (STEPS - 1) for step in range(STEPS)]

    def ours() -> None:
        for _ in along_line(model, start, end, alphas):
            pass

    def peer() -> None:
        for alpha in alphas:
            model.load_state_dict({name: (1 - alpha) * start[name] + alpha * end[name] for name in start})

    timings = alternate({"along_line": ours, "new state dicts": peer}, rounds=options.rounds)
    nbytes = sum(value.nbytes for value in start.values())
    least = 3 * nbytes / memory_bandwidth() * STEPS
    print_table(
        ("arm", "ms a step"),
        [*((name, 1e3 * timing.median / STEPS) for name, timing in timings.items()), ("memory", 1e3 * least / STEPS)],
    )
    finish(
        "merge_sweep",
        ratio=ratio(timings["new state dicts"], timings["along_line"]),
        goal=None,
        limit=timings["new state dicts"].median / least,
        ours=1e3 * timings["along_line"].median / STEPS,
        peer=1e3 * timings["new state dicts"].median / STEPS,
        unit="ms/step",
        store=options.store,
        weights=nbytes // 4,
    )


if __name__ == "__main__":
    main()
