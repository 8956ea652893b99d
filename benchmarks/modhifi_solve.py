"""How much faster are the greedy choice and one shared solution than the paper's solution per output channel?

One layer of the size of SmolLM2-135M's down projection, 1536 neurons of which 1229 stay, 576 outputs. The peer is
a literal port: for every output it forms the matrix of similarities of the contributions and solves for its factors.
It is timed on a part of the outputs and scaled. Goal: 20 times. The limit counts floating-point operations. Also
measured: the speed of the feed-forward network with 80 % of its neurons, relative to its operations.
"""

from __future__ import annotations

import torch
from harness import alternate, finish, parser, print_table, ratio
from torch import Tensor, nn

from weightsmith.sparsify import compensate, modhifi, select_channels

INPUTS, OUTPUTS, KEPT = 1536, 576, 1229
PART = 12
"""Outputs that the peer solves."""


class FeedForward(nn.Module):
    """A gated feed-forward network, as in Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(OUTPUTS, INPUTS, bias=False), nn.Linear(OUTPUTS, INPUTS, bias=False)
        self.down = nn.Linear(INPUTS, OUTPUTS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the network."""
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def per_output(weight_OI: Tensor, moment_II: Tensor, keep: Tensor) -> Tensor:
    """The paper's factors: ``1 + Q_CC^-1 Q_CR 1`` with ``Q = (w w^T) o S`` of each output, ridge 1e-4."""
    gone = torch.ones(weight_OI.shape[1], dtype=torch.bool)
    gone[keep] = False
    new_OK = torch.empty(len(weight_OI), len(keep))
    for row, w_I in enumerate(weight_OI):
        q_II = w_I[:, None] * w_I * moment_II
        kept_KK = q_II[keep][:, keep] + 1e-4 * torch.eye(len(keep))
        new_OK[row] = w_I[keep] * (1 + torch.linalg.solve(kept_KK, q_II[keep][:, gone].sum(1)))
    return new_OK


@torch.no_grad()
def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = FeedForward()
    x = torch.randn(4096, OUTPUTS)
    hidden = nn.functional.silu(network.gate(x)) * network.up(x)
    moments, weight = hidden.T @ hidden / len(x), network.down.weight.detach()

    def ours() -> None:
        compensate(weight, moments, select_channels(weight, moments, KEPT, score="greedy"))

    def scored() -> None:
        compensate(weight, moments, select_channels(weight, moments, KEPT, score="energy"))

    keep = select_channels(weight, moments, KEPT, score="energy")
    arms = {
        "greedy choice + shared solution": ours,
        "energy score + shared solution": scored,
        f"per output, {PART} of {OUTPUTS}": lambda: per_output(weight[:PART], moments, keep),
    }
    solve = alternate(arms, rounds=options.rounds, warmup=0)
    first, second, peer = solve.values()
    modhifi(smaller := FeedForward(), [x], ratio=0.2)
    run = alternate(
        {"dense": lambda: network(x), "80 % of the neurons": lambda: smaller(x)}, rounds=4 * options.rounds, warmup=2
    )
    dense, cut = run.values()
    print_table(("arm", "seconds"), [(name, timing.median) for name, timing in (solve | run).items()])
    times = OUTPUTS / PART
    flops = (
        3 * 2 * INPUTS**2 * KEPT + KEPT**3 / 3 + 2 * KEPT**2 * OUTPUTS
    )  # three updates of two matrices; the solution
    finish(
        "modhifi_solve",
        ratio=times * ratio(peer, first),
        goal=20.0,
        limit=OUTPUTS * 2 * KEPT**3 / 3 / flops,
        ours=first.median,
        peer=times * peer.median,
        unit="s",
        store=options.store,
        score=times * ratio(peer, second),
        speed_of_the_cut_network=ratio(dense, cut),
        speed_by_operations=INPUTS / smaller.down.in_features,
    )


if __name__ == "__main__":
    main()
