"""What does WAGLE cost on SmolLM2-135M: a step through its mask, and scores with their threshold?

* a training step (forward, backward, clipping, AdamW with weight decay) through a mask of 80 % of the weights, against
  the same step through all weights; the goal is at most 1.15 times the time
* gradients of both sets, scores and the exact mask, against the forward and backward passes alone; the goal is at most
  1.2 times the time

Each ratio is the plain time over WAGLE's. The limit is 1: the plain work is part of WAGLE's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack

import torch
from harness import alternate, finish, parser, print_table, ratio
from torch import nn

from weightsmith.core.data import batched, token_ids, token_windows
from weightsmith.embedded import load, text
from weightsmith.forget import WeightMask, attribute_weights, masked_updates

WINDOW, BATCH, SAMPLES = 128, 4, 16


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load("smollm2")
    model = model.float().train()
    ids = token_ids(tokenizer, text("source"))
    windows = token_windows(ids, length=WINDOW, count=2 * SAMPLES, generator=torch.Generator().manual_seed(0))
    samples = [{"input_ids": w["input_ids"][0], "labels": w["input_ids"][0]} for w in windows]
    forget, retain = samples[:SAMPLES], samples[SAMPLES:]

    def passes() -> None:
        for batch in [*batched(forget, BATCH), *batched(retain, BATCH)]:
            model(**batch).loss.backward()  # type: ignore[arg-type]
        model.zero_grad()

    masks: list[WeightMask] = []

    def scores() -> None:
        masks[:] = [attribute_weights(model, forget, retain, gamma=1e-2, batch_size=BATCH).top(0.8)]

    choosing = alternate({"passes": passes, "scores": scores}, rounds=options.rounds, warmup=0)
    with ExitStack() as stack:
        (batch,) = batched(forget[:BATCH], BATCH)
        arms = {
            "dense": _step(copy.deepcopy(model), batch, None, stack),
            "masked": _step(model, batch, masks[0], stack),
        }
        steps = alternate(arms, rounds=options.rounds, warmup=1)
    print_table(("work", "seconds"), [(name, timing.median) for name, timing in (choosing | steps).items()])
    for name, plain, ours, goal in (
        ("wagle_scores", choosing["passes"], choosing["scores"], 1 / 1.2),
        ("wagle_step", steps["dense"], steps["masked"], 1 / 1.15),
    ):
        finish(
            name,
            ratio=ratio(plain, ours),
            goal=goal,
            limit=1.0,
            ours=ours.median,
            peer=plain.median,
            unit="s",
            store=options.store,
        )


def _step(model: nn.Module, batch: object, mask: WeightMask | None, stack: ExitStack) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1)
    if mask is not None:
        stack.enter_context(masked_updates(model, optimizer, mask))

    def step() -> None:
        model(**batch).loss.backward()  # type: ignore[arg-type]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
