"""How long does it take to put one network's units in another's order, against the rebasin package?

Goal: at least five times faster on every network, at an equal or better objective (the inner product of the weights).
Both sides trace the network, match, and permute a copy; ours also checks on random weights that the function stays the
same. The limit is every product of the cost matrices computed once, at the measured matrix-multiply rate.

The peer goes into a folder of its own, as it must not change what is installed::

    pip install --no-deps --target peers rebasin torchview graphviz
    python benchmarks/weight_matching_rebasin.py --peer peers
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from harness import alternate, finish, gemm_rate, parser, print_table, ratio
from torch import nn
from torch.utils.data import TensorDataset

from weightsmith.core.symmetry import Symmetry, find_symmetry
from weightsmith.core.training import fit
from weightsmith.embedded import digits
from weightsmith.merge import match_weights

GOAL = 5.0


class Block(nn.Module):
    """A basic block of a ResNet, its activations as modules, as the peer's tracer wants them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        short = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.short = nn.Sequential(*short) if stride > 1 or inputs != outputs else nn.Identity()
        self.end = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        out: torch.Tensor = self.end(self.short(x) + self.body(x))
        return out


def perceptron(width: int) -> nn.Sequential:
    layers = [part for pair in pairwise((64, width, width, width, 10)) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def vgg11(width: int = 64) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for size in (1, 0, 2, 0, 4, 4, 0, 8, 8, 0, 8, 8, 0):
        layers += (
            [nn.Conv2d(channels, size * width, 3, padding=1), nn.BatchNorm2d(size * width), nn.ReLU()]
            if size
            else [nn.MaxPool2d(2)]
        )
        channels = size * width or channels
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * width, 10))


def resnet18(width: int = 64) -> nn.Sequential:
    sizes = ((1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1), (4, 8, 2), (8, 8, 1))
    stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    blocks = [Block(i * width, o * width, stride) for i, o, stride in sizes]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10))


@cache
def trained(seed: int) -> nn.Sequential:
    """A perceptron of width 512 trained on the digits."""
    torch.manual_seed(seed)
    model = perceptron(512)
    x, y = digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3)

    def loss(net: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    fit(model, TensorDataset(x.flatten(1), y), loss=loss, optimizer=optimizer, epochs=20, batch_size=64, seed=seed)
    return model


def fresh(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return make().eval()

    return build


NETS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "perceptron 3 x 512, trained": (trained, (4, 64)),
    "perceptron 3 x 1024": (fresh(lambda: perceptron(1024)), (4, 64)),
    "VGG11": (fresh(vgg11), (2, 3, 32, 32)),
    "ResNet18": (fresh(resnet18), (2, 3, 32, 32)),
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--peer", required=True, help="folder the peer was installed to")
    options.set_defaults(rounds=3)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    sys.path.append(arguments.peer)
    from rebasin import PermutationCoordinateDescent

    small, probe = perceptron(8), torch.rand(2, 64)  # both sides import and trace something once before the clock runs
    match_weights(small, perceptron(8), find_symmetry(small, probe))
    PermutationCoordinateDescent(small, perceptron(8), probe).rebasin()
    rate = gemm_rate()
    rows, ratios, detail = [], {}, {}
    for name, (make, shape) in NETS.items():
        a, b, x = make(0), make(1), torch.rand(shape, generator=torch.Generator().manual_seed(0))
        moved: dict[str, nn.Module] = {}

        def ours(a: nn.Module = a, b: nn.Module = b, x: torch.Tensor = x, moved: dict[str, nn.Module] = moved) -> None:
            moved["ours"] = copy.deepcopy(b)
            symmetry = find_symmetry(a, x)
            symmetry.permute_(moved["ours"], match_weights(a, b, symmetry).perms)

        def peer(a: nn.Module = a, b: nn.Module = b, x: torch.Tensor = x, moved: dict[str, nn.Module] = moved) -> None:
            moved["peer"] = copy.deepcopy(b)
            PermutationCoordinateDescent(a, moved["peer"], x).rebasin()

        times = alternate({"ours": ours, "rebasin": peer}, rounds=arguments.rounds, warmup=0)
        symmetry = find_symmetry(a, x)
        start, won, lost = (objective(symmetry, a, other) for other in (b, moved["ours"], moved["peer"]))
        ratios[name] = ratio(times["rebasin"], times["ours"])
        limit = times["rebasin"].median / (products(symmetry) / rate)
        gains = (won - start) / (lost - start)
        rows.append((name, times["ours"].median, times["rebasin"].median, ratios[name], limit, gains))
        detail[name] = {
            "ratio": ratios[name],
            "ours": times["ours"].median,
            "peer": times["rebasin"].median,
            "limit": limit,
            "objective gained over rebasin's": gains,
        }
    print_table(("network", "ours s", "rebasin s", "ratio", "limit", "gain of objective / rebasin's"), rows)
    slowest = min(ratios, key=lambda name: ratios[name])
    finish(
        "weight_matching_rebasin",
        ratio=ratios[slowest],
        goal=GOAL,
        limit=detail[slowest]["limit"],
        ours=detail[slowest]["ours"],
        peer=detail[slowest]["peer"],
        unit=f"s, the least favourable network ({slowest})",
        store=arguments.store,
        networks=detail,
    )


def objective(symmetry: Symmetry, a: nn.Module, b: nn.Module) -> float:
    first, second = a.state_dict(), b.state_dict()
    keys = [key for key in symmetry.axes if key not in symmetry.buffers]
    return sum(float((first[key].double() * second[key].double()).sum()) for key in keys)


def products(symmetry: Symmetry) -> float:
    """Operations of all cost matrices once: each permuted axis of each weight times itself."""
    return float(
        sum(
            2 * torch.Size(symmetry.shapes[key]).numel() * symmetry.shapes[key][axis]
            for key, dims in symmetry.axes.items()
            if key not in symmetry.buffers
            for axis, blocks in enumerate(dims)
            if blocks
        )
    )


if __name__ == "__main__":
    main()
