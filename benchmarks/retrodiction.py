"""How close to the machine's matrix-multiply rate does KNOW's predictor run, and how much memory does it need?

Arms, in turn in one process: our evaluation, the plain module's forward pass over chunks, the same compiled by
torch.compile, a square matrix product of the same number of operations. Then, in a process of its own, five
checkpoints are retrodicted on disk and the growth of the peak memory is compared with the largest tensor.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from harness import alternate, finish, gemm_rate, parser, print_table, ratio
from safetensors.torch import save_file

from weightsmith.predict import HistoryNet, know
from weightsmith.predict._know.elementwise import ElementwiseRule

FLOP = 2 * 8832
"""Operations a weight of the network as published; our evaluation needs 11 % fewer."""
GOAL = 0.4
PLAIN_CHUNK, COMPILED_CHUNK = 1 << 14, 1 << 12
CHANNELS = 1024


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--weights", type=int, default=1 << 20, help="weights to predict")
    options.add_argument("--stages", nargs="*", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.stages:
        print(_peak_growth(chosen.stages))
        return
    net = HistoryNet(torch.Generator().manual_seed(0))
    history = torch.randn(5, chosen.weights, generator=torch.Generator().manual_seed(0)) / 10
    rows, stages = history.T.contiguous(), list(history.clone())
    rule, compiled_net = ElementwiseRule(net), torch.compile(net, dynamic=False)
    size = 1024
    a, c = torch.rand(size, size), torch.empty(size, size)
    products = max(1, round(chosen.weights * FLOP / (2 * size**3)))

    def plain() -> None:
        with torch.no_grad():
            for part in rows.split(PLAIN_CHUNK):
                net(part)

    def compiled() -> None:
        with torch.no_grad():
            for part in rows.split(COMPILED_CHUNK):
                compiled_net(part)

    def gemm() -> None:
        for _ in range(products):
            torch.mm(a, a, out=c)

    arms = {"ours": lambda: rule(stages, 1), "plain": plain, "compiled": compiled, "gemm": gemm}
    times = alternate(arms, rounds=chosen.rounds)
    per_operation = times["gemm"].median / (products * 2 * size**3)
    shares = [
        (g / (products * 2 * size**3)) / (f / (chosen.weights * FLOP))
        for f, g in zip(times["ours"].seconds, times["gemm"].seconds, strict=True)
    ]
    rates = {name: chosen.weights / times[name].median / 1e6 for name in ("ours", "plain", "compiled")}
    limit = 1 / (per_operation * FLOP) / 1e6
    print_table(
        ("arm", "M weights/s", "GFLOP/s", "share of GEMM"),
        [
            *((name, rate, rate * FLOP / 1e3, rate / limit) for name, rate in rates.items()),
            ("gemm", limit, limit * FLOP / 1e3, 1.0),
        ],
    )
    memory = _measure_memory(chosen.threads)
    print(f"peak memory of retrodiction on disk: {memory:.2f} x the largest tensor (limit 6)")
    finish(
        "retrodiction",
        ratio=ratio(times["plain"], times["ours"]),
        goal=None,
        limit=limit,
        ours=rates["ours"],
        compiled=rates["compiled"],
        peer=rates["plain"],
        unit="M weights/s",
        store=chosen.store,
        gemm_share=statistics.median(shares),
        gemm_share_goal=GOAL,
        gemm_gflops=gemm_rate() / 1e9,
        memory_in_largest_tensors=memory,
    )


def _measure_memory(threads: int) -> float:
    """Peak growth over the largest tensor, for five checkpoints of three large kernels each."""
    with tempfile.TemporaryDirectory() as folder:
        stages = []
        for stage in range(5):
            generator = torch.Generator().manual_seed(stage)
            kernels = {
                f"{i}.weight": torch.randn(CHANNELS, CHANNELS, 3, 3, generator=generator) / 100 for i in range(3)
            }
            stages.append(Path(folder) / f"{stage}.safetensors")
            save_file({**kernels, "norm.weight": torch.ones(CHANNELS)}, stages[-1])
        command = [sys.executable, __file__, "--threads", str(threads), "--stages", *map(str, stages)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stdout) / (CHANNELS * CHANNELS * 9 * 4)


def _peak_growth(stages: list[Path]) -> int:
    """Bytes by which the peak of this process grows; a small run before loads all code."""
    with tempfile.TemporaryDirectory() as folder:
        small = []
        for stage in range(5):
            small.append(Path(folder) / f"{stage}.safetensors")
            save_file({"0.weight": torch.full((8, 8, 3, 3), 0.1 * stage), "norm.weight": torch.ones(8)}, small[-1])
        know(small, Path(folder) / "small", predictor="paper")
        before = _peak_memory()
        know(stages, Path(folder) / "large", predictor="paper")
    return _peak_memory() - before


def _peak_memory() -> int:
    """Peak resident memory in bytes; unlike getrusage's it does not start at the parent process' peak."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    main()
