"""Memory that was freed is kept for the next tensors."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

KEPT = """
import resource, sys, torch
from weightsmith.cli.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

tensors = [torch.ones(1 << 18) for _ in range(64)]  # a megabyte each
full = resident()
del tensors
print((full - resident()) / 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc has the parameters")
def test_freed_memory_is_not_returned_to_the_system() -> None:
    def returned(word: str) -> float:
        run = subprocess.run([sys.executable, "-c", KEPT, word], capture_output=True, text=True, check=True)
        return float(run.stdout)

    assert returned("keep") < 4
    assert returned("return") > 32
