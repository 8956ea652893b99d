"""LIFT as one call: fine-tune a model's principal weights on samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import nn

from weightsmith.adapt._lift.groups import budget, check_ranges, lift_groups
from weightsmith.adapt._lift.optimizer import LIFTAdamW
from weightsmith.core.data import Samples
from weightsmith.core.io import SparseDelta
from weightsmith.core.models import VOCABULARY_HEADS, find_matrices, unreached
from weightsmith.core.results import Result, record
from weightsmith.core.training import (
    FitOptions,
    draw_seed,
    fit,
    refuse_adapters,
    requires_grad_restored,
    seed_of,
    training_method,
)

__all__ = ["lift"]


@training_method(learning_rate=2e-4, batch_size=8, scheduler="linear", warmup=0.03)
def lift(
    model: nn.Module,
    training: Samples,
    *,
    density: float = 0.05,
    lora_rank: int | None = None,
    approx_rank: int | None = None,
    update_interval: int | None = 200,
    niter: int | None = None,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = VOCABULARY_HEADS,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Fine-tune the principal weights of a model (LIFT).

    Parameters
    ----------
    model : nn.Module
        Any model that computes its loss from a sample. Its weights change in place.
    training : sequence of samples
        Mappings of 1-D tensors, such as ``{"input_ids": ...}``.
    density : float, default: 0.05
        Share of each matrix that is trained, in (0, 1].
    lora_rank : int, optional
        Instead of ``density``: train as many weights as LoRA of this rank would.
    approx_rank : int, optional
        Rank of the approximation that decides which weights are principal; by default 64, or half of the shorter side
        if that is less.
    update_interval : int or None, default: 200
        Steps from one choice of the weights to the next; None keeps the first choice.
    niter : int, optional
        Power iterations of a randomized approximation; by default exact for shorter sides up to 1024.
    include, exclude : str or sequence of str
        Shell patterns on layer names.
    generator : torch.Generator, optional
        Draws the order of the samples, dropout and the randomized approximation.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The optimizer is
        :class:`weightsmith.adapt.LIFTAdamW`; its learning rate is two to four times that of full fine-tuning.

    Returns
    -------
    Result
        Per layer: ``trainable`` weights, ``changed`` weights (more, where the choice moved) and ``relative_change``,
        the norm of the change over that of the weight. In total also ``delta_bytes``, the size of the sparse delta.

    Raises
    ------
    CalibrationError
        If there are no samples.
    HyperparameterError
        If a hyper-parameter is out of range.
    LayerNotFoundError
        If no layer matches.
    NonFiniteError
        If a weight or the loss is not finite.
    UnsupportedModelError
        If a weight is quantized or sharded; :class:`weightsmith.adapt.LIFTAdamW` trains sharded ones.

    References
    ----------
    Liu, Pang, Balabanov, et al., arXiv 2506.00772.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    ...                      num_attention_heads=2, num_key_value_heads=2)
    >>> samples = [{"input_ids": torch.arange(16) % (n + 2)} for n in range(8)]
    >>> result = lift(LlamaForCausalLM(config), samples, density=0.05)
    >>> result.totals["trainable"], result.totals["changed"]
    (1020, 1020)
    """
    hyper = {
        "density": density if lora_rank is None else None,
        "lora_rank": lora_rank,
        "approx_rank": approx_rank,
        "update_interval": update_interval,
        "niter": niter,
        "include": include,
        "exclude": exclude,
    }
    check_ranges(hyper)
    refuse_adapters(model)
    seed = draw_seed(generator)
    with record("lift", seed=seed_of(generator), **hyper, **options) as result, requires_grad_restored(model):
        groups = lift_groups(model, density, approx_rank, lora_rank=lora_rank, include=include, exclude=exclude)
        named = {name: weight for group in groups for name, weight in group["params"]}
        optimizer = LIFTAdamW(
            groups,
            options["learning_rate"],
            weight_decay=options["weight_decay"],
            update_interval=update_interval,
            niter=niter,
            generator=generator,
        )
        base = {name: weight.detach().clone() for name, weight in named.items()}
        run = fit(model, training, optimizer=optimizer, seed=seed, **options)
        delta = SparseDelta.between(base, named)
        group_of = {name: group for group in optimizer.param_groups for name in group["param_names"]}
        for name, weight in named.items():
            result.layer(
                name.removesuffix(".weight"),
                trainable=budget(weight, group_of[name]),
                changed=len(delta.parts[name].index),
                relative_change=float(
                    (weight.detach() - base[name]).float().norm() / base[name].float().norm().clamp_min(1e-12)
                ),
            )
        result.notes += unreached(model, find_matrices(model))
        result.curves["training loss"] = run.losses
        result.totals = {
            "trainable": optimizer.trained(),
            "changed": sum(row["changed"] for row in result.layers),
            "delta_bytes": delta.nbytes,
        }
    return result
