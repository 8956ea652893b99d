"""Every test runs offline, on one thread, with shapes and types of every weightsmith call checked."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

sys.path.insert(0, str(Path(__file__).parent))

# every module but the compiled kernels: numba compiles, and caches, plain functions
source = Path(__file__).parents[1] / "src"
install_import_hook(
    [
        ".".join(file.relative_to(source).with_suffix("").parts)
        for file in source.rglob("*.py")
        if "kernels" not in file.parts and file.name != "__init__.py"
    ]
    + ["weightsmith.embedded"],
    "typecheck.check",
)
