"""Every test runs offline, on one thread, with shapes and types of every weightsmith call checked."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("no clock", deadline=None)  # how long an example takes depends on what else runs
settings.load_profile("no clock")

SOURCE = Path(__file__).parents[1] / "src"


def checked_modules() -> list[str]:
    """Every module but the compiled kernels, since numba compiles, and caches, plain functions.

    A package's name stands for all below it, so one with kernels below is named module by module.
    """
    files = [file for file in SOURCE.rglob("*.py") if "kernels" not in file.parts]
    whole = [file for file in files if file.name != "__init__.py" or not any(file.parent.rglob("kernels"))]
    return [".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__") for file in whole]


sys.path.insert(0, str(Path(__file__).parent))
install_import_hook(checked_modules(), "typecheck.check")
