"""Run a script in two processes that train together."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

FAREWELL = """
import os, sys
import torch.distributed
torch.distributed.barrier()
sys.stdout.flush()
os._exit(0)  # threads of the process group may want the interpreter while it is taken down, and abort then
"""


def two_processes(script: str, folder: Path, *arguments: str) -> str:
    """Run ``script`` under torchrun in two processes, which it joins into a group, and return what they print."""
    path = folder / "worker.py"
    path.write_text(textwrap.dedent(script) + FAREWELL)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*torchrun, str(path), *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
