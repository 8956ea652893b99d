r"""Weight aligning: rescale the classifier rows of newly learned classes, so that old classes are not drowned out.

Zhao, Xiao, Gan, Zhang, Xia, "Maintaining Discrimination and Fairness in Class Incremental Learning", CVPR 2020, arXiv
1911.07053. Rows :math:`w_i` of the head, of the old and of the new classes:

.. math::

    \gamma = \frac{\operatorname{mean}_{i \in old} \lVert w_i \rVert}
                  {\operatorname{mean}_{i \in new} \lVert w_i \rVert},
    \qquad w_i \leftarrow \gamma\, w_i \quad (i \in new)

Legend: ``C`` classes, ``O`` old classes, ``N`` rows of a batch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from weightsmith.core.choices import check_whole
from weightsmith.core.errors import (
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.linalg import is_finite, upcast
from weightsmith.core.models import Layer, computed_by, find_layers, writable
from weightsmith.core.results import Result, record
from weightsmith.core.tied import parameter_names, tensor_owners
from weightsmith.core.training import check_finite, refuse_adapters

__all__ = [
    "align_classifier",
    "align_state_dict",
    "aligned",
    "head_weights",
    "weight_aligning",
]

Classes = Sequence[int]
"""Numbers of classes: rows of the head."""


def align_classifier(
    head: nn.Module | Tensor,
    *,
    num_old: int | None = None,
    old: Classes | None = None,
    new: Classes | None = None,
    p: float = 2.0,
    scale_bias: bool = True,
    max_gamma: float | None = None,
) -> float:
    """Scale the rows of new classes so that their mean norm is that of the old ones.

    Parameters
    ----------
    head : nn.Linear, convolution of size 1, or Tensor
        The classifier's last layer, or its weight; changed in place.
    num_old : int, optional
        The first classes are the old ones, all others new.
    old, new : sequence of int, optional
        Rows of the old and of the new classes, in place of ``num_old``; one of them alone stands for all others, too.
        Rows in neither stay unchanged.
    p : float, default: 2.0
        The norm of a row, at least 1. The authors' code has 1 for its default, which was worse in our experiments.
    scale_bias : bool, default: True
        Scale the bias of new classes, too: their logits are then exactly ``gamma`` times the former ones.
    max_gamma : float, optional
        Upper bound of the factor. The authors' code has 1.

    Returns
    -------
    float
        The factor ``gamma``.

    Raises
    ------
    HyperparameterError
        If the classes do not make two groups, a group has norm zero, or an option is out of range.
    NonFiniteError
        If the weights hold NaN or infinity.
    UnsupportedModelError
        If the head is none, its weight is computed from others (weight normalization), or its logits are not the
        product with its weight (a cosine head, whose rows have equal norms already).

    Warns
    -----
    UserWarning
        If rows are zero: they count in the mean, as in the authors' code.

    Notes
    -----
    The norms are computed in float32 or better, of all shards of a DTensor. The mean over classes is not weighted by
    their samples. Do not align a head that shares its weight with an embedding, which would change, too.

    References
    ----------
    Zhao et al., arXiv 1911.07053. One published implementation divides the other way round.

    Examples
    --------
    >>> weight = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 10.0], [12.0, 16.0]])
    >>> align_classifier(weight, num_old=2)
    0.5
    >>> weight.tolist()
    [[3.0, 4.0], [6.0, 8.0], [0.0, 5.0], [6.0, 8.0]]
    """
    weight, bias = head_weights(head)
    groups = _groups(len(weight), num_old, old, new)
    gamma = _gamma(weight, *groups, p, max_gamma)
    values = [weight, *([bias] if bias is not None and scale_bias else [])]
    with _restored(values, on_error_only=True):
        for value in values:
            _scale(value, groups[1], gamma)
    return gamma


@contextmanager
def aligned(head: nn.Module | Tensor, **options: Any) -> Iterator[float]:
    """Align a head within a block, and restore it to the bit at the end.

    Parameters
    ----------
    head : nn.Linear, convolution of size 1, or Tensor
        The classifier's last layer.
    **options
        As for :func:`align_classifier`.

    Yields
    ------
    float
        The factor ``gamma``.

    Examples
    --------
    >>> head = nn.Linear(1, 2, bias=False)
    >>> _ = head.weight.data.copy_(torch.tensor([[1.0], [3.0]]))
    >>> with aligned(head, num_old=1):
    ...     head.weight.flatten().tolist()
    [1.0, 1.0]
    >>> head.weight.flatten().tolist()
    [1.0, 3.0]
    """
    with _restored([value for value in head_weights(head) if value is not None]):
        yield align_classifier(head, **options)


def align_state_dict(
    state: Mapping[str, Tensor], *, weight: str, bias: str | None = None, **options: Any
) -> dict[str, Tensor]:
    """Return a state dict with an aligned head; the given one stays unchanged.

    Parameters
    ----------
    state : mapping of str to Tensor
        Of the model.
    weight : str
        Name of the head's weight.
    bias : str, optional
        Name of its bias, which is scaled as well.
    **options
        ``num_old``, ``old``, ``new``, ``p`` and ``max_gamma`` of :func:`align_classifier`.

    Raises
    ------
    LayerNotFoundError
        If a name is not in the state dict.
    ShapeError
        If the bias has not one value per class.
    UnsupportedModelError
        If the weight is that of another name, too: a tied embedding.

    Examples
    --------
    >>> state = {"fc.weight": torch.tensor([[1.0], [2.0]]), "fc.bias": torch.ones(2)}
    >>> align_state_dict(state, weight="fc.weight", bias="fc.bias", old=[0], new=[1])["fc.bias"].tolist()
    [1.0, 0.5]
    """
    names = [weight] if bias is None else [weight, bias]
    if missing := [name for name in names if name not in state]:
        raise LayerNotFoundError(f"no tensor {missing[0]!r}", found=f"names such as {list(state)[-4:]}")
    owners = tensor_owners(state)
    if tied := [name for name in state if name != weight and owners[name] == owners[weight]]:
        _refuse_tied(weight, tied)
    changed = {name: state[name].detach().clone() for name in names}
    rows = len(changed[weight]) if changed[weight].ndim else 0
    if bias is not None and changed[bias].shape != (rows,):
        raise ShapeError(f"bias {bias!r}", found=tuple(changed[bias].shape), expected=f"one value for {rows} classes")
    gamma = align_classifier(changed[weight], **options)
    if bias is not None:
        chosen = {name: options.get(name) for name in ("num_old", "old", "new")}
        _scale(changed[bias], _groups(rows, **chosen)[1], gamma)
    return {**state, **changed}


def weight_aligning(
    model: nn.Module,
    *,
    num_old: int,
    p: float = 2.0,
    scale_bias: bool = True,
    max_gamma: float | None = None,
    head: str | None = None,
) -> Result:
    """Align the head of a classifier that has learned new classes, without data.

    Parameters
    ----------
    model : nn.Module
        A classifier; its head is changed in place. Its new classes are the last ones.
    num_old : int
        Number of old classes.
    p : float, default: 2.0
        The norm of a row, at least 1.
    scale_bias : bool, default: True
        Scale the bias of new classes, too.
    max_gamma : float, optional
        Upper bound of the factor; 1 never makes the new classes stronger.
    head : str, optional
        Name of the last layer; found by default.

    Returns
    -------
    Result
        For the head: ``gamma``, and the mean norms ``old_norm`` and ``new_norm`` before.

    Raises
    ------
    HyperparameterError
        If ``num_old`` leaves no old or no new class, a group has norm zero, or an option is out of range.
    LayerNotFoundError
        If there is no such layer.
    NonFiniteError
        If a weight is NaN or infinite.
    UnsupportedModelError
        If the model is no classifier, has several heads, or its head is tied to an embedding, computed, or normalized.

    References
    ----------
    Zhao et al., arXiv 1911.07053.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> model[2].weight.data[2:] *= 10
    >>> weight_aligning(model, num_old=2).totals["gamma"] < 0.5
    True
    """
    refuse_adapters(model)
    check_finite(model)
    layer = _find_head(model, head)
    if num_old < 1:
        raise HyperparameterError("num_old", found=num_old, expected=">= 1")
    _check_max_gamma(max_gamma)
    options: dict[str, Any] = {"num_old": num_old, "p": p, "max_gamma": max_gamma}
    with record("weight-aligning", scale_bias=scale_bias, head=layer.name, **options) as result:
        weight, _ = head_weights(layer.module)
        norms, classes = _norms(weight, _power(p)), len(weight)
        old_norm, new_norm = float(norms[:num_old].mean()), float(norms[num_old:].mean())
        others = [each for each in find_layers(model) if each.name != layer.name]
        kinds = {each.name if computed_by(each.module) else each.name.rpartition(".")[2] for each in others}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gamma = align_classifier(layer.module, scale_bias=scale_bias, **options)
        result.layer(layer.name or "the model", gamma=gamma, old_norm=old_norm, new_norm=new_norm)
        result.totals = {"gamma": gamma, "old_classes": num_old, "new_classes": classes - num_old}
        result.notes += [str(warning.message) for warning in caught]
        if gamma > 1 and max_gamma is None:
            result.notes.append(
                f"The new classes became stronger (gamma {gamma:.3g} > 1): usual only if their rows were not trained "
                "with clip_weights_hook, or are the weaker ones. max_gamma=1 leaves such a head unchanged."
            )
        result.notes.append(f"All other layers stay unchanged: {', '.join(sorted(kinds)) or 'there are none'}.")
    return result


def _find_head(model: nn.Module, name: str | None) -> Layer:
    """The last layer of a classifier, refused by name where there is none that can be aligned."""
    layers = find_layers(model)
    if name is not None:
        found = [layer for layer in layers if name in (layer.name, *layer.aliases)]
        if not found:
            raise LayerNotFoundError(
                f"no layer {name!r}", found=f"layers such as {[each.name for each in layers[-4:]]}"
            )
    else:
        config: Any = getattr(model, "config", None)
        embeds = getattr(model, "get_output_embeddings", None)
        if config is not None and embeds is not None and embeds() is not None:
            raise UnsupportedModelError(
                "the model is a language model", expected="a classifier", do="Name its classifier: head=..."
            )
        classes = getattr(config, "num_labels", None)
        found = [layer for layer in layers if classes is None or layer.weight.shape[0] == classes]
        outside = [layer for layer in found if not any(part.isdigit() for part in layer.name.split("."))]
        found = (outside or found) if classes is not None else found[-1:]
        if classes is not None and len(found) != 1:
            raise UnsupportedModelError(
                f"{len(found)} layers with the model's {classes} classes as outputs",
                found=[layer.name for layer in found][:5],
                expected="one",
                do="Name the last layer: head=...",
            )
    (layer,) = found
    writable([layer])
    names = parameter_names(model)[layer.module._parameters[layer.parameter]]  # type: ignore[index]
    if len(names) > 1:
        _refuse_tied(names[0], names[1:])
    return layer


def _refuse_tied(weight: str, others: Sequence[str]) -> None:
    raise UnsupportedModelError(
        f"{weight!r} is tied",
        found=f"the same tensor as {', '.join(map(repr, others))}",
        do="Untie them first: scaled rows would change the embeddings, too.",
    )


def head_weights(head: nn.Module | Tensor) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias of a head, refused where its logits are not the product with the weight."""
    if isinstance(head, Tensor):
        if head.ndim < 2 or not head.is_floating_point() or head.element_size() < 2:
            found = f"{head.dtype} of shape {tuple(head.shape)}"
            raise UnsupportedModelError("the weight of a head", found=found, expected="a floating-point matrix")
        return head, None
    writable([Layer("the head", head)])
    convolves = isinstance(head, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    plain = type(head).forward in (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
    if not plain or (convolves and (head.weight[0, 0].numel() != 1 or head.groups != 1)):  # type: ignore[index]
        raise UnsupportedModelError(
            "a head",
            found=str(head)[:80],
            expected="nn.Linear, or a convolution of size 1",
            do="A head that normalizes its rows needs no aligning; of another one, give the weight.",
        )
    return head.weight, head.bias  # type: ignore[return-value]


def _groups(classes: int, num_old: int | None, old: Classes | None, new: Classes | None) -> tuple[Tensor, Tensor]:
    """The rows of the old and of the new classes."""
    if num_old is not None:
        if old is not None or new is not None:
            raise HyperparameterError("num_old", found=num_old, expected="either this, or old and new")
        if classes < 2:
            raise HyperparameterError(
                "num_old", found=num_old, expected="a head of several classes: this one has 1 output"
            )
        old = range(check_whole("num_old", num_old, 1, classes - 1, f"The head has {classes} classes."))
    if old is None and new is None:
        raise HyperparameterError("the classes are missing", do="Give num_old, or the rows old and new.")
    everything = range(classes)
    given = {"old": old, "new": new}
    for name, other in (("old", "new"), ("new", "old")):
        if given[name] is None:
            taken = {int(row) for row in given[other] or ()}
            given[name] = [row for row in everything if row not in taken]
    rows = {name: [int(row) for row in values or ()] for name, values in given.items()}
    for name, values in rows.items():
        if not values or len(set(values)) < len(values) or not all(row in everything for row in values):
            raise HyperparameterError(name, found=values[:10], expected=f"different rows from 0 to {classes - 1}")
    if both := sorted(set(rows["old"]) & set(rows["new"])):
        raise HyperparameterError("old and new", found=f"{both[:5]} in both", expected="no class in both")
    return torch.tensor(rows["old"]), torch.tensor(rows["new"])


def _power(p: float) -> float:
    if not (math.isfinite(p) and p >= 1):
        raise HyperparameterError("p", found=p, expected="a norm of order 1 or more, such as 2")
    return float(p)


@torch.no_grad()
def _norms(weight: Float[Tensor, "C ..."], p: float) -> Float[Tensor, "C"]:
    """The norm of every row, in float64 on the CPU."""
    norms = torch.linalg.vector_norm(upcast(weight.detach()).flatten(1), p, dim=1)
    return (norms.full_tensor() if isinstance(norms, DTensor) else norms).double().cpu()


def _gamma(weight: Tensor, old: Tensor, new: Tensor, p: float, max_gamma: float | None) -> float:
    _check_max_gamma(max_gamma)
    norms = _norms(weight, _power(p))
    local = weight.to_local() if isinstance(weight, DTensor) else weight
    if not is_finite(local.detach()) or not is_finite(norms):
        raise NonFiniteError("the weights of the head hold NaN or infinity")
    means = {"old": float(norms[old].mean()), "new": float(norms[new].mean())}
    for name, mean in means.items():
        if not mean:
            raise HyperparameterError(f"cannot align: zero-norm group, all rows of the {name} classes are zero")
    if zero := [row for row in sorted([*old.tolist(), *new.tolist()]) if not norms[row]]:
        warnings.warn(f"rows {zero[:10]} of the head are zero, and count in the mean norm", stacklevel=4)
    gamma = means["old"] / means["new"]
    return gamma if max_gamma is None else min(gamma, max_gamma)


@torch.no_grad()
def _scale(values: Tensor, rows: Tensor, gamma: float) -> None:
    """Multiply some rows; the others are multiplied by one."""
    scales = torch.ones(len(values), dtype=torch.float64)
    scales[rows] = gamma
    factors: Tensor = scales.to(values.device, upcast(values.new_empty(0)).dtype).view(-1, *[1] * (values.ndim - 1))
    if isinstance(values, DTensor):
        places = [Replicate()] * values.device_mesh.ndim
        factors = DTensor.from_local(factors, values.device_mesh, places, run_check=False)
    values.copy_(upcast(values) * factors)


@contextmanager
def _restored(tensors: Sequence[Tensor], *, on_error_only: bool = False) -> Iterator[None]:
    held = [tensor.detach().clone() for tensor in tensors]
    done = False
    try:
        yield
        done = True
    finally:
        if not (done and on_error_only):
            with torch.no_grad():
                for tensor, value in zip(tensors, held, strict=True):
                    tensor.copy_(value)


def _check_max_gamma(max_gamma: float | None) -> None:
    if max_gamma is not None and not (math.isfinite(max_gamma) and max_gamma > 0):
        raise HyperparameterError("max_gamma", found=max_gamma, expected="a positive number, or None")
