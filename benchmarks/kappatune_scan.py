"""How long does it take to know the condition numbers of SmolLM2-135M's 210 matrices, against PEFT's selector?

Ours reads the checkpoint's files tensor by tensor and takes eigenvalues of Gram matrices in float64; PEFT takes
singular values in float32 of a model that is already loaded. Peak memory is that of a fresh process that does one or
the other, loading included. The limit is what the multiplications of Gram matrix and tridiagonalisation would take at
the rate of a matrix product.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from pathlib import Path
from typing import Any

import torch
from harness import alternate, finish, gemm_rate, parser, print_table, ratio
from peft.helpers import KappaTuneSelector
from threadpoolctl import threadpool_limits

from weightsmith.analyze import ConditionReport, condition_report
from weightsmith.embedded import load

MODEL = "embedded:smollm2"


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    model, _ = load("smollm2")
    loading = time.perf_counter() - start
    found: dict[str, Any] = {}
    arms = {
        "ours, from files": lambda: found.update(ours=ours()),
        "peft, loaded model": lambda: found.update(peft=peft(model)),
    }
    with threadpool_limits(options.threads):  # numpy's threads are not torch's
        mine, theirs = alternate(arms, rounds=options.rounds, warmup=0).values()
        report, kappas = found["ours"], found["peft"]
        limit = flops(report) / gemm_rate(dtype=torch.float64)
    memory = {name: peak_memory(scan) for name, scan in (("ours", scan_files), ("peft", scan_model), ("imports", len))}
    # above, the smallest singular value in float32 has fewer digits left than are compared
    difference = max(abs(row.kappa / kappas[row.name] - 1) for row in report.rows if row.kappa < 1e3)
    same = all(report.select(top_p=p) == sorted(kappas, key=kappas.get)[: int(210 * p)] for p in (0.1, 0.2, 0.5, 1.0))
    print_table(
        ("arm", "seconds", "peak memory, MB"),
        [
            ("ours, from files", mine.median, memory["ours"] / 1e6),
            ("peft, loaded model", theirs.median, memory["peft"] / 1e6),
            ("loading the model", loading, "-"),
            ("imports alone", "-", memory["imports"] / 1e6),
            ("multiplications at the rate of a matrix product", limit, "-"),
        ],
    )
    print(f"largest relative difference below 1000: {difference:.1e}, same ranking: {same}")
    finish(
        "kappatune_scan",
        ratio=ratio(theirs, mine),
        goal=1.5,
        limit=theirs.median / limit,
        ours=mine.median,
        peer=theirs.median,
        unit="s",
        store=options.store,
        peak_memory=memory,
        loading=loading,
        largest_difference=difference,
        same_ranking=same,
    )


def ours() -> ConditionReport:
    return condition_report(MODEL, score="kappa")


def peft(model: torch.nn.Module) -> dict[str, float]:
    selector = KappaTuneSelector(model, max_dim_size_to_analyze=16384, show_progress=False)
    names = selector.get_best_targets()
    kappas = selector._condition_numbers or {}
    return {name: kappas[name] for name in names if name != "lm_head"}


def flops(report: ConditionReport) -> float:
    """Half a matrix product for each symmetric Gram matrix, four thirds of a cube for its tridiagonal form."""
    sides = [sorted(row.shape) for row in report.rows]
    return sum(short**2 * long + 4 / 3 * short**3 for short, long in sides)


def scan_files(_: object = ()) -> None:
    ours()


def scan_model(_: object = ()) -> None:
    peft(load("smollm2")[0])


def peak_memory(work: object) -> int:
    """Bytes that a fresh process held at its peak."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (work,))


def _peak(work: object) -> int:
    work(())  # type: ignore[operator]
    # getrusage would answer with the parent's peak, which a new process inherits
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


if __name__ == "__main__":
    main()
