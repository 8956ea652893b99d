"""Is a step of CLASSP as fast as one of ``torch.optim.Adagrad``, with one state tensor as well?

64 layers of 1024, 67 million weights in float32. Both have their defaults: CLASSP power 1, and gradients checked
for NaN and infinity before anything changes. Goal: at most 1.1 times Adagrad's time. The limit is one pass over memory
that reads gradient, weight and accumulator and writes the last two, at this machine's bandwidth. Adagrad's fused
kernel, which one has to ask for, makes that one pass.
"""

from __future__ import annotations

import torch
from harness import alternate, finish, memory_bandwidth, parser, print_table, ratio
from torch import nn

from weightsmith.continual import CLASSP


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parameters = [*nn.ModuleList(nn.Linear(1024, 1024, device=device) for _ in range(64)).parameters()]
    generator = torch.Generator(device).manual_seed(0)
    for parameter in parameters:
        parameter.grad = 1e-3 * torch.randn(parameter.shape, generator=generator, device=device)
    ours = {
        "CLASSP": CLASSP(parameters, lr=1e-9),
        "CLASSP, all parameters together": CLASSP(parameters, lr=1e-9, foreach=True),
        "CLASSP, power 2": CLASSP(parameters, lr=1e-9, power=2.0),
    }
    peers = {
        "Adagrad": torch.optim.Adagrad(parameters, lr=1e-9),
        "Adagrad, foreach": torch.optim.Adagrad(parameters, lr=1e-9, foreach=True),
        "Adagrad, fused": torch.optim.Adagrad(parameters, lr=1e-9, fused=True),
    }
    timings = alternate({name: one.step for name, one in (ours | peers).items()}, rounds=options.rounds)
    peer = timings["Adagrad"]
    print_table(
        ("step", "ms", "of Adagrad's time"),
        [(name, 1e3 * timing.median, ratio(timing, peer)) for name, timing in timings.items()],
    )
    count = sum(parameter.numel() for parameter in parameters)
    bound = 5 * 4 * count / memory_bandwidth(device)
    finish(
        "classp_step",
        ratio=ratio(peer, timings["CLASSP"]),
        goal=1 / 1.1,
        limit=peer.median / bound,
        ours=1e3 * timings["CLASSP"].median,
        peer=1e3 * peer.median,
        unit="ms for 67 million weights",
        store=options.store,
        times={name: 1e3 * timing.median for name, timing in timings.items()},
        weights=count,
    )


if __name__ == "__main__":
    main()
