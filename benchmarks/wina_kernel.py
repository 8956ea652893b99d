"""How much faster is a layer's product with half of its columns skipped, against PyTorch's dense one?

One token, weights larger than the caches, layers from SmolLM2's to Llama-3-8B's, in every storage type.
"""

from __future__ import annotations

import torch
from harness import alternate, finish, memory_bandwidth, parser, print_table, ratio
from torch import nn

from weightsmith.sparsify import ActivationPlan, apply_plan, remove_plan
from weightsmith.sparsify._wina.linear import SparseLinear
from weightsmith.sparsify._wina.plan import Projection

SHAPES = ((4096, 14336), (14336, 4096), (1536, 576), (576, 1536), (576, 576))
SPARSITIES = (0.0, 0.25, 0.4, 0.5, 0.65)
MEGABYTES = 200


@torch.no_grad()
def main() -> None:
    options = parser(__doc__)
    options.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    bandwidth = memory_bandwidth()
    rows, speed = [], {}
    for dtype in (getattr(torch, name) for name in arguments.dtypes):
        for out, inputs in SHAPES:
            size = out * inputs * dtype.itemsize
            copies = max(1, MEGABYTES * 2**20 // size)
            x = torch.randn(1, inputs, dtype=dtype)
            score = x.abs().float().flatten()
            dense = [nn.Linear(inputs, out, bias=False, dtype=dtype) for _ in range(copies)]
            sparse = [nn.Linear(inputs, out, bias=False, dtype=dtype) for _ in range(copies)]
            model = nn.ModuleList(sparse)
            arms = {"dense": lambda layers=dense, x=x: [layer(x) for layer in layers]}
            models = {}
            for sparsity in SPARSITIES:
                threshold = float(score.quantile(sparsity)) if sparsity else 0.0
                projection = Projection(sparsity, threshold, norms=False)
                models[sparsity] = ActivationPlan(
                    sparsity, "threshold", 1.0, {str(i): projection for i in range(copies)}
                )
            times = {}
            for sparsity, plan in models.items():
                apply_plan(model, plan, backend="cpu")
                arms["sparse"] = lambda model=model, x=x: [layer(x) for layer in model]
                measured = alternate(arms, rounds=arguments.rounds)
                times[sparsity] = ratio(measured["dense"], measured["sparse"])
                if sparsity == 0.5:
                    seconds = {name: timing.median / copies for name, timing in measured.items()}
                    rate = size * (1 - sparsity) / seconds["sparse"]
                assert all(isinstance(layer, SparseLinear) for layer in model)
                remove_plan(model)
            name = f"{out}x{inputs} {str(dtype).removeprefix('torch.')}"
            speed[name] = {"speedup": times, "rate": rate, **{f"{k}_us": 1e6 * v for k, v in seconds.items()}}
            rows.append((name, *times.values(), rate / bandwidth))
    print_table(("layer", *(f"x dense at {s:.0%}" for s in SPARSITIES), "share of bandwidth at 50%"), rows)
    wide = speed[f"4096x14336 {arguments.dtypes[0]}"]
    finish(
        "wina_kernel",
        ratio=wide["speedup"][0.5],
        goal=1.7,
        limit=wide["dense_us"] * 1e-6 * bandwidth / (4096 * 14336 * getattr(torch, arguments.dtypes[0]).itemsize / 2),
        ours=wide["sparse_us"],
        peer=wide["dense_us"],
        unit=f"us per layer of 4096x14336 at 50 %, {arguments.dtypes[0]}",
        store=arguments.store,
        layers={
            name: {**row, "speedup": {str(k): v for k, v in row["speedup"].items()}} for name, row in speed.items()
        },
        bandwidth=bandwidth,
    )


if __name__ == "__main__":
    main()
