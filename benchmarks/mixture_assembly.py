"""What does assembling a grown weight from its templates cost, forward and backward?

A convolution of 320 x 320 channels, 3 x 3, two templates a set. The peer assembles as the paper's code does: a list of
weighted templates for every block, their sum, and the blocks stacked. Goal: 2 times faster. The limit reads every
template and writes every weight once, and the same for their gradients. The share of a training step is told beside it.
"""

from __future__ import annotations

import torch
from harness import alternate, finish, memory_bandwidth, parser, print_table, ratio
from torch import Tensor, nn

from weightsmith.grow import MixtureGrowth

WIDTH, BATCH, SIDE = 160, 32, 8


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    growth = MixtureGrowth(_network, width=WIDTH, generator=torch.Generator().manual_seed(0))
    wide, layer = growth.grow(), growth.layers["1"]
    plain = MixtureGrowth.export(wide)
    gradient, x = torch.randn_like(plain[1].weight), torch.randn(BATCH, 3, SIDE, SIDE)

    def blockwise() -> Tensor:
        blocks = []
        for m, alpha in enumerate(layer.alphas):
            templates = layer.templates[m % 2]
            weights = torch.stack([a.view(1, 1, 1, 1) * t for a, t in zip(alpha, templates, strict=True)])
            blocks.append(weights.sum(0))
        return torch.vstack([torch.hstack([blocks[0], blocks[2]]), torch.hstack([blocks[3], blocks[1]])])

    torch.testing.assert_close(blockwise(), wide[1].weight)
    arms = {
        "ours": lambda: wide[1].weight.backward(gradient),
        "block by block": lambda: blockwise().backward(gradient),
        "step of the grown network": lambda: wide(x).square().mean().backward(),
        "step of a plain network": lambda: plain(x).square().mean().backward(),
    }
    timings = alternate(arms, rounds=options.rounds, warmup=3)
    # forward: templates in, weights out; backward: gradients and templates (for the coefficients) in, gradients out
    limit = 5 * gradient.numel() * gradient.element_size() / memory_bandwidth()
    rows = [*((name, 1e3 * timing.median) for name, timing in timings.items()), ("memory traffic", 1e3 * limit)]
    print_table(("arm", "ms"), rows)
    finish(
        "mixture_assembly",
        ratio=ratio(timings["block by block"], timings["ours"]),
        goal=2.0,
        limit=timings["block by block"].median / limit,
        ours=1e3 * timings["ours"].median,
        peer=1e3 * timings["block by block"].median,
        unit="ms",
        step_overhead=ratio(timings["step of the grown network"], timings["step of a plain network"]),
        store=options.store,
    )


def _network(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1, bias=False))


if __name__ == "__main__":
    main()
