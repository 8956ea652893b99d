"""Bone as one call: fine-tune a model with Bone adapters and merge them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack

import torch
from peft import get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from torch.nn.utils import parameters_to_vector

from weightsmith.adapt._bone.config import BoneConfig
from weightsmith.adapt._bone.tuner import BoneLinear
from weightsmith.core.choices import check_choice
from weightsmith.core.data import Samples
from weightsmith.core.models import Layer, get_module, unreached
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

__all__ = ["bone"]

Variant = Literal["bat", "bat-row", "miss"]
"""Without ``mini``, which has a second size: it is for :class:`BoneConfig`."""


@training_method(learning_rate=2e-5, batch_size=8, scheduler="cosine")
def bone(
    model: nn.Module,
    training: Samples,
    *,
    r: int = 64,
    variant: Variant = "bat",
    targets: str | Sequence[str] = "all-linear",
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Fine-tune a model with Bone adapters and merge them into its weights.

    Parameters
    ----------
    model : nn.Module
        The model; changed in place. Only the weights of the adapted layers change, not their biases; and the head of a
        Hugging Face classifier, which is trained whole.
    training : sequence of samples
        Mappings such as ``{"input_ids": LongTensor[L]}``, with ``"labels"`` where they are not the inputs.
    r : int, default: 64
        Side of a block: a layer gets ``out * r`` trainable numbers (``in * r`` with ``"bat-row"``).
    variant : {"bat", "bat-row", "miss"}, default: "bat"
        How the blocks change a weight, see :class:`weightsmith.adapt.BoneConfig`.
    targets : str or sequence of str, default: "all-linear"
        Endings of layer names, such as ``"q_proj"``, or all linear layers but the output layer.
    generator : torch.Generator, optional
        Draws the order of the samples.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The optimizer is AdamW.

    Returns
    -------
    Result
        Per layer: ``trainable`` numbers and ``relative_change`` of the weight's norm; in total also the loss curve.

    Raises
    ------
    HyperparameterError
        If a number is out of range.
    LayerNotFoundError
        If no layer matches ``targets``.
    NonFiniteError
        If the loss or the adapter becomes NaN or infinite.
    ShapeError
        If ``r`` does not fit a layer.
    UnsupportedModelError
        If a target is no matrix, or shares its weight with another layer.

    References
    ----------
    Kang, arXiv 2409.15371.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=32))
    >>> result = bone(model, [{"input_ids": torch.arange(8)}] * 4, r=8, learning_rate=1e-3)
    >>> result.totals["trainable"], type(model.model.layers[0].self_attn.q_proj).__name__
    (1152, 'Linear')
    """
    check_choice("variant", variant, Variant)
    refuse_adapters(model)
    seed = draw_seed(generator)
    with (
        record("bone", seed=seed_of(generator), r=r, variant=variant, targets=targets, **options) as result,
        requires_grad_restored(model),
    ):
        endings = [targets] if isinstance(targets, str) else list(targets)
        linear = endings == ["all-linear"]
        # of a classifier the head is trained whole: blocks seldom fit its classes
        task = "SEQ_CLS" if type(model).__name__.endswith("Classification") else None
        config = BoneConfig(r=r, variant=variant, target_modules="all-linear" if linear else endings, task_type=task)
        adapted = get_peft_model(model, config)
        for module in adapted.modules():
            if isinstance(module, BoneLinear):
                module.check_mergeable(module.active_adapters)  # before the training
        run = fit(model, training, seed=seed, **options)
        changes = _changes(model)
        for name, measures in changes.items():
            result.layer(name, **measures)
        adapted.merge_and_unload()
        result.notes += unreached(model, [Layer(name, get_module(model, name)) for name in changes])
        result.totals["trainable"] = sum(row["trainable"] for row in result.layers)
        result.totals["first_loss"], result.totals["last_loss"] = run.losses[0], run.losses[-1]
        result.curves["training loss"] = run.losses
    return result


@torch.no_grad()
def _changes(model: nn.Module) -> dict[str, dict[str, float]]:
    """The number of trainable values and the relative norm of the update, per adapted layer and whole head."""
    changes = {}
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            old, new = (
                parameters_to_vector(part.parameters()).float()
                for part in (module.original_module, module.modules_to_save["default"])
            )
            changes[name] = {"trainable": len(new), "relative_change": ((new - old).norm() / old.norm()).item()}
        if isinstance(module, BoneLinear):
            weight, block = module.get_base_weight(), module.miss_block["default"]
            change = module.get_delta_weight("default", weight).norm() / weight.float().norm()
            changes[name] = {"trainable": block.numel(), "relative_change": change.item()}
    return changes
