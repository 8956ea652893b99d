"""LIFT as one call: fine-tune a model's principal weights on samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from weightsmith.adapt._lift.delta import SparseDelta
from weightsmith.adapt._lift.groups import budget, lift_groups
from weightsmith.adapt._lift.optimizer import LIFTAdamW
from weightsmith.core.data import Samples
from weightsmith.core.results import Result, record
from weightsmith.core.training import draw_seed, fit

__all__ = ["lift"]


def lift(
    model: nn.Module,
    training: Samples,
    *,
    density: float = 0.05,
    lora_rank: int | None = None,
    approx_rank: int | None = None,
    update_interval: int | None = 200,
    niter: int | None = None,
    learning_rate: float = 2e-4,
    epochs: int = 1,
    batch_size: int = 8,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = ("lm_head",),
    generator: torch.Generator | None = None,
) -> Result:
    """Fine-tune a model's principal weights (LIFT) with a linear schedule and 3 % warm-up.

    Parameters
    ----------
    model : nn.Module
        Any model that computes its loss from a sample; changed in place, its structure is not.
    training : sequence of samples
        Mappings of 1-D tensors, such as ``{"input_ids": ...}``.
    density : float, default: 0.05
        Share of each matrix that is trained, in (0, 1].
    lora_rank : int, optional
        Instead of ``density``: train as many weights as LoRA of this rank would.
    approx_rank : int, optional
        Rank of the approximation that says which weights are principal; 64, or half of the shorter side if that is
        less, by default.
    update_interval : int or None, default: 200
        Steps from one choice of the weights to the next; None keeps the first choice.
    niter : int, optional
        Power iterations of a randomised approximation; exact for shorter sides up to 1024 by default.
    learning_rate : float, default: 2e-4
        Two to four times that of full fine-tuning.
    epochs : int, default: 1
        Passes over the samples.
    batch_size : int, default: 8
        Samples a step.
    include, exclude : str or sequence of str
        Shell patterns on layer names.
    generator : torch.Generator, optional
        Of the order of the samples, dropout and the randomised approximation.

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
        If a weight is quantised or sharded.

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
    seed = draw_seed(generator)
    hyper = {
        "density": density if lora_rank is None else None,
        "lora_rank": lora_rank,
        "approx_rank": approx_rank,
        "update_interval": update_interval,
        "niter": niter,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "batch_size": batch_size,
        "include": include,
        "exclude": exclude,
    }
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        groups = lift_groups(model, density, approx_rank, lora_rank=lora_rank, include=include, exclude=exclude)
        named = dict(groups[0]["params"])
        optimizer = LIFTAdamW(groups, learning_rate, update_interval=update_interval, niter=niter, generator=generator)
        base = {name: weight.detach().clone() for name, weight in named.items()}
        with record("lift", seed=seed, **hyper) as result:
            try:
                run = fit(
                    model,
                    training,
                    optimizer=optimizer,
                    scheduler="linear",
                    warmup=0.03,
                    epochs=epochs,
                    batch_size=batch_size,
                    seed=seed,
                )
            except BaseException:
                for name, weight in named.items():
                    weight.data.copy_(base[name])
                raise
            delta = SparseDelta.between(base, named)
            for name, weight in named.items():
                result.layer(
                    name.removesuffix(".weight"),
                    trainable=budget(weight, optimizer.param_groups[0]),
                    changed=len(delta.parts[name].index),
                    relative_change=float((weight.detach() - base[name]).float().norm() / base[name].float().norm()),
                )
            result.curves["training loss"] = run.losses
            result.totals = {
                "trainable": optimizer.trained(),
                "changed": sum(row["changed"] for row in result.layers),
                "delta_bytes": delta.nbytes,
            }
        return result
    finally:
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)
