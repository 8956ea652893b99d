r"""Train a TopK sparse autoencoder on activations of a language model.

Makhzani and Frey, "k-Sparse Autoencoders", arXiv 1312.5663; Gao et al., "Scaling and evaluating sparse autoencoders",
arXiv 2406.04093. With the k largest coefficients of each activation,

.. math:: \mathbb E \|x - \hat x\|^2, \quad f = \mathrm{TopK}(x W_{enc} + b_{enc}),\ \hat x = f W_{dec} + b_{dec}.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from weightsmith.analyze import (
    Site,
    TopKSAE,
    collect_activations,
    collect_token_activations,
    find_sites,
    ioi_task,
    save_sae,
)
from weightsmith.core.data import Samples
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.io import atomic_output, check_output
from weightsmith.core.linalg import is_finite, upcast
from weightsmith.core.outputs import writes
from weightsmith.core.results import Result, documents, record
from weightsmith.core.training import Fit, FitOptions, check_options, draw_seed, fit, seed_of, training_method
from weightsmith.embedded import open_model

__all__ = ["topk_sae", "train_sae"]


@writes("a sparse autoencoder")
def topk_sae(
    model: Path,
    out: Path,
    *,
    site: str = "auto",
    training: Samples | None = None,
    k: int = 16,
    features: int = 512,
    prompts: int = 1024,
    names: int = 32,
    checkpoints: int = 0,
    overwrite: bool = False,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Train a TopK sparse autoencoder on the activations of a language model, saved as SAELens does.

    Parameters
    ----------
    model : path
        Folder of a causal language model, or ``embedded:NAME``.
    out : path
        Folder for the autoencoder: ``cfg.json`` and ``sae_weights.safetensors``, with a card and a record.
    site : str, default: "auto"
        Such as ``23.resid@end`` or ``9.z.6@end``, see :func:`~weightsmith.analyze.sae_eval`; ``auto`` is the first
        block output that carries the answer of indirect object identification.
    training : Samples, optional
        Text whose tokens are learned from, without start tokens and padding; by default prompts of indirect object
        identification, at the site's token.
    k : int, default: 16
        Active features per activation.
    features : int, default: 512
        Features of the dictionary.
    prompts, names : int
        Number of prompts, and of names in them, where no text is given.
    checkpoints : int, default: 0
        How many unfinished autoencoders are saved in ``out`` on the way, as ``step-N``.
    overwrite : bool, default: False
        Replace what is at ``out``.
    generator : torch.Generator, optional
        Draws the prompts, the initial weights and the order; seed 0 by default.
    **options
        See :class:`~weightsmith.core.training.FitOptions`.

    Returns
    -------
    Result
        The explained share of the variance, active and dead features, and the training loss.

    Raises
    ------
    CalibrationError
        If there are fewer than two activations, or all are equal.
    CheckpointError
        If the model cannot be read, or ``out`` cannot be written.
    HyperparameterError
        If an option is out of range.

    Examples
    --------
    >>> import tempfile
    >>> from weightsmith.embedded import folder
    >>> small = {"prompts": 64, "features": 32, "epochs": 9}
    >>> with tempfile.TemporaryDirectory() as out:
    ...     result = topk_sae(folder("smollm2"), Path(out) / "sae", site="2.resid@end", **small)
    ...     sorted(file.name for file in (Path(out) / "sae").iterdir())
    ['README.md', 'cfg.json', 'sae_weights.safetensors', 'weightsmith.json']
    """
    check_options(options)
    for name, value, least in (("features", features, 1), ("k", k, 1), ("prompts", prompts, 1), ("names", names, 8),
                               ("checkpoints", checkpoints, 0)):  # fmt: skip
        if value < least:
            raise HyperparameterError(name, found=value, expected=f">= {least}")
    if k > features:
        raise HyperparameterError("k", found=k, expected=f"from 1 to the {features} features of the dictionary")
    given = None if site == "auto" else Site.parse(site)
    check_output(out, overwrite=overwrite)
    seed = draw_seed(generator)
    opened = open_model(model)
    if given is None or training is None:
        task = ioi_task(opened.tokenizer, count=names, train_prompts=prompts, seed=seed)
    place = given or find_sites(opened.model, task)[0]
    hyper: dict[str, Any] = {"site": str(place), "k": k, "features": features, "prompts": prompts, "names": names}
    hyper |= {"checkpoints": checkpoints, **options}
    with record("topk-sae", seed=seed_of(generator), **hyper) as result:
        if training is None:
            a_BD = collect_activations(opened.model, task.train, [place])[place]
        else:
            a_BD = collect_token_activations(opened.model, training, place)
        sae = TopKSAE(a_BD.shape[1], features, k=k)
        halfway: dict[int, TopKSAE] = {}
        run = train_sae(sae, a_BD, seed=seed, checkpoints=checkpoints, checkpoint=halfway.__setitem__, **options)
        sae.requires_grad_(False)
        active_BJ = sae.encode(a_BD) > 0
        error = (sae(a_BD) - a_BD).square().sum() / (a_BD - a_BD.mean(0)).square().sum()
        result.layer(
            str(place),
            activations=len(a_BD),
            variance_explained=1 - float(error),
            active_features=float(active_BJ.float().sum(1).mean()),
            dead_share=1 - float(active_BJ.any(0).float().mean()),
        )
        result.curves["training loss"] = run.losses
        about = {"model_name": Path(model).name, "hook_name": str(place), **hyper}
        with atomic_output(out, overwrite=overwrite) as target:
            save_sae(sae, target, metadata=about)
            for step, each in halfway.items():
                save_sae(each, target / f"step-{step}", metadata={**about, "step": step})
            for name, text in documents([result], out, [model]).items():
                (target / name).write_text(text, "utf-8")
    return result


@training_method(epochs=200, batch_size=256)
def train_sae(
    sae: TopKSAE,
    activations: Float[Tensor, "B D"],
    *,
    seed: int = 0,
    checkpoints: int = 0,
    checkpoint: Callable[[int, TopKSAE], None] | None = None,
    **options: Unpack[FitOptions],
) -> Fit:
    r"""Initialize and train a TopK sparse autoencoder in place.

    It learns from activations of mean norm :math:`\sqrt{features}`; the scale is folded into its weights at the end.

    Parameters
    ----------
    sae : TopKSAE
        The autoencoder.
    activations : Tensor of shape (rows, features)
        At least two, not all equal.
    seed : int, default: 0
        Of the initial weights and the order.
    checkpoints : int, default: 0
        How often ``checkpoint`` is called before the end, evenly spaced; below the number of steps.
    checkpoint : callable, optional
        ``checkpoint(step, copy)`` with a copy that works on its own: its scale is folded.
    **options
        See :class:`~weightsmith.core.training.FitOptions`.

    Returns
    -------
    Fit
        Losses: the mean squared distance of scaled activations and their reconstructions.

    Raises
    ------
    CalibrationError
        If there are fewer than two activations, or all are equal.
    HyperparameterError
        If an option is out of range.
    NonFiniteError
        If an activation is NaN or infinite.
    ShapeError
        If the activations have another number of features than the autoencoder.

    Examples
    --------
    >>> rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    >>> sae = TopKSAE(4, 8, k=2)
    >>> run = train_sae(sae, rows, epochs=50, batch_size=32, learning_rate=1e-2)
    >>> run.losses[-1] < run.losses[0] / 2
    True
    """
    if not is_finite(activations):
        raise NonFiniteError("the activations hold NaN or infinity")
    if activations.shape[1] != sae.d_in:
        raise ShapeError("features of the activations", found=activations.shape[1], expected=sae.d_in)
    if len(activations) < 2 or bool((activations == activations[0]).all()):
        raise CalibrationError("activations", found=f"{len(activations)}, all equal", expected="different ones")
    scale = math.sqrt(activations.shape[1]) / float(upcast(activations).norm(dim=1).mean())
    rows: Any = _Rows((upcast(activations) * scale).to(sae.W_dec.dtype))
    draw = torch.Generator().manual_seed(seed)
    loader = DataLoader(rows, options["batch_size"], shuffle=True, generator=draw, collate_fn=lambda batch: batch)
    total = math.ceil(len(loader) / options["accumulation_steps"]) * options["epochs"]
    if not 0 <= checkpoints < total:
        raise HyperparameterError("checkpoints", found=checkpoints, expected=f"from 0 to {total - 1}, below the steps")
    steps = {number * total // (checkpoints + 1) for number in range(1, checkpoints + 1)}
    with torch.no_grad():
        start_JD = torch.randn(sae.W_dec.shape, generator=draw).to(sae.W_dec)
        start_JD /= start_JD.norm(dim=1, keepdim=True)
        sae.W_dec.copy_(start_JD)
        sae.W_enc.copy_(start_JD.T)
        # biases start at zero: from the mean more features stay alive and explain more, but edits need more of them
        sae.b_enc.zero_()
        sae.b_dec.zero_()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (sae(batch) - batch).square().sum(1).mean()

    def after_step(step: int, value: float) -> None:
        if checkpoint is not None and step in steps:
            made = copy.deepcopy(sae)
            made.fold_scale(scale)
            checkpoint(step, made)

    run = fit(sae, loader, loss=loss, seed=seed, after_step=after_step, **options)
    sae.fold_scale(scale)
    return run


class _Rows(Dataset[Tensor]):
    """A batch is one index into the tensor."""

    def __init__(self, rows_BD: Tensor) -> None:
        self.rows_BD = rows_BD

    def __len__(self) -> int:
        return len(self.rows_BD)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows_BD[index]

    def __getitems__(self, indices: list[int]) -> Tensor:
        return self.rows_BD[indices]


topk_sae.fit_defaults = train_sae.fit_defaults  # type: ignore[attr-defined]
