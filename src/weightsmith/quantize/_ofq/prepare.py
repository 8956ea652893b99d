"""Put fake quantization into a model, initialize it from data, and make the weights plain again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from weightsmith.core.choices import check_choice
from weightsmith.core.data import Batches, as_batches, to_model
from weightsmith.core.errors import CheckpointError, HyperparameterError, UnsupportedModelError
from weightsmith.core.levels import ActivationLevels, Quantization, WeightLevels, check_bits
from weightsmith.core.models import (
    Layer,
    StreamMasks,
    call_checked,
    device_of,
    find_blocks,
    fold_parametrizations,
    get_module,
    own_weights,
    quiet,
    swap_module,
    token_masks,
    without_fast_path,
)
from weightsmith.core.training import restored_on_error
from weightsmith.quantize._ofq.activations import QUANTIZED, ActivationQuantizer, Granularity, quantizers
from weightsmith.quantize._ofq.annealing import fake_quantized
from weightsmith.quantize._ofq.attention import QuantizedAttention, attentions, refusal
from weightsmith.quantize._ofq.weights import LSQWeight, QuantizedWeight, StatsQ

__all__ = [
    "Weights",
    "apply_quantization",
    "finish_qat",
    "initialize_activations",
    "parameter_groups",
    "prepare_qat",
    "quantizable",
]

EDGE_BITS = 8
"""Of stems and heads."""

Weights: TypeAlias = Literal["statsq", "lsq"]


def prepare_qat(
    model: nn.Module,
    *,
    weight_bits: int = 2,
    activation_bits: int | None = 2,
    weights: Weights = "statsq",
    joint_query_key: bool | None = None,
    granularity: Granularity = "tensor",
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
) -> list[Layer]:
    """Put fake quantization into a model, to be trained by any trainer.

    Layers outside the repeated blocks (patch embedding, head), or the first and the last of a plain stack, get eight
    bits with learned steps.

    Parameters
    ----------
    model : nn.Module
        Changed in place. Make the optimizer afterwards.
    weight_bits : int, default: 2
        Bits of the weights of the blocks, 2 to 8.
    activation_bits : int or None, default: 2
        Bits of their inputs; None leaves activations alone. With bits, call :func:`initialize_activations` before
        training.
    weights : {"statsq", "lsq"}, default: "statsq"
        The parametrization of the weights, :class:`StatsQ` or :class:`LSQWeight`.
    joint_query_key : bool, optional
        Quantize the product of query and key weights of each head (query-key reparameterization). By default wherever
        the attention allows it: ViT, DeiT, BERT and RoBERTa.
    granularity : {"tensor", "token"}, default: "tensor"
        One step per tensor of activations, or one per position, which fixes the length of sequences (the reference).
    include, exclude : str or sequence of str
        Patterns on the paths of layers.

    Returns
    -------
    list of Layer
        The layers with quantized weights.

    Raises
    ------
    HyperparameterError
        If an option is out of range.
    NonFiniteError
        If a weight is NaN or infinite.
    UnsupportedModelError
        If no layer can be quantized, or ``joint_query_key`` is asked of attention that does not allow it.

    References
    ----------
    Liu, Liu, Cheng 2023, arXiv 2302.02210.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> [layer.name for layer in prepare_qat(model)]
    ['0', '2', '4']
    >>> initialize_activations(model, [torch.randn(16, 4)])
    []
    >>> model(torch.randn(3, 4)).shape, len(model[2].weight.unique(dim=None)) <= 8 * 4
    (torch.Size([3, 2]), True)
    """
    weight_bits = check_bits("weight_bits", weight_bits)
    if activation_bits is not None:
        activation_bits = check_bits("activation_bits", activation_bits)
    check_choice("weights", weights, Weights)
    check_choice("granularity", granularity, Granularity)
    layers = quantizable(model, include, exclude)
    found = [*attentions(model)]
    chosen = {name for name, module in found if refusal(module) is None}
    if joint_query_key:
        for name, module in found:
            if reason := refusal(module):
                raise UnsupportedModelError(
                    f"joint query-key weights of {name!r}", found=reason, do="Leave joint_query_key out."
                )
        if not found:
            raise HyperparameterError("joint_query_key", found="a model without attention", expected="None or False")
    joint_bits = None if joint_query_key is False else weight_bits
    if activation_bits is None:
        if joint_query_key:
            raise HyperparameterError("joint_query_key", found="no activation_bits", expected="both, or neither")
        chosen = set()
    names = {layer.name for layer in layers}
    chosen = {name for name in chosen if _projections(model, name) <= names}
    edges = _edges(model, layers)
    with restored_on_error(model, values=False):
        without_fast_path(model)
        for name in chosen:
            assert activation_bits is not None
            attention = QuantizedAttention(get_module(model, name), activation_bits, joint_bits, granularity)
            swap_module(model, name, attention.to(layers[0].weight.device))
        latent = {name for at in chosen for name in _projections(model, at)}
        joint = {name for name in latent if joint_bits is not None and not name.endswith(("v_proj", "value"))}
        for layer in layers:
            bits = EDGE_BITS if layer.name in edges else weight_bits
            if activation_bits is not None and layer.name not in latent:
                _quantize_input(layer, EDGE_BITS if layer.name in edges else activation_bits, granularity)
            if layer.name not in joint:
                learned = weights == "lsq" or layer.name in edges
                _quantize_weight(layer, bits, learned=learned)
    return layers


def quantizable(model: nn.Module, include: str | Sequence[str] = "*", exclude: str | Sequence[str] = ()) -> list[Layer]:
    """Find the layers whose weights, and inputs, can be fake-quantized.

    Raises
    ------
    UnsupportedModelError
        If there are none, or activations are quantized already.
    """
    if quantizers(model):
        raise UnsupportedModelError(
            "the model's activations are quantized already", do="Load it with from_pretrained, as a plain model."
        )
    layers, _ = own_weights(model, include, exclude)
    layers = [layer for layer in layers if type(layer.module) in QUANTIZED and layer.expert is None]
    if not layers:
        raise UnsupportedModelError("no layer to quantize", do="Check include and exclude.")
    return layers


@torch.no_grad()
def initialize_activations(model: nn.Module, batches: Batches) -> list[str]:
    """Run data through a model, and initialize the steps of its activations from their mean magnitudes.

    Parameters
    ----------
    model : nn.Module
        As :func:`prepare_qat` left it.
    batches : sequence of Batch
        The first batch of the training data is enough. Padding does not count. Several processes add up, each with
        batches of its own.

    Returns
    -------
    list of str
        Layers that no data reached: their inputs are no longer quantized.

    Raises
    ------
    CalibrationError
        If there are no batches, or the model rejects one.
    NonFiniteError
        If an activation is NaN or infinite.
    """
    found = quantizers(model)
    with quiet(model), StreamMasks(model, find_blocks(model)) as masks, ExitStack() as observed:
        for quantizer in found.values():
            observed.enter_context(quantizer.observing(lambda x: masks.now.of(x)))
        for index, batch in enumerate(as_batches(batches)):
            placed = _decoder_masked(to_model(batch, model), model)
            masks.start(token_masks(placed))
            call_checked(model, placed, index)
    unreached = [name for name, quantizer in found.items() if not quantizer.step.ndim]
    for name in unreached:
        swap_module(model, name, nn.Identity())
    return unreached


def finish_qat(model: nn.Module) -> Quantization:
    """Make the weights plain ones on their levels, and the activations' levels part of the model but not of its state.

    Parameters
    ----------
    model : nn.Module
        Trained. Changed in place; saved, it loads as the plain model. Joint query-key weights stay latent ones.

    Returns
    -------
    Quantization
        Everything else, to be saved beside the model and given to :func:`apply_quantization`.

    Raises
    ------
    UnsupportedModelError
        If nothing is quantized.
    """
    weights = {
        name: WeightLevels(kind.grid.bits, kind.grid.half, kind.unit(latent.detach()).tolist())
        for name, latent, kind in fake_quantized(model)
    }
    if not weights:
        raise UnsupportedModelError("nothing is quantized", do="Call prepare_qat(model) first.")
    stored = {name: kind.dtype for name, _, kind in fake_quantized(model)}
    with restored_on_error(model):
        fold_parametrizations(model, QuantizedWeight)
        for name, dtype in stored.items():
            weight = get_module(model, name).weight
            weight.data = weight.data.to(dtype)
        activations = {}
        for name, quantizer in quantizers(model).items():
            quantizer.freeze()
            activations[name] = ActivationLevels(
                quantizer.bits,
                quantizer.signed,
                quantizer.step.tolist(),
                quantizer.before.tolist() if quantizer.shifted else None,
                quantizer.after.tolist() if quantizer.shifted else None,
            )
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, QuantizedAttention)]
    return Quantization(
        weights, activations, {name: None if m.joint is None else m.joint.grid.bits for name, m in found}
    )


def apply_quantization(model: nn.Module, plan: Quantization) -> None:
    """Give a plain model with quantized weights its activations' levels back.

    Parameters
    ----------
    model : nn.Module
        As loaded from a folder. Changed in place.
    plan : Quantization
        From the same folder.

    Raises
    ------
    CheckpointError
        If the plan is of another model.
    """
    with restored_on_error(model, values=False):
        without_fast_path(model)
        try:
            for name, bits in plan.attentions.items():
                attention = QuantizedAttention(get_module(model, name), EDGE_BITS, bits, "tensor")
                swap_module(model, name, attention)
                for part in attention.quantizers:  # those that no data reached are not in the plan
                    attention.quantizers[part] = nn.Identity()
            for name, row in plan.activations.items():
                owner, _, part = name.rpartition(".")
                if part == "input_quantizer":
                    _become_quantized(get_module(model, owner))
                get_module(model, owner)._modules[part] = _restored(row).to(device_of(model))
        except (KeyError, AttributeError, TypeError) as error:
            raise CheckpointError("quantization of another model", found=error) from error


def parameter_groups(model: nn.Module, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Group the parameters for an optimizer: steps, shifts, biases and norms do not decay."""
    own = {
        id(p) for m in model.modules() if isinstance(m, (ActivationQuantizer, LSQWeight)) for p in m.parameters(False)
    }
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (free if parameter.ndim < 2 or id(parameter) in own else decayed).append(parameter)
    groups = [
        {"params": decayed, "lr": lr, "weight_decay": weight_decay},
        {"params": free, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _decoder_masked(batch: Any, model: nn.Module) -> Any:
    """A batch that tells an encoder-decoder which of the tokens it reads have a label."""
    config = getattr(model, "config", None)
    if not getattr(config, "is_encoder_decoder", False) or not isinstance(batch, Mapping) or "labels" not in batch:
        return batch
    return {"decoder_attention_mask": (batch["labels"] != -100).long(), **batch}


def _restored(row: ActivationLevels) -> ActivationQuantizer:
    step = torch.tensor(row.step)
    shape = () if row.before is None else torch.tensor(row.before).shape
    quantizer = ActivationQuantizer(row.bits, shape, "token" if step.ndim == 2 else "tensor")
    quantizer.is_signed.fill_(row.signed)
    quantizer.step = nn.Parameter(step)
    if row.before is not None:
        quantizer.before, quantizer.after = (nn.Parameter(torch.tensor(v)) for v in (row.before, row.after))
    quantizer.freeze()
    return quantizer.eval()


def _quantize_input(layer: Layer, bits: int, granularity: Granularity) -> None:
    module: Any = layer.module
    if isinstance(module, (nn.Linear, Conv1D)):
        features: tuple[int, ...] = (layer.weight_OI.shape[1],)
    else:
        # the reference learns a shift per pixel of an image; one per channel holds for images of any size
        features = (module.in_channels, *(1 for _ in module.kernel_size))
        granularity = "tensor"
    _become_quantized(module)
    module.input_quantizer = ActivationQuantizer(bits, features, granularity).to(layer.weight.device)
    module.input_quantizer.train(module.training)


def _become_quantized(module: nn.Module) -> None:
    module.__class__ = QUANTIZED[type(module)]


def _quantize_weight(layer: Layer, bits: int, *, learned: bool) -> None:
    transposed = isinstance(layer.module, Conv1D)
    kind: QuantizedWeight
    kind = LSQWeight(layer.weight, bits, transposed=transposed) if learned else StatsQ(bits, transposed=transposed)
    parametrize.register_parametrization(layer.module, "weight", kind.to(layer.weight.device))


def _projections(model: nn.Module, attention: str) -> set[str]:
    module = get_module(model, attention)
    names = ("q_proj", "k_proj", "v_proj") if hasattr(module, "q_proj") else ("query", "key", "value")
    return {f"{attention}.{name}" for name in names}


def _edges(model: nn.Module, layers: Sequence[Layer]) -> set[str]:
    """The layers outside the repeated blocks; of a plain stack of three or more layers the first and the last."""
    if any(isinstance(module, nn.ModuleList) for module in model.modules()):
        inside = tuple(f"{name}." for name in find_blocks(model))
        return {layer.name for layer in layers if not f"{layer.name}.".startswith(inside)}
    return {layers[0].name, layers[-1].name} if len(layers) > 2 else set()
