"""What does a training step cost with StatsQ's levels, and what does annealing add?

A transformer encoder of DeiT-T's width on one batch of images, compiled. The peer of the levels is the plain step, the
peer of annealing the step with levels. Each ratio is the peer's time over ours: at most 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import alternate, finish, parser, print_table, ratio
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from weightsmith.core.models import find_layers
from weightsmith.quantize import ConfidenceGuidedAnnealing, StatsQ

WIDTH, HEADS, BLOCKS, TOKENS, BATCH = 192, 3, 4, 65, 64


class Block(nn.Module):
    """A transformer's block with plain linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the next hidden states."""
        parts = self.qkv(self.norms[0](x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


def _step(x: torch.Tensor, bits: int | None, *, annealed: bool = False) -> Callable[[], object]:
    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(BLOCKS)))
    if bits is not None:
        for layer in find_layers(model):
            parametrize.register_parametrization(layer.module, "weight", StatsQ(bits))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05)
    run = torch.compile(model)
    if annealed:
        ConfidenceGuidedAnnealing(model, optimizer).__enter__()

    def step() -> None:
        run(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    weight = torch.randn(300, 500)
    assert torch.allclose(torch.compile(StatsQ(2))(weight), StatsQ(2)(weight), rtol=1e-5)
    x = torch.randn(BATCH, TOKENS, WIDTH)
    arms = {"plain": _step(x, None), "levels": _step(x, 2), "annealed": _step(x, 2, annealed=True)}
    timings = alternate(arms, rounds=options.rounds, warmup=2)
    print_table(("step", "ms"), [(name, 1e3 * timing.median) for name, timing in timings.items()])
    for name, ours, peer, goal in (
        ("ofq_levels", "levels", "plain", 1 / 1.25),
        ("ofq_annealing", "annealed", "levels", 1 / 1.05),
    ):
        finish(
            name,
            ratio=ratio(timings[peer], timings[ours]),
            goal=goal,
            limit=1.0,
            ours=1e3 * timings[ours].median,
            peer=1e3 * timings[peer].median,
            unit="ms per step",
            store=options.store,
        )


if __name__ == "__main__":
    main()
