"""How much faster is a recurrent tangent kernel from its factors than from the rows of the Jacobian?

The kernel of the recurrent weights of a network of 300 units on 32 trials of 8 steps with 3 outputs: 768 rows, as in
the paper's measurement. The peer takes one backward pass per row and writes its 90,000 numbers into a Jacobian that is
allocated once, then its Gram matrix. (The paper's code appends each row by concatenation, which copies the Jacobian
768 times; ``--concatenate`` measures that once.) The goal is 20 times. The limit is the arithmetic of the pairs of
gradients that are not zero, in one order, at the measured rate of matrix products.
"""

from __future__ import annotations

import torch
from harness import alternate, finish, gemm_rate, parser, print_table, ratio

from weightsmith.analyze import LazinessProbe
from weightsmith.claims.rich_lazy import DecisionNetwork, perceptual_decisions

UNITS, TRIALS, STEPS, CLASSES = 300, 32, 8, 3


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--concatenate", action="store_true", help="also time the paper's code, for minutes")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    draw = torch.Generator().manual_seed(0)
    model = DecisionNetwork(torch.randn(1, UNITS, UNITS, generator=draw) * 1.25 / UNITS**0.5).plain(0)
    x, _ = perceptual_decisions(TRIALS, draw)
    weight = model.get_parameter("rnn.weight_hh_l0")
    probe = LazinessProbe(model, [x], include="rnn.weight_hh_l0")

    def factors() -> torch.Tensor:
        return probe.snapshot().observed["rnn.weight_hh_l0"].kernel_RR

    def rows() -> torch.Tensor:
        outputs = model(x).flatten()
        jacobian = torch.empty(len(outputs), weight.numel())
        for number, output in enumerate(outputs):
            jacobian[number] = torch.autograd.grad(output, weight, retain_graph=True)[0].flatten()
        return jacobian @ jacobian.T

    def concatenated() -> torch.Tensor:
        jacobian = torch.empty(0, weight.numel())
        for output in model(x).flatten():
            (row,) = torch.autograd.grad(output, weight, retain_graph=True)
            jacobian = torch.cat([jacobian, row.reshape(1, -1)])
        return jacobian @ jacobian.T

    error = float((factors() - rows()).abs().max() / factors().abs().max())
    timings = alternate({"rows": rows, "factors": factors}, rounds=options.rounds)
    detail = {}
    if options.concatenate:
        once = alternate({"rows, concatenated": concatenated}, rounds=1, warmup=0)
        timings |= once
        detail["against_concatenated_rows"] = once["rows, concatenated"].median / timings["factors"].median
    print_table(("work", "seconds"), [(name, timing.median) for name, timing in timings.items()])
    gradients = TRIALS * CLASSES * STEPS * (STEPS + 1) // 2  # an output does not depend on later steps
    limit = (gradients**2 * UNITS + 2 * (TRIALS * STEPS) ** 2 * UNITS) / gemm_rate()
    finish(
        "recurrent_kernel",
        ratio=ratio(timings["rows"], timings["factors"]),
        goal=20,
        limit=timings["rows"].median / limit,
        ours=timings["factors"].median,
        peer=timings["rows"].median,
        unit="s",
        store=options.store,
        largest_difference=error,
        **detail,
    )


if __name__ == "__main__":
    main()
