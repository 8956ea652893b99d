"""Does a network that ModHiFi cut run as much faster as it has fewer operations?

SmolLM2-135M without a fifth of its feed-forward neurons, EfficientNet-Lite0 and a plain convolutional network without a
fifth of the channels that can leave. The ratio is the gain in time over the gain in operations, counted by PyTorch; the
goal is at least .85. The limit is 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import torch
from harness import alternate, finish, parser, print_table, ratio
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from weightsmith.core.data import token_ids, token_windows
from weightsmith.embedded import load, text
from weightsmith.sparsify import modhifi

RATIO = 0.2


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = []
    for name, (model, batch) in {
        "smollm2": smollm2(),
        "efficientnet_lite0": efficientnet(),
        "plain_cnn": cnn(),
    }.items():
        cut = copy.deepcopy(model)
        modhifi(cut, [batch], ratio=RATIO, score="energy", multiple_of=16)
        dense, smaller = (forward(each, batch) for each in (model, cut))
        fewer = operations(dense) / operations(smaller)
        timings = alternate({"dense": dense, "cut": smaller}, rounds=4 * options.rounds, warmup=2)
        faster = ratio(timings["dense"], timings["cut"])
        rows.append((name, timings["dense"].median, timings["cut"].median, fewer, faster))
        finish(
            f"modhifi_speed_{name}",
            ratio=faster / fewer,
            goal=0.85,
            limit=1.0,
            ours=timings["cut"].median,
            peer=timings["dense"].median,
            unit="s",
            store=options.store,
            fewer_operations=fewer,
            faster=faster,
        )
    print_table(("network", "dense, seconds", "cut, seconds", "fewer operations", "faster"), rows)


def smollm2() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    model, tokenizer = load("smollm2")
    ids = token_ids(tokenizer, text("source"))
    (batch,) = token_windows(ids, length=512, count=4, batch_size=4, generator=torch.Generator().manual_seed(0))
    return model.float().eval(), batch


def efficientnet() -> tuple[nn.Module, torch.Tensor]:
    return load("efficientnet-lite0")[0].eval(), torch.rand(16, 3, 224, 224)


def cnn() -> tuple[nn.Module, torch.Tensor]:
    """Eight convolutions with batch normalization, as in VGG."""
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 256)
    layers: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if place in (1, 3, 5) else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)).eval(), torch.rand(
        16, 3, 64, 64
    )


def forward(model: nn.Module, batch: object) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        model(**batch) if isinstance(batch, dict) else model(batch)

    return run


def operations(run: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
