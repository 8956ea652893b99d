"""How much faster is magnitude pruning of a bf16 layer than with torch's own selection of the smallest in each row?

Half of the weights of each row of a 4096 x 4096 matrix are set to zero; of equal magnitudes, of which bf16 has many in
a row, the first ones. The peer does the same with ``kthvalue``, comparisons and ``masked_fill_``. The limit reads the
weights once and writes them once. Goal: 3 times faster.
"""

from __future__ import annotations

import torch
from harness import alternate, finish, memory_bandwidth, parser, print_table, ratio
from torch import Tensor, nn

from weightsmith.sparsify import magnitude

SIDE = 4096


def by_torch(weight: Tensor) -> None:
    score = weight.float().abs()
    k = SIDE // 2
    bound = score.kthvalue(k, dim=1, keepdim=True).values
    mask = score < bound
    equal = score == bound
    mask |= equal & (equal.cumsum(1) <= k - mask.sum(1, keepdim=True))
    weight.masked_fill_(mask, 0)


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    start = torch.randn(SIDE, SIDE).bfloat16()
    layer = nn.Linear(SIDE, SIDE, bias=False, dtype=torch.bfloat16)
    found: dict[str, Tensor] = {}

    def ours() -> None:
        with torch.no_grad():
            layer.weight.copy_(start)
        magnitude(nn.Sequential(layer))
        found["ours"] = layer.weight.detach().clone()

    def peer() -> None:
        found["torch"] = start.clone()
        by_torch(found["torch"])

    times = alternate({"ours": ours, "torch": peer}, rounds=options.rounds)
    if not torch.equal(found["ours"], found["torch"]):
        raise SystemExit("the two differ in the weights that they keep")
    rows = [(name, time.median, start.numel() / time.median / 1e6) for name, time in times.items()]
    print_table(("arm", "s", "million weights/s"), rows)
    finish(
        "magnitude_rows",
        ratio=ratio(times["torch"], times["ours"]),
        goal=3.0,
        limit=times["torch"].median / (2 * start.numel() * 2 / memory_bandwidth()),
        ours=times["ours"].median,
        peer=times["torch"].median,
        unit="s",
        store=options.store,
    )


if __name__ == "__main__":
    main()
