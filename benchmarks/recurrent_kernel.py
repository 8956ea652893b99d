"""How much faster is a recurrent tangent kernel from its factors than from the rows of the Jacobian?

The kernel of the recurrent weights of a network of 300 units on 32 trials of 8 steps with 3 outputs: 768 rows, as in
the paper's measurement. The peer is the way of the paper's code: one backward pass per row, each row of 90,000 numbers
appended to the Jacobian by concatenation, and the Gram matrix of the Jacobian. A second peer writes the rows into a
Jacobian that is allocated once. The goal is 20 times. The limit is the arithmetic of the pairs of gradients that are
not zero, in one order, at the measured rate of matrix products.
"""

from __future__ import annotations

import torch
from harness import alternate, finish, gemm_rate, parser, print_table, ratio

from weightsmith.analyze import LazinessProbe
from weightsmith.claims.rich_lazy import DecisionNetwork, perceptual_decisions

UNITS, TRIALS, STEPS, CLASSES = 300, 32, 8, 3


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    draw = torch.Generator().manual_seed(0)
    model = DecisionNetwork(torch.randn(1, UNITS, UNITS, generator=draw) * 1.25 / UNITS**0.5).plain(0)
    x, _ = perceptual_decisions(TRIALS, draw)
    weight = model.get_parameter("rnn.weight_hh_l0")
    probe = LazinessProbe(model, [x], include="rnn.weight_hh_l0")

    def factors() -> torch.Tensor:
        return probe.snapshot().observed["rnn.weight_hh_l0"].kernel_RR

    def rows() -> torch.Tensor:
        jacobian = torch.empty(0, weight.numel())
        for output in model(x).flatten():
            (row,) = torch.autograd.grad(output, weight, retain_graph=True)
            jacobian = torch.cat([jacobian, row.reshape(1, -1)])
        return jacobian @ jacobian.T

    def allocated_once() -> torch.Tensor:
        outputs = model(x).flatten()
        jacobian = torch.empty(len(outputs), weight.numel())
        for number, output in enumerate(outputs):
            jacobian[number] = torch.autograd.grad(output, weight, retain_graph=True)[0].flatten()
        return jacobian @ jacobian.T

    error = float((factors() - allocated_once()).abs().max() / factors().abs().max())
    timings = alternate(
        {"rows": rows, "rows, allocated once": allocated_once, "factors": factors}, rounds=options.rounds, warmup=0
    )
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
        against_rows_allocated_once=ratio(timings["rows, allocated once"], timings["factors"]),
        largest_difference=error,
    )


if __name__ == "__main__":
    main()
