"""The check for machines with a GPU runs to its end on the CPU, so that only the device is new there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu" / "check.py"


@pytest.mark.slow
def test_a_dry_run_measures_every_section():
    command = [sys.executable, str(SCRIPT), "--dry"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert not [name for name, section in report.items() if "error" in section]
    assert report["sparse decode"]["deterministic"]
    assert report["pruning"]["sparsegpt"]["sparsity"] == report["pruning"]["dsnot"]["sparsity"] == 0.5
    assert {"tests", "zoo", "diffusion", "training steps", "machine"} <= set(report)
