"""Shapes and types of every weightsmith call are checked."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)  # time depends on what else runs
settings.load_profile("repeatable")
collect_ignore = ["typecheck.py"]

SOURCE = Path(__file__).parents[1] / "src"


UNCHECKED = {"kernels", "dictionary", "estimator.py"}


def has_unchecked(folder: Path) -> bool:
    """Whether there are modules below a package that must not be checked."""
    return any(any(folder.rglob(name)) for name in UNCHECKED)


def checked_modules() -> list[str]:
    """Every module but the compiled kernels and the estimators.

    Numba compiles, and caches, plain functions; scikit-learn has estimators take anything and check it in ``fit``.

    A package's name stands for all below it, so one with kernels below is named module by module.
    """
    files = [file for file in SOURCE.rglob("*.py") if not UNCHECKED & {*file.parts}]
    whole = [file for file in files if file.name != "__init__.py" or not has_unchecked(file.parent)]
    return [".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__") for file in whole]


sys.path.insert(0, str(Path(__file__).parent))
from typecheck import check_calls_of  # noqa: E402 - found by the line above

check_calls_of(checked_modules())
