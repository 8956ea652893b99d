"""How much faster is one token through a packed layer of two or four bits than through float32?

Weights larger than the caches, layers from SmolLM2's to Llama-3-8B's.
"""

from __future__ import annotations

import torch
from harness import alternate, finish, memory_bandwidth, parser, print_table, ratio
from torch import nn

from weightsmith.core.levels import Grid, WeightLevels
from weightsmith.quantize import PackedLinear

SHAPES = ((4096, 14336), (14336, 4096), (1536, 576), (576, 1536), (576, 576))
MEGABYTES = 200


def _layer(out: int, inputs: int, bits: int) -> tuple[nn.Linear, WeightLevels]:
    n = 2 ** (bits - 1)
    layer = nn.Linear(inputs, out, bias=False)
    codes = torch.randint(-n, n, (out, inputs))
    layer.weight.data.copy_(Grid(bits, half=True).integers(codes) * 0.01)
    return layer, WeightLevels(bits, True, [float(torch.tensor(0.01))] * out)


@torch.no_grad()
def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    bandwidth = memory_bandwidth()
    rows, speed = [], {}
    for out, inputs in SHAPES:
        copies = max(1, MEGABYTES * 2**20 // (4 * out * inputs))
        x = torch.randn(1, inputs)
        times = {}
        for bits in (2, 4):
            held = [_layer(out, inputs, bits) for _ in range(copies)]
            packed = [PackedLinear(layer, levels) for layer, levels in held]
            arms = {
                "dense": lambda held=held, x=x: [layer(x) for layer, _ in held],
                "packed": lambda packed=packed, x=x: [layer(x) for layer in packed],
            }
            measured = alternate(arms, rounds=options.rounds)
            times[bits] = {name: 1e6 * timing.median / copies for name, timing in measured.items()}
            times[bits]["speedup"] = ratio(measured["dense"], measured["packed"])
        speed[f"{out}x{inputs}"] = times
        rows.append((f"{out}x{inputs}", times[2]["dense"], *(times[bits]["speedup"] for bits in (2, 4))))
    print_table(("layer", "us in float32", "x faster at 2 bits", "at 4 bits"), rows)
    for bits in (2, 4):
        wide = speed["4096x14336"][bits]
        finish(
            f"ofq_packed_{bits}_bit",
            ratio=wide["speedup"],
            goal=2.0,
            limit=32 / bits,
            ours=wide["packed"],
            peer=wide["dense"],
            unit="us per layer of 4096x14336",
            store=options.store,
            layers={name: times[bits] for name, times in speed.items()},
            bandwidth=bandwidth,
        )


if __name__ == "__main__":
    main()
