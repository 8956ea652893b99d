"""How much longer than Wanda does DSnoT take on all of SmolLM2-135M, statistics, masks and model streaming included?

Goal: at most 1.3 times, so Wanda's time is at least 0.77 of DSnoT's. The limit is the two forward passes of every
block that both need.
"""

from __future__ import annotations

import copy
import time

import torch
from harness import alternate, finish, parser, print_table, ratio

from weightsmith.core.data import token_ids, token_windows
from weightsmith.core.models import stream
from weightsmith.embedded import load, text
from weightsmith.sparsify import dsnot, wanda


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load("smollm2")
    windows = token_windows(token_ids(tokenizer, text("calibration")), length=256, count=16, batch_size=4)
    arms = {
        "wanda": lambda: wanda(copy.deepcopy(model), windows),
        "dsnot": lambda: dsnot(copy.deepcopy(model), windows),
    }
    timings = alternate(arms, rounds=options.rounds, warmup=0)
    start = time.perf_counter()
    for block in stream(model, windows):
        with torch.no_grad():
            for args, kwargs, _ in block.inputs:
                block.module(*args, **kwargs)
    forward = time.perf_counter() - start
    print_table(
        ("arm", "seconds"),
        [*((name, timing.median) for name, timing in timings.items()), ("two forward passes", forward)],
    )
    finish(
        "dsnot_overhead",
        ratio=ratio(timings["wanda"], timings["dsnot"]),
        goal=0.77,
        limit=timings["wanda"].median / forward,
        ours=timings["dsnot"].median,
        peer=timings["wanda"].median,
        unit="s",
        store=options.store,
    )


if __name__ == "__main__":
    main()
