"""What every benchmark script needs: fair timing of both arms, the machine's physical limits, one line of JSON.

The arms of a comparison run in turn within one process, so that a slow minute of the machine hits both. Ratios are
taken within a round and their median is reported; the limits (memory bandwidth, matrix-multiply rate) are measured
in the same process with the same number of threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "Timing",
    "alternate",
    "finish",
    "gemm_rate",
    "machine",
    "memory_bandwidth",
    "parser",
    "print_table",
    "ratio",
]

STORE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"


@dataclass(frozen=True)
class Timing:
    """The seconds one arm took, one number a round.

    Attributes
    ----------
    seconds : tuple of float
        Wall time of each round.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The typical round."""
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        """The least disturbed round."""
        return min(self.seconds)


def alternate(arms: Mapping[str, Callable[[], object]], *, rounds: int = 5, warmup: int = 1) -> dict[str, Timing]:
    """Time the arms in turn: round 1 of every arm, round 2 of every arm, ...

    Every other round runs the arms in reverse, so that none always follows the same neighbor.

    Parameters
    ----------
    arms : mapping of str to callable
        What to time. A CUDA device, where there is one, is synchronized before the clock is read.
    rounds : int, default: 5
        Timed rounds.
    warmup : int, default: 1
        Untimed rounds before them (compilation, caches).

    Returns
    -------
    dict of str to Timing
        In the order of ``arms``.

    Examples
    --------
    >>> times = alternate({"a": lambda: sum(range(10)), "b": lambda: None}, rounds=3)
    >>> len(times["a"].seconds), times["b"].best >= 0
    (3, True)
    """
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(-warmup, rounds):
        for name in arms if number % 2 == 0 else reversed(list(arms)):
            _synchronize()
            start = time.perf_counter()
            arms[name]()
            _synchronize()
            if number >= 0:
                taken[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(seconds)) for name, seconds in taken.items()}


def ratio(slow: Timing, fast: Timing) -> float:
    """How many times faster ``fast`` is: the median over rounds of the ratio within a round.

    Examples
    --------
    >>> ratio(Timing((2.0, 4.0, 9.0)), Timing((1.0, 2.0, 3.0)))
    2.0
    """
    return statistics.median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))


def memory_bandwidth(device: torch.device | str = "cpu", *, megabytes: int = 512, rounds: int = 5) -> float:
    """Bytes a second that a sum over a tensor larger than the caches reads: the limit of whatever reads weights once.

    Parameters
    ----------
    device : torch.device or str, default: "cpu"
        Where to measure.
    megabytes : int, default: 512
        Size of the tensor; several times the last-level cache.
    rounds : int, default: 5
        The best of so many counts.

    Returns
    -------
    float
        Bytes a second.
    """
    data = torch.ones(megabytes * 2**20 // 4, device=device)
    return data.numel() * 4 / alternate({"sum": data.sum}, rounds=rounds)["sum"].best


def gemm_rate(
    device: torch.device | str = "cpu", *, dtype: torch.dtype = torch.float32, size: int = 2048, rounds: int = 5
) -> float:
    """Floating-point operations a second of a square matrix product: the limit of whatever computes.

    Returns
    -------
    float
        FLOP a second (a multiply-add is two).
    """
    a = torch.rand(size, size, device=device, dtype=dtype)
    return 2 * size**3 / alternate({"gemm": lambda: a @ a}, rounds=rounds)["gemm"].best


def machine() -> dict[str, Any]:
    """The machine and the versions the numbers belong to."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "device": device,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options all benchmarks share: ``--rounds``, ``--threads``, ``--store``."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5, help="timed rounds of every arm")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    options.add_argument("--store", action="store_true", help="write the JSON to docs/benchmarks/")
    return options


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows in aligned columns; floats with three digits.

    Examples
    --------
    >>> print_table(("arm", "ms"), [("dense", 60.123), ("ours", 20)])
    arm    ms
    dense  60.1
    ours   20
    """
    text = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *text, strict=True)]
    for row in [list(columns), *text]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def finish(
    benchmark: str,
    *,
    ratio: float,
    goal: float | None,
    limit: float | None,
    ours: float,
    peer: float,
    unit: str,
    store: bool = False,
    **detail: Any,
) -> dict[str, Any]:
    """Print the benchmark's result as the last line, in JSON, and store it when asked.

    Parameters
    ----------
    benchmark : str
        Name of the script's question; the file name under ``docs/benchmarks``.
    ratio : float
        How many times better ours is than the peer.
    goal : float or None
        The ratio we set out to reach.
    limit : float or None
        The ratio (or the measure in ``unit``) that physics allows, measured in the same run.
    ours, peer : float
        The measures themselves.
    unit : str
        Their unit, such as ``"ms/token"``.
    store : bool, default: False
        Also write ``docs/benchmarks/<benchmark>.json``.
    **detail
        More numbers worth keeping.

    Returns
    -------
    dict
        What was printed.
    """
    line: dict[str, Any] = {
        "benchmark": benchmark,
        "ratio": ratio,
        "goal": goal,
        "limit": limit,
        "ours": ours,
        "peer": peer,
        "unit": unit,
        **detail,
        "machine": machine(),
    }
    line = _rounded(line)
    if store:
        STORE.mkdir(parents=True, exist_ok=True)
        (STORE / f"{benchmark}.json").write_text(json.dumps(line, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(line))
    return line


def _rounded(value: Any) -> Any:
    """Four significant digits: more is noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
