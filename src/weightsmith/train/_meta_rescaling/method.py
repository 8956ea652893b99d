r"""Meta loss rescaling (STORM): learn during training how much each sample counts when labels may be wrong.

Heck, Geishauser, Lubis, van Niekerk, Feng, Lin, Ruppik, Vukovic, Gasic 2024, arXiv 2412.12955. A small network
:math:`\Omega_c` for each class reads 19 numbers about a sample (its loss and confidence over several passes with
dropout, beside those of its class) and gives a weight :math:`w_i \in (0, 1)`. It learns from a batch :math:`V` of the
same noisy data, after a virtual step on the batch :math:`B`:

.. math::

    \theta' = \theta - \eta \sum_{i \in B} w_i \nabla l_i(\theta), \qquad
    \min_\omega \; \sum_{j \in V} v_j \, l_j(\theta') .

The gradient reaches :math:`\omega` through :math:`v`, directly, and through :math:`\theta'`, for which no second
derivative is needed: with :math:`G = \sum_j v_j \nabla l_j(\theta')`,

.. math::

    \frac{\partial}{\partial w_i} \sum_j v_j \, l_j(\theta') = -\eta \, \langle \nabla l_i(\theta), G \rangle ,

and all these inner products are one forward-mode derivative of the losses in direction :math:`G`.

Legend: ``G`` passes, ``B`` samples, ``C`` classes, ``M`` samples in memory.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset

from weightsmith.core.choices import check_choice
from weightsmith.core.data import Samples, call, collate, in_model_dtype, keywords, pad_token_id, split_labels, take
from weightsmith.core.errors import (
    CalibrationError,
    CheckpointError,
    HyperparameterError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.processes import (
    all_reduce_sum,
    broadcast_first,
    gather_objects,
    gather_rows,
    plain_model,
    process_count,
)
from weightsmith.core.results import Result, record
from weightsmith.core.sharding import refuse_sharded
from weightsmith.core.training import (
    FitOptions,
    batch_count,
    check_options,
    draw_seed,
    fit,
    logits_of,
    seed_of,
    training_method,
)
from weightsmith.train._meta_rescaling.features import ClassMemory
from weightsmith.train._meta_rescaling.rescaler import Rescaler

__all__ = ["MetaRescaler", "meta_rescaling"]

EPSILON = 1e-8
"""Keeps the sign step from dividing by zero."""

Inner = Literal["sgd", "sign"]
Paths = Literal["both", "meta", "direct"]
Reduction = Literal["sum", "mean"]


class MetaRescaler:
    """The weighted loss of a batch; calling it also trains the rescaler.

    It is a loss for :func:`weightsmith.core.training.fit`; in a plain loop call ``rescaler(model, batch).backward()``.

    Parameters
    ----------
    data : Dataset or sequence
        The training set with its noisy labels; batches to learn the rescaler from are drawn from it. A sample
        is (inputs, class), (inputs, class, index), or a mapping with ``labels`` and perhaps ``index``.
    classes : int
        Number of classes.
    inner : {"sgd", "sign"}, default: "sgd"
        The virtual step: gradient descent, or its sign, as in the paper's code for text (the first step of Adam).
    inner_learning_rate : float, default: 1e-3
        Of the virtual step.
    rescaler_learning_rate : float, default: 1e-2
        Of Adam on the rescaler.
    passes : int, default: 3
        Forward passes per sample, which differ by dropout.
    window : int, default: 1
        Samples to store per class, in batches.
    paths : {"both", "meta", "direct"}, default: "both"
        Which gradients train the rescaler: both (the paper), or one for comparison.
    reduction : {"sum", "mean"}, default: "mean"
        Of weighted losses, in the virtual and the real step. The paper's code sums.
    warmup_steps : int, default: 0
        Batches at the start that train the model with equal weights, while the rescaler learns.
    min_weight : float, default: 0.0
        Least weight, in [0, 1).
    criterion : callable, optional
        From logits ``[B, C]`` and classes ``[B]`` to losses ``[B]``; cross-entropy by default.
    perturb : callable, optional
        Changes the inputs of all passes but the first, for models without dropout.
    generator : torch.Generator, optional
        Draws the batches and the rescaler's initial weights.

    Notes
    -----
    Several processes weigh the samples of all of them together, as one process does with all samples in its batch; for
    this they exchange gradients three times per step. Each holds all of ``data``.

    Attributes
    ----------
    rescaler : Rescaler
        The networks that give the weights.
    scores : Tensor of shape (samples,)
        Latest weight of every sample whose batches have ``index``; NaN for others. A low weight means that the label is
        probably wrong.
    last_weights : Tensor
        Weights of the last batch.

    Raises
    ------
    HyperparameterError
        If an option is out of range.

    References
    ----------
    Heck et al. 2024, arXiv 2412.12955.

    Examples
    --------
    >>> x = torch.randn(64, 4)
    >>> data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long(), torch.arange(64))
    >>> model = nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 2))
    >>> loss = MetaRescaler(data, classes=2)
    >>> run = fit(model, data, loss=loss, epochs=2)
    >>> bool(((loss.scores > 0) & (loss.scores < 1)).all())
    True
    """

    def __init__(
        self,
        data: Dataset[Any] | Sequence[Any],
        classes: int,
        *,
        inner: Inner = "sgd",
        inner_learning_rate: float = 1e-3,
        rescaler_learning_rate: float = 1e-2,
        passes: int = 3,
        window: int = 1,
        paths: Paths = "both",
        reduction: Reduction = "mean",
        warmup_steps: int = 0,
        min_weight: float = 0.0,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        perturb: Callable[[Any], Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        for name, value, least in (("classes", classes, 2), ("passes", passes, 1), ("window", window, 1)):
            if value < least:
                raise HyperparameterError(name, found=value, expected=f">= {least}")
        check_choice("inner", inner, Inner)
        check_choice("paths", paths, Paths)
        check_choice("reduction", reduction, Reduction)
        if not 0 <= min_weight < 1:
            raise HyperparameterError("min_weight", found=min_weight, expected="in [0, 1)")
        if not (math.isfinite(inner_learning_rate) and inner_learning_rate > 0):
            raise HyperparameterError("inner_learning_rate", found=inner_learning_rate, expected="a number > 0")
        check_options({"learning_rate": rescaler_learning_rate}, prefix="rescaler_")
        self.data, self.classes, self.inner, self.paths = data, classes, inner, paths
        self.inner_learning_rate, self.passes, self.reduction = inner_learning_rate, passes, reduction
        self.warmup_steps, self.min_weight, self.perturb = warmup_steps, min_weight, perturb
        self.criterion = criterion or _cross_entropy
        self.generator = generator or torch.Generator().manual_seed(0)
        self.rescaler = Rescaler(classes, generator=self.generator)
        self.optimizer = torch.optim.Adam(self.rescaler.parameters(), lr=rescaler_learning_rate)
        self.memories = ClassMemory(classes, window), ClassMemory(classes, window)
        self.scores = torch.full((len(data),), torch.nan)  # type: ignore[arg-type]
        self.last_weights = torch.empty(0)
        self._steps = self._seen = 0
        self._mine = slice(0)

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the weighted loss of a batch, after one step of the rescaler.

        Parameters
        ----------
        model : nn.Module
            Gives logits ``[B, C]``, or an object with them.
        batch : tuple or mapping
            See ``data``.

        Raises
        ------
        ShapeError
            If there is not one class per sample.
        HyperparameterError
            If a class is not among the ``classes``.
        NonFiniteError
            If a loss is NaN or infinite.
        UnsupportedModelError
            If the model uses gradient checkpointing, or is sharded.
        """
        return self.weighted(model, batch, call)

    def weighted(self, model: nn.Module, batch: Any, first_pass: Callable[[nn.Module, Any], Any]) -> Tensor:
        """Return the same, with another call for the pass that has the gradients."""
        plain = plain_model(model)
        refuse_sharded(
            plain, do="Run it under DistributedDataParallel: it computes with other weights than the model's."
        )
        inputs, labels, index = _split(batch)
        self._check(labels)
        if any(getattr(module, "gradient_checkpointing", False) for module in plain.modules()):
            # its recomputation drops the tangents of the derivative along the virtual step
            raise UnsupportedModelError("a model with gradient checkpointing", do="Switch it off.")
        every, self._mine = gather_rows(labels)
        if len(every) < 2:
            warnings.warn("a batch of one sample has no weights; drop it or make it larger", stacklevel=2)
            return self.criterion(logits_of(first_pass(model, inputs)), labels).sum()
        self.rescaler.to(labels.device)
        if not self._steps:
            broadcast_first(*(parameter.detach() for parameter in self.rescaler.parameters()))
        parameters = {name: p for name, p in plain.named_parameters() if p.requires_grad}
        share = self._share(every)
        with _same_randomness(labels.device) as rewind:
            first = first_pass(model, inputs)
            losses_GB, logits_GBC = self._run(plain, first, inputs, labels, {})
            w_B = self._weights(self.memories[0], losses_GB, logits_GBC, labels)
            gradient = _gradient(share * (w_B.detach() * losses_GB[0]).sum(), parameters)
            parameters = {name: parameters[name] for name in gradient}
            self._learn(plain, parameters, gradient, inputs, labels, w_B, share, rewind)
        in_force = w_B.detach()
        if self._steps < self.warmup_steps:
            in_force = torch.ones_like(in_force)
            gradient = _gradient(share * losses_GB[0].sum(), parameters)
        self._remember(in_force, index, len(every))
        loss = share * (in_force * losses_GB[0].detach()).sum()
        all_reduce_sum(loss)
        return _KnownGradient.apply(loss, [*gradient.values()], *parameters.values())

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next steps depend on: the rescaler, its optimizer, scores, memories and generator."""
        return {
            "rescaler": self.rescaler.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scores": self.scores,
            "steps": self._steps,
            "seen": self._seen,
            "memories": [memory.held for memory in self.memories],
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned.

        Raises
        ------
        CheckpointError
            If it is damaged, or of another number of samples or classes.
        """
        held = copy.deepcopy(self.rescaler.state_dict())
        try:
            if state["scores"].shape != self.scores.shape:
                raise ValueError(f"scores of {len(state['scores'])} samples, not of {len(self.scores)}")
            steps, seen = int(state["steps"]), int(state["seen"])
            memories = [tuple(part.clone() for part in parts) for parts in state["memories"]]
            if [len(parts) for parts in memories] != [3, 3]:
                raise ValueError("memories are missing")
            drawn = state["generator"].cpu()
            torch.Generator(self.generator.device).set_state(drawn)  # raises if it is none
            self.rescaler.load_state_dict(state["rescaler"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            self.rescaler.load_state_dict(held)
            found = " ".join(str(error).split())
            raise CheckpointError(
                "state of a MetaRescaler", found=found, do="Take one that this version saved."
            ) from error
        self.scores, self._steps, self._seen = state["scores"].clone(), steps, seen
        for memory, parts in zip(self.memories, memories, strict=True):
            memory.held = parts
        self.generator.set_state(drawn)

    def _learn(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        gradient: Mapping[str, Tensor],
        inputs: Any,
        labels: Tensor,
        w_B: Tensor,
        share: float,
        rewind: Callable[[], None],
    ) -> None:
        """One step of Adam on the rescaler."""
        rate = self.inner_learning_rate
        moved = {
            name: (p.detach() - rate * self._step(gradient[name])).requires_grad_() for name, p in parameters.items()
        }
        other, other_labels = self._draw(model, labels.device)
        losses_GB, logits_GBC = self._run(model, call_with(model, moved, other), other, other_labels, moved)
        v_B = self._weights(self.memories[1], losses_GB, logits_GBC, other_labels)
        objective = torch.zeros((), device=labels.device)
        if self.paths != "meta":
            objective = objective + share * (v_B * losses_GB[0].detach()).sum()
        if self.paths != "direct":
            outer = _gradient(share * (v_B.detach() * losses_GB[0]).sum(), moved)
            direction = {
                name: self._slope(gradient[name]) * outer[name] if name in outer else torch.zeros_like(p)
                for name, p in parameters.items()
            }
            rewind()  # to the dropout of the first pass
            slopes_B = self._directional(model, parameters, direction, inputs, labels)
            objective = objective - rate * share * (slopes_B * w_B).sum()
        self.optimizer.zero_grad()
        objective.backward()
        for parameter in self.rescaler.parameters():
            assert parameter.grad is not None
            all_reduce_sum(parameter.grad)
        self.optimizer.step()

    def _directional(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        direction: dict[str, Tensor],
        inputs: Any,
        labels: Tensor,
    ) -> Float[Tensor, "B"]:
        """The derivative of every sample's loss at the parameters in a direction: one forward-mode pass."""
        point = {name: p.detach() for name, p in parameters.items()}
        try:
            with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward-mode derivative
                slopes_B: Tensor = jvp(
                    lambda p: self.criterion(logits_of(call_with(model, p, inputs)), labels), (point,), (direction,)
                )[1]
        except NotImplementedError as error:
            raise UnsupportedModelError(
                "a model without forward-mode derivative", found=str(error).split(".")[0], do="Or paths='direct'."
            ) from error
        return slopes_B.detach()

    def _step(self, gradient: Tensor) -> Tensor:
        return gradient if self.inner == "sgd" else gradient / (gradient.abs() + EPSILON)

    def _slope(self, gradient: Tensor) -> Tensor | float:
        """The derivative of the virtual step by the gradient, entry by entry."""
        return 1.0 if self.inner == "sgd" else EPSILON / (gradient.abs() + EPSILON).square()

    def _run(
        self, model: nn.Module, first: Any, inputs: Any, labels: Tensor, parameters: Mapping[str, Tensor]
    ) -> tuple[Float[Tensor, "G B"], Float[Tensor, "G B C"]]:
        """The losses and logits of all passes. The first has been run already, and only it has a graph."""
        rows = [logits_of(first).float()]
        if rows[0].ndim != 2 or len(rows[0]) != len(labels):
            expected = f"[{len(labels)}, classes], one row per sample"
            raise ShapeError("logits", found=f"shape {tuple(rows[0].shape)}", expected=expected)
        with torch.no_grad():
            for _ in range(self.passes - 1):
                changed = inputs if self.perturb is None else self.perturb(inputs)
                rows.append(logits_of(call_with(model, parameters, changed)).float())
        losses = torch.stack([self.criterion(logits, labels).float() for logits in rows])
        finite = losses.detach().isfinite().all(0)
        if not bool(finite.all()):
            bad = (~finite).nonzero().flatten().tolist()
            raise NonFiniteError("losses", found=f"NaN or infinity at samples {bad[:5]}", do="Lower the learning rate.")
        if self.passes > 1 and self._steps == 0 and all(gather_objects(bool((losses == losses[0]).all()))):
            warnings.warn("all passes are alike: without dropout (or perturb) one is enough", stacklevel=4)
            self.passes = 1
        return losses, torch.stack([logits.detach() for logits in rows])

    def _share(self, labels: Tensor) -> float:
        """What the sum of the losses of all processes is multiplied by."""
        return 1 / len(labels) if self.reduction == "mean" else 1.0

    def _weights(
        self, memory: ClassMemory, losses_GB: Tensor, logits_GBC: Tensor, labels: Tensor
    ) -> Float[Tensor, "B"]:
        losses_BG, logits_BGC, labels_B = (
            gather_rows(rows)[0] for rows in (losses_GB.detach().T, logits_GBC.transpose(0, 1), labels)
        )
        features = memory.features(losses_BG.T, logits_BGC.transpose(0, 1), labels_B)
        weights_B: Tensor = self.rescaler(features, labels_B)  # its batch norms see the batches of all processes
        return self.min_weight + (1 - self.min_weight) * weights_B[self._mine]

    def _draw(self, model: nn.Module, device: torch.device) -> tuple[Any, Tensor]:
        """A batch of the training set, drawn uniformly with replacement; of several processes each has its part."""
        count = sum(gather_objects(self._mine.stop - self._mine.start))
        every = torch.randint(len(self.data), (count,), generator=self.generator)  # type: ignore[arg-type]
        broadcast_first(every)
        chosen = every[self._mine].tolist()
        inputs, labels, _ = _split(
            _to(collate([self.data[i] for i in chosen], pad_token_id=pad_token_id(model)), device)
        )
        self._check(labels)
        return inputs, labels

    def _remember(self, weights: Tensor, index: Tensor | None, count: int) -> None:
        self.last_weights = weights
        if index is not None:
            self.scores[gather_rows(index)[0].cpu()] = gather_rows(weights)[0].cpu()
        self._steps += 1
        self._seen += count
        if self._seen >= len(self.data):  # type: ignore[arg-type]
            self._seen = 0
            for memory in self.memories:
                memory.reset()

    def _check(self, labels: Tensor) -> None:
        if labels.ndim != 1 or labels.is_floating_point():
            found = f"{labels.dtype} of shape {tuple(labels.shape)}"
            raise ShapeError("labels", found=found, expected="one class index per sample")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            bad = labels[(labels < 0) | (labels >= self.classes)][:5].tolist()
            raise HyperparameterError("labels", found=bad, expected=f"class indices from 0 to {self.classes - 1}")


@training_method(learning_rate=5e-5, epochs=10)
def meta_rescaling(
    model: nn.Module,
    training: Samples,
    *,
    inner: Inner = "sgd",
    inner_learning_rate: float = 1e-3,
    rescaler_learning_rate: float = 1e-2,
    passes: int = 3,
    window: int = 1,
    weight_warmup: float = 0.0,
    min_weight: float = 0.0,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Train a classifier on labels that may be wrong; the weight of each sample is learned during training.

    The weights of the last epoch are saved with the model as ``sample_weights.csv``, lowest first.

    Parameters
    ----------
    model : nn.Module
        A classifier, changed in place.
    training : sequence of mapping
        Samples with the model's inputs and ``labels``, one class index each.
    inner : {"sgd", "sign"}, default: "sgd"
        The virtual step: gradient descent or its sign.
    inner_learning_rate : float, default: 1e-3
        Of the virtual step.
    rescaler_learning_rate : float, default: 1e-2
        Of the rescaler.
    passes : int, default: 3
        Forward passes per sample, which differ by dropout.
    window : int, default: 1
        Samples to store per class, in batches.
    weight_warmup : float, default: 0.0
        Share of all batches at the start, in [0, 1), with equal weights.
    min_weight : float, default: 0.0
        Least weight of a sample, in [0, 1).
    generator : torch.Generator, optional
        Draws batches and initial weights.
    **options
        Training options, see :class:`weightsmith.core.training.FitOptions`. The optimizer of the model is AdamW.
        Batches of at least 16 samples work well.

    Returns
    -------
    Result
        Losses, and the weights as a file.

    Raises
    ------
    CalibrationError
        If there are no samples.
    HyperparameterError
        If an option is out of range, or a label is not a class.
    ShapeError
        If a sample does not have one class index as its label.

    References
    ----------
    Heck et al. 2024, arXiv 2412.12955.
    """
    if not 0 <= weight_warmup < 1:
        raise HyperparameterError("weight_warmup", found=weight_warmup, expected="a share in [0, 1)")
    if options["batch_size"] * process_count() < 2:
        raise HyperparameterError("batch_size", found=1, expected=">= 2", do="A sample alone has no weight.")
    hyper: dict[str, Any] = {
        "inner": inner,
        "inner_learning_rate": inner_learning_rate,
        "rescaler_learning_rate": rescaler_learning_rate,
        "passes": passes,
        "window": window,
        "min_weight": min_weight,
    }
    seed = draw_seed(generator)
    with record("meta-rescaling", seed=seed_of(generator), weight_warmup=weight_warmup, **hyper, **options) as result:
        samples = [_numbered(training[number], number) for number in range(len(training))]
        batches = batch_count(len(samples), options) * options["epochs"]
        loss = MetaRescaler(
            samples,
            _count_classes(model, training),
            warmup_steps=round(weight_warmup * batches),
            generator=torch.Generator().manual_seed(seed),
            **hyper,
        )
        run = fit(model, samples, loss=loss, seed=seed, **options)
        result.curves["training loss"] = run.losses
        result.totals = {
            "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "mean_weight": loss.scores.nanmean().item(),
        }
        order = loss.scores.argsort().tolist()
        lines = [f"{i},{int(split_labels(training[i])[1])},{loss.scores[i]:.6g}" for i in order]
        result.files["sample_weights.csv"] = "\n".join(["sample,label,weight", *lines]) + "\n"
    return result


class _KnownGradient(torch.autograd.Function):
    """A value whose gradient by some parameters is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *_: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Any, ...]:
        return (None, None, *(outer[0] * gradient for gradient in ctx.saved_tensors))


def _gradient(value: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient by each parameter that is used, summed over processes."""
    found = torch.autograd.grad(value, [*parameters.values()], retain_graph=True, allow_unused=True)
    used = torch.tensor([gradient is not None for gradient in found], dtype=torch.int32)
    all_reduce_sum(used)
    gradients = {
        name: torch.zeros_like(parameter) if gradient is None else gradient.contiguous()
        for (name, parameter), gradient, count in zip(parameters.items(), found, used.tolist(), strict=True)
        if count
    }
    all_reduce_sum(*gradients.values())
    return gradients


def call_with(model: nn.Module, parameters: Mapping[str, Tensor], inputs: Any) -> Any:
    """Run the model with other parameters; its buffers stay unchanged."""
    values = {**{name: buffer.clone() for name, buffer in model.named_buffers()}, **parameters}
    inputs = in_model_dtype(inputs, model)
    if isinstance(inputs, Mapping):
        return functional_call(model, values, (), keywords(model, inputs))
    return functional_call(model, values, tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,))


@contextmanager
def _same_randomness(device: torch.device) -> Iterator[Callable[[], None]]:
    """Yield a function that resets the random generators to their present state; the end undoes the first reset."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    later: list[Any] = []

    def rewind() -> None:
        later.append((torch.get_rng_state(), torch.cuda.get_rng_state(device) if cuda is not None else None))
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)

    yield rewind
    if later:
        torch.set_rng_state(later[0][0])
        if cuda is not None:
            torch.cuda.set_rng_state(later[0][1], device)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def _split(batch: Any) -> tuple[Any, Tensor, Tensor | None]:
    if isinstance(batch, Mapping):
        index = batch.get("index")
        inputs, labels = split_labels({name: value for name, value in batch.items() if name != "index"})
    else:
        index = batch[2] if len(batch) > 2 else None
        inputs, labels = split_labels(batch[:2])
    return inputs, labels, index


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Mapping):
        return {name: value.to(device) for name, value in batch.items()}
    return [value.to(device) for value in batch]


def _count_classes(model: nn.Module, training: Samples) -> int:
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "num_labels"):
        return int(config.num_labels)
    labels = [torch.as_tensor(split_labels(sample)[1]) for sample in take(training)]
    if not labels:
        raise CalibrationError("no training samples", expected="at least two classes")
    for number, label in enumerate(labels):
        if label.ndim or label.is_floating_point():
            found = f"{label.dtype} of shape {tuple(label.shape)}"
            raise ShapeError(f"label of sample {number}", found=found, expected="one class index")
    return int(torch.stack(labels).max()) + 1


def _numbered(sample: Any, number: int) -> Any:
    """A sample with its number, from which the rescaler keeps its weight."""
    index = torch.tensor(number)
    return {**sample, "index": index} if isinstance(sample, Mapping) else (*sample, index)
