"""What do curvature factors cost on SmolLM2-135M beside a training pass over the same tokens?

The factors of the six matrices that the curvature edit takes by default (gate and up of three blocks), in one pass:
forward, backward from the logits to the first of them, and two moment matrices per matrix. The goal is at most 1.5
times the time of forward and backward through all weights. The limit is the arithmetic: a training pass costs 6
operations per weight and token; the factors cost 2 for the forward pass, 2 for the gradients of activations from the
first edited block on, and those of the moments.
"""

from __future__ import annotations

import torch
from harness import alternate, finish, parser, print_table, ratio

from weightsmith.analyze import collect_kfac
from weightsmith.core.data import token_ids, token_windows
from weightsmith.core.models import find_layers
from weightsmith.embedded import load, text

WINDOW, BATCH, COUNT = 256, 4, 8
BLOCKS = 21, 22, 23


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load("smollm2")
    model = model.float().eval()
    ids = token_ids(tokenizer, text("source"))
    draw = torch.Generator().manual_seed(0)
    batches = token_windows(ids, length=WINDOW, count=COUNT, batch_size=BATCH, generator=draw)
    layers = find_layers(
        model, [f"model.layers.{block}.mlp.{name}_proj" for block in BLOCKS for name in ("gate", "up")]
    )

    def training_pass() -> None:
        for batch in batches:
            model(**batch, labels=batch["input_ids"]).loss.backward()
        model.zero_grad()

    timings = alternate(
        {"training pass": training_pass, "factors": lambda: collect_kfac(model, batches, layers)},
        rounds=options.rounds,
        warmup=1,
    )
    print_table(("work", "seconds"), [(name, timing.median) for name, timing in timings.items()])
    weights = sum(parameter.numel() for parameter in model.parameters())
    blocks = model.config.num_hidden_layers
    inside = sum(parameter.numel() for parameter in model.model.layers.parameters()) / blocks
    above = (blocks - BLOCKS[0]) * inside + model.lm_head.weight.numel()
    moments = sum(rows**2 + columns**2 for rows, columns in (layer.weight_OI.shape for layer in layers))
    finish(
        "curvature_factors",
        ratio=ratio(timings["training pass"], timings["factors"]),
        goal=1 / 1.5,
        limit=6 * weights / (2 * weights + 2 * above + 2 * moments),
        ours=timings["factors"].median,
        peer=timings["training pass"].median,
        unit="s",
        store=options.store,
        layers=len(layers),
        blocks=BLOCKS,
    )


if __name__ == "__main__":
    main()
