"""Meta-train the predictors that come with weightsmith: ``python -m tools.know.train`` in the repository.

Writes ``paper.safetensors`` and ``ours.safetensors`` in about 40 minutes on one core. Everything is seeded. The digits
task of the claim takes no part (see ``paper.py`` and ``ours.py``).
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from safetensors.torch import save_file

from tools.know.ours import evolve, make_tasks
from tools.know.paper import fit_predictors, record_rows

__all__ = ["main"]

SEED = 2025
SHIPPED = Path(__file__).parents[2] / "src" / "weightsmith" / "predict" / "_know"
"""Where the package has its predictors."""


def main(arguments: list[str] | None = None) -> None:
    """Meta-train one or both predictors and write them.

    Parameters
    ----------
    arguments : list of str, optional
        Command line; ``sys.argv`` by default.
    """
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--variant", choices=("paper", "ours", "both"), default="both")
    options.add_argument("--out", type=Path, default=SHIPPED, help="folder for the files")
    options.add_argument("--runs", type=int, default=150, help="trajectories for the paper's predictor")
    options.add_argument("--networks", type=int, default=16, help="networks of each of six variants for ours")
    options.add_argument("--iterations", type=int, default=60, help="search steps for ours")
    chosen = options.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    if chosen.variant in ("ours", "both"):
        tasks = make_tasks(chosen.networks, SEED)
        rule = evolve(tasks, iterations=chosen.iterations, pairs=5, seed=SEED)
        save_file(rule.to_tensors(), chosen.out / "ours.safetensors")
    if chosen.variant in ("paper", "both"):
        predictors = fit_predictors(record_rows(chosen.runs, SEED), seed=SEED)
        tensors = {f"{kind}.{name}": t for kind, net in predictors.items() for name, t in net.state_dict().items()}
        save_file(tensors, chosen.out / "paper.safetensors")


if __name__ == "__main__":
    main()
