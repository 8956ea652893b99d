r"""BANG: fine-tune so that the average with the pretrained network is balanced.

A network fine-tuned with plain cross-entropy is more confident than the pretrained one, also on out-of-distribution
data. When the two are averaged, its wrong answers therefore outweigh right answers of the pretrained network.
Fine-tuning with mixup and label smoothing keeps the confidence of both equal; nothing else changes:

.. math::
    t = (1 - \epsilon)\,\mathrm{onehot}(y) + \epsilon / K, \quad
    \tilde x = \lambda x + (1 - \lambda) x', \quad \tilde t = \lambda t + (1 - \lambda) t', \quad
    \lambda \sim \mathrm{Beta}(a, a), \quad L = -\sum_k \tilde t_k \log p_k(\tilde x)

Lin, Tan, Hao, Wong, Dong, Zhang, Yang, Zhang 2024, arXiv 2309.17230.

Where spurious cues identify the classes of the fine-tuning data, mixup and smoothing can make the average worse: see
the method's page. Legend: ``N`` samples, ``K`` classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, Unpack
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from weightsmith.core.data import IGNORED, Samples, call, collate, split_labels, without_labels
from weightsmith.core.errors import CalibrationError, HyperparameterError, UnsupportedModelError
from weightsmith.core.models import evaluation_mode, interpolate_, lerp
from weightsmith.core.processes import plain_model
from weightsmith.core.results import Result, record
from weightsmith.core.training import (
    FitOptions,
    Loss,
    check_labels,
    check_probabilities,
    draw_seed,
    fit,
    labeled,
    logits_of,
    seed_of,
    shift_for_causal_lm,
    soft_cross_entropy,
    training_method,
)
from weightsmith.merge._shared.arithmetic import check_alpha

__all__ = [
    "MixupCollator",
    "bang",
    "bang_loss",
    "smooth_targets",
    "soft_cross_entropy",
    "warmup_cosine",
]


def smooth_targets(
    labels: Shaped[Tensor, "..."], classes: int, *, label_smoothing: float = 0.1
) -> Float[Tensor, "N K ..."]:
    """Turn labels into class probabilities and smooth them.

    Parameters
    ----------
    labels : Tensor of shape (N, ...)
        Class indices (-100 is ignored: its probabilities are zero); or class probabilities ``[N, K, ...]``.
    classes : int
        Number of classes K.
    label_smoothing : float, default: 0.1
        Probability that is spread evenly over all classes, in [0, 1).

    Returns
    -------
    Tensor of shape (N, K, ...)
        The classes in the second dimension, as :func:`torch.nn.functional.cross_entropy` takes them.

    Raises
    ------
    HyperparameterError
        If ``label_smoothing`` is out of range, or labels that are no classes (several at once, or numbers to
        regress) are to be smoothed.
    CalibrationError
        If a label is not below ``classes``.

    Examples
    --------
    >>> smooth_targets(torch.tensor([2]), 4, label_smoothing=0.2)
    tensor([[0.0500, 0.0500, 0.8500, 0.0500]])
    """
    if not 0 <= label_smoothing < 1:
        raise HyperparameterError("label_smoothing", found=label_smoothing, expected="in [0, 1)")
    if labels.is_floating_point():
        classwise = labels.ndim > 1 and labels.shape[1] == classes
        if label_smoothing and not (classwise and bool((labels.sum(1) - 1).abs().max() < 1e-3)):
            raise HyperparameterError(
                "label_smoothing", found="targets that are not class probabilities", do="Pass label_smoothing=0."
            )
        return (1 - label_smoothing) * labels + label_smoothing / classes if label_smoothing else labels
    kept = labels != IGNORED
    if bool((labels[kept] >= classes).any()) or bool((labels[kept] < 0).any()):
        raise CalibrationError("labels", found=labels[kept].unique().tolist()[-3:], expected=f"0 to {classes - 1}")
    onehot = functional.one_hot(labels.clamp_min(0), classes).movedim(-1, 1).float()
    return ((1 - label_smoothing) * onehot + label_smoothing / classes) * kept.unsqueeze(1)


class MixupCollator:
    """Collate samples into a batch whose inputs and labels are mixed in pairs and whose labels are smoothed.

    The labels become class probabilities, for ``torch.nn.CrossEntropyLoss()`` or :func:`soft_cross_entropy`.

    Parameters
    ----------
    num_classes : int
        K.
    alpha : float, default: 0.5
        Of Beta(alpha, alpha), one draw per batch; 0 mixes nothing.
    label_smoothing : float, default: 0.1
        In [0, 1); applied before mixing.
    generator : torch.Generator, optional
        Draws the shares and the pairs.

    Raises
    ------
    HyperparameterError
        If a number is out of range.
    CalibrationError
        If a batch has no labels, or no inputs that can be mixed (token ids cannot: fine-tune with
        :func:`bang_loss`, which mixes their embeddings).

    Examples
    --------
    >>> collate = MixupCollator(num_classes=3, label_smoothing=0.0, generator=torch.Generator().manual_seed(0))
    >>> x, targets = collate([(torch.tensor([0.0]), 0), (torch.tensor([1.0]), 2)])
    >>> bool((x[:, 0] == targets[:, 2]).all()), targets.sum(1)
    (True, tensor([1., 1.]))
    """

    def __init__(
        self,
        num_classes: int,
        *,
        alpha: float = 0.5,
        label_smoothing: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        _check(alpha, label_smoothing)
        self.num_classes, self.alpha, self.label_smoothing = num_classes, alpha, label_smoothing
        self.generator = generator

    def __call__(self, samples: Sequence[Any]) -> Any:
        """Collate mappings with ``labels``, or pairs of input and label."""
        batch = collate(samples)
        pair = not isinstance(batch, Mapping)
        if pair and not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise CalibrationError("samples", found=type(batch).__name__, expected="mappings or (input, label) pairs")
        inputs = {"x": batch[0], "labels": batch[1]} if pair else dict(batch)
        if "labels" not in inputs:
            raise CalibrationError("samples", found=sorted(inputs), expected="'labels'")
        target = smooth_targets(inputs.pop("labels"), self.num_classes, label_smoothing=self.label_smoothing)
        if self.alpha:
            if not any(value.is_floating_point() for value in inputs.values()):
                raise CalibrationError(
                    "no input can be mixed", found=sorted(inputs), do="Fine-tune with bang_loss, or pass alpha=0."
                )
            share, partner = _draw(self.alpha, len(target), self.generator)
            inputs = {
                key: _mix(value, share, partner) if value.is_floating_point() else value
                for key, value in inputs.items()
            }
            target = _mix(target, share, partner)
        return (inputs["x"], target) if pair else {**inputs, "labels": target}


def bang_loss(
    *, mixup_alpha: float = 0.5, label_smoothing: float = 0.1, generator: torch.Generator | None = None
) -> Loss:
    """Return the loss of :func:`weightsmith.core.training.fit` that mixes and smooths.

    Mixes pixels and other numbers; of tokens it mixes the embeddings. Texts are padded on the left for a classifier
    that finds the last token of each text by its tokens, which embeddings do not show. As cross-entropy is linear in
    its targets, the loss is the mixture of two, so the vocabulary of a language model is never one-hot in memory.

    Parameters
    ----------
    mixup_alpha : float, default: 0.5
        Of Beta(mixup_alpha, mixup_alpha), one draw per batch; 0 mixes nothing.
    label_smoothing : float, default: 0.1
        In [0, 1).
    generator : torch.Generator, optional
        Draws the shares and the pairs.

    Returns
    -------
    callable
        ``loss(model, batch)`` of mappings with ``labels`` or pairs (inputs, class indices).

    Raises
    ------
    CalibrationError
        In use, if labels are real numbers that are no class probabilities.
    HyperparameterError
        If a number is out of range; in use, if a label is not a class of the model.
    UnsupportedModelError
        In use, if a classifier computes something else of embeddings than of their tokens.

    Examples
    --------
    >>> loss = bang_loss(mixup_alpha=0.0)
    >>> round(loss(nn.Identity(), (torch.zeros(2, 10), torch.tensor([1, 2]))).item(), 6)
    2.302585
    """
    _check(mixup_alpha, label_smoothing)
    looks: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        batch = labeled(batch)
        inputs, labels = without_labels(model, batch), split_labels(batch)[1]
        if isinstance(inputs, Mapping) and inputs.keys() == {"x"}:
            inputs = inputs["x"]
        share, partner = 1.0, torch.arange(len(labels), device=labels.device)
        if mixup_alpha:
            share, partner = _draw(mixup_alpha, len(labels), generator)
            partner = partner.to(labels.device)
            left = _is_padded_text(inputs) and _looks_for_padding(model, inputs, looks)
            inputs = _mixed_inputs(model, inputs, share, partner)
            inputs = _padded_left(inputs) if left else inputs
        logits = logits_of(call(model, inputs))
        first = _smooth_cross_entropy(model, logits, labels, label_smoothing)
        if share == 1.0:
            return first
        return share * first + (1 - share) * _smooth_cross_entropy(model, logits, labels[partner], label_smoothing)

    return loss


@training_method(learning_rate=3e-5, weight_decay=0.1, epochs=10, clip_norm=1.0, scheduler="cosine", warmup=0.05)
def bang(
    model: nn.Module,
    training: Samples,
    *,
    alpha: float = 0.5,
    mixup_alpha: float = 0.5,
    label_smoothing: float = 0.1,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Fine-tune with mixup and label smoothing, then average with the pretrained network.

    Parameters
    ----------
    model : nn.Module
        The pretrained network, which should already solve the task to some degree; changed in place.
    training : sequence of mapping
        Samples with the model's inputs and ``labels``; a single input named ``x`` is the model's only argument.
    alpha : float, default: 0.5
        Share of the fine-tuned network in the average.
    mixup_alpha : float, default: 0.5
        Of Beta(mixup_alpha, mixup_alpha); 0 mixes nothing.
    label_smoothing : float, default: 0.1
        In [0, 1); 0 together with ``mixup_alpha = 0`` is WiSE-FT.
    generator : torch.Generator, optional
        Draws order, shares and pairs.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The optimizer is AdamW.

    Returns
    -------
    Result
        The training loss, and of each changed tensor how far fine-tuning moved it.

    Raises
    ------
    HyperparameterError
        If a number is out of range, or a label is not a class of the model.
    CalibrationError
        If the samples have no labels, or labels are real numbers that are no class probabilities.
    NonFiniteError
        If the loss becomes NaN or infinite.

    References
    ----------
    Lin et al. "Spurious Feature Diversification Improves Out-of-distribution Generalization". ICLR 2024.
    arXiv:2309.17230.
    """
    check_alpha(alpha)
    hyper: dict[str, Any] = {"alpha": alpha, "mixup_alpha": mixup_alpha, "label_smoothing": label_smoothing}
    seed = draw_seed(generator)
    with record("bang", seed=seed_of(generator), **hyper, **options) as result:
        draws = torch.Generator().manual_seed(seed)
        loss = bang_loss(mixup_alpha=mixup_alpha, label_smoothing=label_smoothing, generator=draws)
        start = copy.deepcopy(model.state_dict())
        run = fit(model, training, loss=loss, seed=seed, **options)
        for name, parameter in model.named_parameters():  # tied weights come once
            old = start[name].float()
            moved = ((parameter.detach().float() - old).norm() / old.norm().clamp_min(1e-12)).item()
            if moved:
                result.layer(name, weights=parameter.numel(), moved=moved)
        interpolate_(model, start, model.state_dict(), alpha)
        result.curves["training loss"] = run.losses
        result.totals = {"trainable": sum(p.numel() for p in model.parameters() if p.requires_grad)}
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            result.notes.append(
                "Running statistics of batch normalization were averaged; re-estimating them is better."
            )
    return result


def warmup_cosine(optimizer: torch.optim.Optimizer, steps: int, *, warmup: int = 500) -> LambdaLR:
    """WiSE-FT's learning rate, for a loop of your own: a linear warm-up that starts above zero, then cosine to zero.

    Call ``step()`` on it after each optimizer step. (:func:`bang` trains with the schedule of
    :func:`weightsmith.core.training.fit`, whose warm-up starts at zero.)

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Its learning rate is the highest.
    steps : int
        Steps in total.
    warmup : int, default: 500
        Steps of the warm-up.

    Returns
    -------
    LambdaLR
        The scheduler.

    Raises
    ------
    HyperparameterError
        If the warm-up is not shorter than the training.

    Examples
    --------
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = warmup_cosine(optimizer, 6, warmup=2)
    >>> schedule.get_last_lr()
    [0.5]
    """
    if not 0 <= warmup < steps:
        raise HyperparameterError("warmup", found=f"{warmup} of {steps} steps", expected="at least 0, below all steps")

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2

    return LambdaLR(optimizer, rate)


def _draw(alpha: float, count: int, generator: torch.Generator | None) -> tuple[float, Tensor]:
    """The share of each sample and the partner it is mixed with."""
    gammas = torch._standard_gamma(torch.tensor([alpha, alpha], dtype=torch.float64), generator=generator)
    share = (gammas[0] / gammas.sum().clamp_min(1e-300)).item() if gammas.sum() > 0 else 1.0
    return share, torch.randperm(count, generator=generator)


def _mix(value: Tensor, share: float, partner: Tensor) -> Tensor:
    return lerp(value[partner], value, share)


def _mixed_inputs(model: nn.Module, inputs: Any, share: float, partner: Tensor) -> Any:
    if isinstance(inputs, Tensor):
        return _mix(inputs, share, partner)
    if not isinstance(inputs, Mapping):
        raise CalibrationError("inputs to mix", found=type(inputs).__name__, expected="a tensor or a mapping")
    mixed = {key: _mix(x, share, partner) if x.is_floating_point() else x for key, x in inputs.items()}
    plain: Any = plain_model(model)
    if "labels" in mixed:  # of which an encoder-decoder would make its decoder inputs: here they are to be mixed
        mixed["decoder_input_ids"] = _decoder_input_ids(plain, mixed.pop("labels"))
    for stream in ("", "decoder_"):
        if f"{stream}input_ids" in mixed:
            embedding = plain.get_decoder().get_input_embeddings() if stream else plain.get_input_embeddings()
            embeddings = embedding(mixed.pop(f"{stream}input_ids"))
            mixed[f"{stream}inputs_embeds"] = share * embeddings + (1 - share) * embeddings[partner]
        if (mask := f"{stream}attention_mask") in mixed:
            mixed[mask] = torch.maximum(mixed[mask], mixed[mask][partner])
    return mixed


def _is_padded_text(inputs: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether some texts end before the last position, and only an encoder or only a decoder reads them."""
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs or "labels" in inputs:
        return False
    mask = inputs.get("attention_mask")
    return isinstance(mask, Tensor) and mask.shape == inputs["input_ids"].shape and not bool(mask[:, -1].all())


@torch.no_grad()
def _looks_for_padding(model: nn.Module, inputs: Mapping[str, Any], known: WeakKeyDictionary[nn.Module, bool]) -> bool:
    """Whether a classifier finds each text's last token by its tokens; of embeddings it takes the last position."""
    plain: Any = plain_model(model)
    if plain in known:
        return known[plain]
    embedded = {key: value for key, value in inputs.items() if key != "input_ids"}
    embedded["inputs_embeds"] = plain.get_input_embeddings()(inputs["input_ids"])
    with evaluation_mode(plain):
        logits = logits_of(call(plain, inputs))
        if logits.ndim != 2:
            known[plain] = False
            return False
        near = torch.finfo(logits.dtype).eps ** 0.5 * float(logits.abs().max())
        others = (logits_of(call(plain, each)) for each in (embedded, _padded_left(embedded)))
        changes = [float((other - logits).abs().max()) for other in others]
    if min(changes) > near:
        raise UnsupportedModelError(
            "mixup of padded texts in a classifier that computes something else of embeddings than of their tokens",
            found=f"{type(plain).__name__}, logits that differ by {min(changes):.2g}",
            do="Batch texts of one length, or set mixup_alpha=0.",
        )
    if float((logits - logits[:1]).abs().max()) > near:  # otherwise nothing is seen: the head may still be zero
        known[plain] = changes[0] > near
    return changes[0] > near


def _padded_left(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Move each text to the end of its row, and with it what else has an entry per token."""
    mask = inputs["attention_mask"]
    places = torch.arange(mask.shape[1], device=mask.device)
    behind = mask.shape[1] - 1 - (mask.ne(0) * places).argmax(1)
    order = (places - behind[:, None]) % mask.shape[1]
    rows = torch.arange(len(mask), device=mask.device)[:, None]
    return {
        key: value[rows, order] if isinstance(value, Tensor) and value.shape[:2] == mask.shape else value
        for key, value in inputs.items()
    }


def _decoder_input_ids(model: Any, labels: Tensor) -> Tensor:
    if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
        raise UnsupportedModelError(
            "mixup of an encoder-decoder that makes no decoder inputs of labels",
            found=type(model).__name__,
            do="Put decoder_input_ids beside the labels, or set mixup_alpha=0.",
        )
    ids: Tensor = model.prepare_decoder_input_ids_from_labels(labels)
    return ids


def _smooth_cross_entropy(model: nn.Module, logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    logits, labels = shift_for_causal_lm(model, logits, labels)
    if labels.is_floating_point():
        check_probabilities(labels, logits)
    else:
        if labels.shape == logits.shape[:-1]:
            logits, labels = logits.flatten(0, -2), labels.flatten()
        check_labels(labels[labels != IGNORED], logits.shape[1] if logits.ndim > 1 else len(logits))
    return functional.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


def _check(mixup_alpha: float, label_smoothing: float) -> None:
    if not 0 <= mixup_alpha < math.inf:
        raise HyperparameterError("mixup alpha", found=mixup_alpha, expected=">= 0")
    if not 0 <= label_smoothing < 1:
        raise HyperparameterError("label_smoothing", found=label_smoothing, expected="in [0, 1)")
