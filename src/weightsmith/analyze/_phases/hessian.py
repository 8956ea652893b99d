r"""The largest eigenvalue and the trace of the Hessian of a loss, from products with vectors.

Lanczos iterations give the eigenvalue of largest magnitude, and with it an orthonormal basis :math:`Q` of directions of
large curvature. Of the trace, :math:`\operatorname{tr} Q^\top H Q` is then exact, and random signs :math:`v` estimate
only the rest:

.. math::
    \operatorname{tr} H = \operatorname{tr} Q^\top H Q + \mathbb E_v\,[(P v)^\top H\, P v], \qquad P = I - Q Q^\top .

Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1990); the deflation is that of Hutch++
(Meyer et al., 2021, arXiv 2010.09649) with the Lanczos basis as its sketch.

Legend: ``P`` parameters, ``K`` vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from weightsmith.core.data import Batches, as_batches, map_tensors, split_labels
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, UnsupportedModelError
from weightsmith.core.linalg import upcast
from weightsmith.core.models import evaluation_mode
from weightsmith.core.progress import track
from weightsmith.core.training import check_labels, labeled, predict, shift_for_causal_lm

__all__ = [
    "HessianSummary",
    "TopEigenvalue",
    "Trace",
    "counted_labels",
    "functional_model",
    "hessian_summary",
    "largest_eigenvalue",
    "trace_estimate",
    "twice_differentiable",
]


Product = Callable[[Float[Tensor, "K P"]], Float[Tensor, "K P"]]
"""Multiplies a symmetric matrix with each row."""

BLOCK = 10
"""Random vectors between two looks at the standard error."""


@dataclass(frozen=True)
class TopEigenvalue:
    r"""The eigenvalue of largest magnitude of a symmetric matrix.

    Attributes
    ----------
    value : float
        With its sign.
    residual : float
        :math:`\|H y - \lambda y\|`: some eigenvalue is that near.
    converged : bool
        Whether the residual is below the tolerance.
    products : int
        Products with a vector that were taken.
    basis_KP : Tensor of shape (vectors, parameters)
        The orthonormal basis it was found in.
    captured : float
        The trace of the matrix in that basis.
    """

    value: float
    residual: float
    converged: bool
    products: int
    basis_KP: Float[Tensor, "K P"]
    captured: float


@dataclass(frozen=True)
class Trace:
    """An estimate of a trace.

    Attributes
    ----------
    value : float
        With its sign.
    error : float
        Standard error of the mean over the random vectors.
    probes : int
        Random vectors that were drawn.
    """

    value: float
    error: float
    probes: int


@dataclass(frozen=True)
class HessianSummary:
    """Curvature of a loss at a network's weights.

    Attributes
    ----------
    trace, trace_error : float
        The trace, which may be negative, and its standard error.
    probes : int
        Random vectors of the trace.
    top_eigenvalue, residual : float
        The eigenvalue of largest magnitude, with its sign, and the residual of its vector.
    converged : bool
        Whether the residual is below the tolerance.
    products : int
        Products with a vector for both.
    """

    trace: float
    trace_error: float
    probes: int
    top_eigenvalue: float
    residual: float
    converged: bool
    products: int


def hessian_summary(
    model: nn.Module,
    batches: Batches,
    *,
    probes: int = 100,
    steps: int = 100,
    tolerance: float = 1e-3,
    trace_tolerance: float = 0.01,
    memory: float = 4.0,
    generator: torch.Generator | None = None,
) -> HessianSummary:
    """Estimate trace and largest eigenvalue of the Hessian of the mean cross-entropy over all batches.

    All parameters count, tied ones once, in evaluation mode and in float32 at least. Every product goes over the same
    data. Labels count equally, whatever the sizes of the batches.

    Parameters
    ----------
    model : nn.Module
        A classifier or a language model. Its weights, buffers, gradients and modes stay.
    batches : Batches
        Mappings with labels (or tokens, which are their own), or pairs (inputs, classes).
    probes : int, default: 100
        Random vectors of the trace at most, at least 2.
    steps : int, default: 100
        Lanczos iterations at most.
    tolerance : float, default: 1e-3
        The eigenvalue has converged when its residual is below this share of it.
    trace_tolerance : float, default: 0.01
        No more vectors are drawn once the standard error is below this share of the trace's magnitude.
    memory : float, default: 4.0
        Gigabytes for the Lanczos basis, and again for graphs that are kept between products.
    generator : torch.Generator, optional
        Draws the vectors; seed 0 by default.

    Raises
    ------
    CalibrationError
        If no label counts.
    HyperparameterError
        If an option is out of range, or a label is not a class of the model.
    NonFiniteError
        If the loss or a product is NaN or infinite.
    UnsupportedModelError
        If the loss cannot be differentiated twice, or no parameter is real.

    Examples
    --------
    >>> model, x = nn.Linear(2, 2, bias=False), torch.eye(2)
    >>> nn.init.zeros_(model.weight).shape
    torch.Size([2, 2])
    >>> summary = hessian_summary(model, [(x, torch.tensor([0, 1]))])  # of trace 0.5
    >>> round(summary.top_eigenvalue, 4), summary.converged, abs(summary.trace - 0.5) < 3 * summary.trace_error
    (0.25, True, True)
    """
    for name, value, least in (("probes", probes, 2), ("steps", steps, 1)):
        if value < least:
            raise HyperparameterError(name, found=value, expected=f">= {least}")
    for name, share in (("tolerance", tolerance), ("trace_tolerance", trace_tolerance), ("memory", memory)):
        if not share > 0:
            raise HyperparameterError(name, found=share, expected="> 0")
    generator = generator or torch.Generator().manual_seed(0)
    with evaluation_mode(model), torch.enable_grad(), twice_differentiable():
        product = _Hessian(model, as_batches(batches), memory)
        top = largest_eigenvalue(
            product, product.like_P, steps=steps, tolerance=tolerance, memory=memory, generator=generator
        )
        trace = trace_estimate(
            product,
            product.like_P,
            probes=probes,
            tolerance=trace_tolerance,
            generator=generator,
            basis_KP=top.basis_KP,
            captured=top.captured,
        )
    return HessianSummary(
        trace.value, trace.error, trace.probes, top.value, top.residual, top.converged, top.products + trace.probes
    )


@torch.no_grad()
def largest_eigenvalue(
    product: Product,
    like_P: Float[Tensor, " P"],
    *,
    steps: int = 100,
    tolerance: float = 1e-3,
    memory: float = 4.0,
    generator: torch.Generator | None = None,
) -> TopEigenvalue:
    """Find the eigenvalue of largest magnitude of a symmetric matrix by Lanczos iterations.

    The basis is orthogonalized fully. Where it fills the memory, the iterations start again from the best vector.

    Parameters
    ----------
    product : callable
        Multiplies the matrix with the rows of a tensor.
    like_P : Tensor of shape (parameters,)
        Its size, type and device are those of the vectors.
    steps, tolerance, memory, generator
        As for :func:`hessian_summary`.

    Raises
    ------
    NonFiniteError
        If a product is NaN or infinite.

    Examples
    --------
    >>> diagonal = torch.tensor([1.0, -3.0, 2.0])
    >>> top = largest_eigenvalue(lambda rows: rows * diagonal, diagonal)
    >>> round(top.value, 4), top.converged, top.products
    (-3.0, True, 3)
    """
    size = len(like_P)
    room = min(max(2, int(memory * 1e9 / (like_P.element_size() * size))), steps, size)
    basis_KP = like_P.new_empty(room, size)
    next_P = _normal(like_P, generator or torch.Generator().manual_seed(0))
    alphas: list[float] = []
    betas: list[float] = []
    value = residual = 0.0
    taken = 0
    for taken in track(range(1, steps + 1), "largest eigenvalue", total=steps):
        count = len(alphas) + 1
        basis_KP[count - 1] = next_P / next_P.norm()
        next_P = product(basis_KP[count - 1 : count]).squeeze(0)
        _check(next_P)
        alphas.append(float(basis_KP[count - 1].double() @ next_P.double()))
        for _ in range(2):  # once is not enough in float32
            next_P = next_P - basis_KP[:count].T @ (basis_KP[:count] @ next_P)
        betas.append(float(next_P.norm()))
        values, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1))
        best = int(np.abs(values).argmax())
        value, residual = float(values[best]), abs(betas[-1] * float(vectors[-1, best]))
        if count == size:
            residual = 0.0
        if residual <= tolerance * abs(value) or betas[-1] <= 10 * torch.finfo(like_P.dtype).eps * abs(value):
            break
        if count == room and taken < steps:
            next_P = basis_KP[:count].T @ torch.as_tensor(vectors[:, best]).to(basis_KP)
            alphas, betas = [], []
    converged = residual <= tolerance * abs(value)
    return TopEigenvalue(value, residual, converged, taken, basis_KP[: len(alphas)], float(np.sum(alphas)))


@torch.no_grad()
def trace_estimate(
    product: Product,
    like_P: Float[Tensor, " P"],
    *,
    probes: int = 100,
    tolerance: float = 0.01,
    generator: torch.Generator | None = None,
    basis_KP: Float[Tensor, "K P"] | None = None,
    captured: float = 0.0,
) -> Trace:
    """Estimate the trace of a symmetric matrix from random signs, outside of a basis where its part is known.

    Parameters
    ----------
    product, like_P
        As for :func:`largest_eigenvalue`.
    probes : int, default: 100
        Random vectors at most.
    tolerance : float, default: 0.01
        No more are drawn once the standard error is below this share of the trace's magnitude, looked at every ten.
    generator : torch.Generator, optional
        Draws the signs; seed 0 by default.
    basis_KP : Tensor of shape (vectors, parameters), optional
        Orthonormal rows.
    captured : float, default: 0.0
        The trace of the matrix in that basis.

    Examples
    --------
    Of a diagonal matrix every draw gives the trace exactly, negative ones included:

    >>> diagonal = torch.tensor([1.0, -3.0, 0.5])
    >>> trace_estimate(lambda rows: rows * diagonal, diagonal)
    Trace(value=-1.5, error=0.0, probes=10)
    """
    generator = generator or torch.Generator().manual_seed(0)
    if basis_KP is not None and len(basis_KP) == len(like_P):
        return Trace(captured, 0.0, 0)
    draws: list[float] = []
    mean = error = math.nan
    for start in track(range(0, probes, BLOCK), "trace", total=-(-probes // BLOCK)):
        signs_KP = torch.stack([_signs(like_P, generator) for _ in range(min(BLOCK, probes - start))])
        if basis_KP is not None:
            signs_KP -= (signs_KP @ basis_KP.T) @ basis_KP
        images_KP = product(signs_KP)
        _check(images_KP)
        draws += (signs_KP.double() * images_KP.double()).sum(1).tolist()
        mean = captured + float(np.mean(draws))
        error = float(np.std(draws, ddof=1)) / math.sqrt(len(draws)) if len(draws) > 1 else math.inf
        if error <= tolerance * abs(mean):
            break
    return Trace(mean, error, len(draws))


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention and recurrent layers in operations that have a second derivative."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield


def counted_labels(model: nn.Module, batch: Any) -> Int[Tensor, " labels"]:
    """Return the labels of a batch that count; the first token of a text is predicted by nothing.

    Examples
    --------
    >>> counted_labels(nn.Identity(), (torch.eye(3), torch.tensor([0, -100, 2])))
    tensor([0, 2])
    """
    _, labels = split_labels(labeled(batch))
    if labels.is_floating_point():
        raise CalibrationError("labels", found="real numbers", expected="classes", do="Give a classification's data.")
    _, labels = shift_for_causal_lm(model, labels[..., None], labels)
    return labels[labels != -100]


def functional_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a module that calls a model with other tensors than its own.

    Examples
    --------
    >>> doubled = functional_model(nn.Linear(1, 1, bias=False), {"weight": torch.tensor([[2.0]])})
    >>> doubled(torch.ones(1))
    tensor([2.])
    """
    return _Functional(model, tensors)


class _Functional(nn.Module):
    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.hidden, self.tensors = (model,), dict(tensors)  # not a child: its parameters are not this module's

    @property
    def module(self) -> nn.Module:
        """The model, under the name by which wrappers hold theirs."""
        return self.hidden[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.hidden[0], self.tensors, args, kwargs)


class _Hessian:
    """Multiplies the Hessian of the mean cross-entropy over batches with rows of vectors."""

    def __init__(self, model: nn.Module, batches: Sequence[Any], memory: float) -> None:
        self.model = model
        self.parameters = {
            name: upcast(parameter.detach()).clone().requires_grad_()
            for name, parameter in model.named_parameters()
            if parameter.is_floating_point()
        }
        if not self.parameters:
            raise UnsupportedModelError("the Hessian of a model without real parameters")
        self.buffers = {name: upcast(b).clone() if b.is_floating_point() else b for name, b in model.named_buffers()}
        self.like_P = torch.cat([parameter.detach().flatten() for parameter in self.parameters.values()])
        self.batches = [labeled(batch) for batch in batches]
        self.labels = sum(len(counted_labels(model, batch)) for batch in self.batches)
        if not self.labels:
            raise CalibrationError("the batches have no label that counts", expected="at least one")
        # graphs of the gradient are kept between products where all fit
        held = _Bytes()
        with torch.autograd.graph.saved_tensors_hooks(held.see, lambda tensor: tensor):
            first = self._gradients(self.batches[0])
        self.kept = [first] if held.total * len(self.batches) <= memory * 1e9 else []
        if self.kept:
            self.kept += [self._gradients(batch) for batch in self.batches[1:]]
        self.together = max(1, int(memory * 1e9 / 16 / max(held.total, 4 * len(self.like_P))))

    def __call__(self, rows_KP: Float[Tensor, "K P"]) -> Float[Tensor, "K P"]:
        total_KP = torch.zeros_like(rows_KP)
        with torch.enable_grad():
            for number, batch in enumerate(self.batches):
                gradients = self.kept[number] if self.kept else self._gradients(batch)
                for start in range(0, len(rows_KP), self.together):
                    piece = slice(start, start + self.together)
                    total_KP[piece] += self._products(gradients, rows_KP[piece])
        return total_KP

    def _gradients(self, batch: Any) -> list[Tensor]:
        # real inputs in the type of the weights, which is float32 for a model in half precision
        batch = map_tensors(lambda t: t.to(self.like_P) if t.is_floating_point() else t.to(self.like_P.device), batch)
        logits, labels = predict(functional_model(self.model, {**self.parameters, **self.buffers}), batch)
        check_labels(labels[labels != -100], logits.shape[-1])
        loss = functional.cross_entropy(
            logits.flatten(0, -2), labels.long().flatten(), ignore_index=-100, reduction="sum"
        )
        if not bool(loss.detach().isfinite()):
            raise NonFiniteError("the loss", found=float(loss.detach()), do="Check the weights and the data.")
        if not loss.requires_grad:
            raise UnsupportedModelError("the loss does not depend on a parameter", expected="a network to train")
        gradients = torch.autograd.grad(
            loss / self.labels, [*self.parameters.values()], create_graph=True, materialize_grads=True
        )
        return list(gradients)

    def _products(self, gradients: Sequence[Tensor], rows_KP: Float[Tensor, "K P"]) -> Float[Tensor, "K P"]:
        """One backward pass through the gradients for all rows; constant gradients have no part in it."""
        parameters = [*self.parameters.values()]
        parts = rows_KP.split([parameter.numel() for parameter in parameters], 1)
        curved = [
            (gradient, part.reshape(len(part), *gradient.shape))
            for gradient, part in zip(gradients, parts, strict=True)
            if gradient.requires_grad
        ]
        if not curved:
            return torch.zeros_like(rows_KP)
        outputs, weights = zip(*curved, strict=True)
        single = len(rows_KP) == 1
        try:
            found = torch.autograd.grad(
                outputs,
                parameters,
                [weight[0] for weight in weights] if single else weights,
                retain_graph=True,
                is_grads_batched=not single,
                allow_unused=True,
            )
        except RuntimeError as error:
            raise UnsupportedModelError(
                "the second derivative of the loss", found=error, do="Replace the operation that has none."
            ) from error
        return torch.cat(
            [
                torch.zeros_like(part) if each is None else each.reshape(len(rows_KP), -1)
                for each, part in zip(found, parts, strict=True)
            ],
            1,
        )


class _Bytes:
    """Counts the memory that a graph keeps alive."""

    def __init__(self) -> None:
        self.total = 0
        self.seen: set[int] = set()

    def see(self, tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in self.seen:
            self.seen.add(place)
            self.total += tensor.untyped_storage().nbytes()
        return tensor


def _normal(like_P: Float[Tensor, " P"], generator: torch.Generator) -> Float[Tensor, " P"]:
    return torch.randn(len(like_P), generator=generator).to(like_P)


def _signs(like_P: Float[Tensor, " P"], generator: torch.Generator) -> Float[Tensor, " P"]:
    return (2.0 * torch.randint(2, (len(like_P),), generator=generator) - 1).to(like_P)


def _check(images: Tensor) -> None:
    if not bool(images.isfinite().all()):
        raise NonFiniteError("products with the Hessian hold NaN or infinity", do="Check the weights.")
