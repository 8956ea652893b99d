"""Scripts in processes of their own, without the tests' type checks: one, or two that train together."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "torch.distributed.fsdp",
        "sklearn.base",
        "transformers.trainer_utils",
        "weightsmith.testing",
        "weightsmith.core.training",
    ]
)
"""Imports once what is slow to import; every script runs in a fork of it."""

BARRIER = "\nimport torch.distributed\ntorch.distributed.barrier()\n"
LEAVE = "import os, sys\nsys.stdout.flush()\nos._exit(0)\n"


def _execute(script: str, arguments: list[str], environment: dict[str, str], output: Path) -> None:
    """Execute ``script`` in this process; what it prints goes to the file ``output``."""
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    code = 1
    with open(output, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            exec(compile(script, "script", "exec"), {"__name__": "__main__"})
            code = 0
        except BaseException:
            traceback.print_exc()
    os._exit(code)  # threads of a process group may want the interpreter while it is taken down, and abort then


def apart(script: str, folder: Path, *arguments: object, processes: int = 1) -> str:
    """Run ``script`` in a process of its own, or the same one in several, and return what they print.

    Several find the environment variables of torchrun, with which they can join into a group.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    group |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    outputs, workers = [folder / f"printed-{rank}.txt" for rank in range(processes)], []
    for rank, output in enumerate(outputs):
        environment = group | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) if processes > 1 else {}
        task = (textwrap.dedent(script), [*map(str, arguments)], environment, output)
        workers.append(_server.Process(target=_execute, args=task, daemon=True))
        workers[-1].start()
    for worker in workers:
        worker.join(timeout=300)
    printed = "".join(output.read_text() for output in outputs)
    assert all(worker.exitcode == 0 for worker in workers), printed
    return printed


def two_processes(script: str, folder: Path, *arguments: object) -> str:
    """Run ``script`` in two processes, which it joins into a group, and return what they print."""
    return apart(textwrap.dedent(script) + BARRIER, folder, *arguments, processes=2)


def torchrun(script: str, folder: Path, *arguments: object) -> str:
    """Do what :func:`two_processes` does, by torchrun."""
    path = folder / "worker.py"
    path.write_text(textwrap.dedent(script) + BARRIER + LEAVE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(path)]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
