"""The generator from the command line: a folder of networks in, a folder of drawn networks out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from weightsmith.core.choices import check_choice
from weightsmith.core.errors import CalibrationError, HyperparameterError
from weightsmith.core.io import atomic_output
from weightsmith.core.outputs import writes
from weightsmith.core.results import Result, documents, record
from weightsmith.core.training import draw_seed, seed_of
from weightsmith.predict._d2nwg.autoencoder import WeightVAE
from weightsmith.predict._d2nwg.conditions import OrderedEncoder
from weightsmith.predict._d2nwg.diffusion import Sampler, WeightDiffusion
from weightsmith.predict._d2nwg.selection import memorisation
from weightsmith.predict._shared.members import read_support
from weightsmith.predict._zoo import WeightZoo

__all__ = ["d2nwg"]


@writes("a folder of networks")
def d2nwg(
    checkpoints: Sequence[Path],
    out: Path,
    *,
    support: Path | None = None,
    include: Sequence[str] = (),
    count: int = 10,
    latent: int = 64,
    vae_steps: int = 3000,
    steps: int = 6000,
    batch_size: int = 128,
    sampler: Sampler = "ddim",
    sampler_steps: int = 50,
    overwrite: bool = False,
    generator: torch.Generator | None = None,
) -> Result:
    """Learn from a zoo of trained networks of one architecture and draw weights for a new task.

    Parameters
    ----------
    checkpoints : sequence of one path
        The zoo: a folder of ``.safetensors`` files or checkpoint folders, each with the examples of its task in
        ``NAME.support.safetensors`` where drawing is to depend on the task, and its ``accuracy`` in
        ``NAME.metrics.json`` where members no better than guessing are to be told.
    out : path
        Folder for the drawn weights, one ``.safetensors`` a draw, and ``mean.safetensors``, their average.
    support : path, optional
        The new task's examples: a ``.safetensors`` file with ``support`` of shape (classes, examples, features).
    include : sequence of str, default: ()
        Names of the tensors to generate, a head for instance; all if empty.
    count : int, default: 10
        Weights to draw.
    latent : int, default: 64
        Numbers that stand for a network.
    vae_steps, steps : int, default: 3000 and 6000
        Training steps of the autoencoder and of the diffusion model.
    batch_size : int, default: 128
        Networks a step.
    sampler : {"ddim", "ddpm"}, default: "ddim"
        How to draw.
    sampler_steps : int, default: 50
        In how many steps.
    overwrite : bool, default: False
        Replace what is at ``out``.
    generator : torch.Generator, optional
        Of everything random; seed 0 by default.

    Returns
    -------
    Result
        How well the autoencoder reconstructs the zoo, and whether draws repeat members.

    Raises
    ------
    HyperparameterError
        If there is not one zoo, or an option is out of range.
    CalibrationError
        If examples are given for the zoo and not for the new task, or the other way round.
    CheckpointError, ShapeError, NonFiniteError
        If the zoo cannot be used; nothing is written.

    References
    ----------
    Soro, Andreis, Lee, Jeong, Chong, Hutter, Hwang. "Diffusion-Based Neural Network Weights Generation". ICLR 2025.
    arXiv:2402.18153.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     zoo = Path(folder, "zoo")
    ...     zoo.mkdir()
    ...     for number in range(6):
    ...         save_file(torch.nn.Linear(3, 2).state_dict(), zoo / f"{number}.safetensors")
    ...     result = d2nwg([zoo], Path(folder, "new"), count=2, latent=2, vae_steps=100, steps=10, batch_size=6)
    ...     sorted(path.name for path in Path(folder, "new").iterdir())
    ['0.safetensors', '1.safetensors', 'README.md', 'mean.safetensors', 'weightsmith.json']
    """
    if len(checkpoints) != 1:
        raise HyperparameterError("zoos", found=len(checkpoints), expected="one zoo")
    check_choice("sampler", sampler, Sampler)
    numbers = {
        "count": count,
        "latent": latent,
        "vae_steps": vae_steps,
        "steps": steps,
        "batch_size": batch_size,
        "sampler_steps": sampler_steps,
    }
    for number, value in numbers.items():
        if value < 1:
            raise HyperparameterError(number, found=value, expected=">= 1")
    generator = generator or torch.Generator().manual_seed(0)
    hyper: dict[str, Any] = {"support": support, "include": list(include), "sampler": sampler, **numbers}
    with record("d2nwg", seed=seed_of(generator), **hyper) as result:
        zoo = WeightZoo.from_folder(checkpoints[0], include=list(include) or None)
        task = None if support is None else read_support(support)
        if (task is None) != (zoo.support_NCSF is None):
            raise CalibrationError(
                "examples",
                found=f"of the zoo: {zoo.support_NCSF is not None}, of the new task: {task is not None}",
                do="Give both (--support, and NAME.support.safetensors beside the members) or neither.",
            )
        encoder = None
        if zoo.support_NCSF is not None:
            _, classes, shots, features = zoo.support_NCSF.shape
            encoder = OrderedEncoder(features, classes)
        with torch.random.fork_rng([]):
            torch.manual_seed(draw_seed(generator))  # of the networks' initial weights
            model = WeightDiffusion(
                zoo,
                encoder,
                vae=WeightVAE(zoo.weights_NP.shape[1], latent=latent),
                shots=5 if encoder is None else min(5, shots),
            )
        with atomic_output(out, overwrite=overwrite) as folder:
            model.fit(vae_steps=vae_steps, steps=steps, batch_size=batch_size, generator=generator)
            tasks = None if task is None else task[None]
            rows = model.sample_rows(tasks, count, sampler=sampler, steps=sampler_steps, generator=generator)
            folder.mkdir(exist_ok=True)
            for name, row in [*enumerate(rows), ("mean", rows.mean(0))]:
                state = {key: tensor.contiguous() for key, tensor in zoo.state_dict(row).items()}
                save_file({key: state[key] for key in state if key not in zoo.aliases}, folder / f"{name}.safetensors")
            near = memorisation(zoo, rows)
            result.totals = {
                "members": len(zoo),
                "weights": zoo.weights_NP.shape[1],
                "reconstruction_error": model.reconstruction_error,
                "nearest_member_ratio": near["ratio"],
            }
            result.curves = {f"loss of the {stage}": losses for stage, losses in model.losses.items()}
            if near["ratio"] < 0.1:
                result.notes.append("Draws are far nearer to members than members to each other: they repeat the zoo.")
            for name, text in documents([result], out, checkpoints).items():
                (folder / name).write_text(text, "utf-8")
    return result
