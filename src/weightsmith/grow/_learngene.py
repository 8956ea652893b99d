r"""Learngene by stage-wise weight sharing: distil a model into a few shared blocks, then expand them to any depth.

"Exploring Learngene via Stage-wise Weight Sharing for Initializing Variable-sized Models" (Xia et al., IJCAI 2024),
arXiv 2404.16897. The positions of a stack of blocks are cut into stages, in order; all positions of a stage use the
same weights :math:`\theta_s`, so that a block learns to be applied several times:

.. math:: x_{l+1} = B(x_l;\ \theta_{s(l)}), \qquad L = \mathrm{KL}\bigl(p_T \,\Vert\, p_S\bigr)

with :math:`p_T` the probabilities of a trained teacher. The learngene consists of one block per stage and all modules
outside the stack. A model of depth :math:`L` has at position :math:`l` a copy of block :math:`m(l)`, with :math:`m` in
order and evenly spaced; its blocks no longer share weights.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from pathlib import Path
from typing import Any, Unpack

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from weightsmith.core.choices import check_whole
from weightsmith.core.data import Samples, take
from weightsmith.core.errors import (
    CheckpointError,
    HyperparameterError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.io import atomic_output, parse_json
from weightsmith.core.models import HEAD_COUNTS, Stack, block_difference, evaluation_mode, find_stack, get_module
from weightsmith.core.results import Result, record
from weightsmith.core.training import (
    FitOptions,
    check_options,
    draw_seed,
    fit,
    restored_on_error,
    seed_of,
    training_method,
)
from weightsmith.grow._distil import agreement, decaying_adamw, distil
from weightsmith.grow._expand import (
    assign,
    check_assignment,
    expand_blocks,
    set_blocks,
    warn_of_unused,
)

__all__ = [
    "NOT_SHARED",
    "Learngene",
    "StagePlan",
    "learngene",
    "retention",
    "share_stages",
]

NOT_SHARED = ("*bias_table*", "*relative_attention_bias*", "*sinks*", "*layer_scale*", "*lambda_?", "*ls?.gamma")
"""Parameters that belong to a position of the stack: each position keeps its own."""


@dataclass(frozen=True)
class StagePlan:
    """How the positions of a stack are cut into stages.

    Attributes
    ----------
    stack : str
        Where the stack is, as for :func:`weightsmith.core.models.find_stack`.
    stages : tuple of int
        Positions of each stage, in order.
    own : tuple of str
        Names inside a block of what every position keeps of its own: batch normalization and the parameters of
        :data:`NOT_SHARED`.
    """

    stack: str | None
    stages: tuple[int, ...]
    own: tuple[str, ...] = ()

    def positions(self, assignment: Sequence[int]) -> list[int]:
        """Return for each block of a descendant the position it is copied from.

        The blocks of a stage come from positions evenly spaced in it, so that with the plan's own layout every
        position is copied from itself.

        Examples
        --------
        >>> StagePlan(None, (3, 3)).positions([0, 0, 0, 1])
        [0, 1, 2, 4]
        """
        starts = [0, *accumulate(self.stages)]
        seen: dict[int, int] = {}
        positions = []
        for stage in assignment:
            nth, uses = seen.get(stage, 0), list(assignment).count(stage)
            seen[stage] = nth + 1
            positions.append(starts[stage] + (2 * nth + 1) * self.stages[stage] // (2 * uses))
        return positions


def share_stages(
    model: nn.Module,
    stages: Sequence[int] = (3, 3, 4, 3, 3),
    *,
    stack: str | None = None,
    own: Sequence[str] = NOT_SHARED,
) -> StagePlan:
    """Make all positions of a stage use the weights of the stage's middle block.

    Every position keeps its own module, with its place in a key-value cache, its drop-path rate, its batch
    normalization; only the parameters are one. ``model.parameters()`` and optimizers see each once.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    stages : sequence of int, default: (3, 3, 4, 3, 3)
        Positions of each stage; they sum to the depth.
    stack : str, optional
        Where the blocks are, as for :func:`weightsmith.core.models.find_stack`.
    own : sequence of str
        Shell patterns on parameter names that positions do not share. Batch normalization never is.

    Returns
    -------
    StagePlan
        What :class:`Learngene` needs to know.

    Raises
    ------
    HyperparameterError
        If a stage is empty or the stages do not sum to the depth.
    LayerNotFoundError, UnsupportedModelError
        As :func:`weightsmith.core.models.find_stack`.

    Examples
    --------
    >>> model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)])
    >>> plan = share_stages(model, (2, 3), stack="")
    >>> len(list(model.parameters())), model[2].weight is model[4].weight
    (4, True)
    """
    found = find_stack(model, stack)
    if any(size < 1 for size in stages) or sum(stages) != len(found):
        raise HyperparameterError(
            f"stages {list(stages)} sum to {sum(stages)} but the model has {len(found)} blocks",
            expected="stages of at least one block that sum to the depth",
        )
    kept = _own(found.blocks[0], own)
    starts = [0, *accumulate(stages)]
    with restored_on_error(model, values=False):
        for start, size in zip(starts, stages, strict=False):
            shared = dict(found.blocks[start + size // 2].named_parameters())
            for block in found.blocks[start : start + size]:
                for name, parameter in shared.items():
                    if name not in kept:
                        path, _, attribute = name.rpartition(".")
                        setattr(get_module(block, path), attribute, parameter)
    return StagePlan(stack, tuple(stages), kept)


class Learngene:
    """What the stages have learned: one block each, and all of the model outside its stack.

    Parameters
    ----------
    model : nn.Module
        The model that :func:`share_stages` changed; not copied.
    plan : StagePlan
        What it returned.

    Examples
    --------
    >>> model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    >>> gene = Learngene(model, share_stages(model, (2, 2), stack=""))
    >>> len(gene.expand(7)), gene.parameters
    (7, 40)
    """

    def __init__(self, model: nn.Module, plan: StagePlan) -> None:
        self.model, self.plan = model, plan

    @property
    def parameters(self) -> int:
        """Parameters to store, whatever the depth."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def expand(self, depth: int, *, assignment: Sequence[int] | None = None, strict_order: bool = True) -> nn.Module:
        """Return a new model of any depth.

        Parameters
        ----------
        depth : int
            Its blocks. With as many as there are stages it is the learngene itself as an ordinary model, which can be
            saved as one and expanded later by :func:`weightsmith.grow.expand`.
        assignment : sequence of int, optional
            For each block its stage; :func:`weightsmith.grow._expand.assign` by default.
        strict_order : bool, default: True
            Refuse an assignment that returns to an earlier stage.

        Returns
        -------
        nn.Module
            In evaluation mode; no two blocks share weights, what else was tied stays tied.

        Raises
        ------
        HyperparameterError
            If ``depth`` or ``assignment`` is out of range or out of order.
        """
        stages = check_assignment(assignment, depth, len(self.plan.stages), "stages", strict_order)
        warn_of_unused(stages, len(self.plan.stages), "stages")
        return expand_blocks(self.model, find_stack(self.model, self.plan.stack), self.plan.positions(stages)).eval()

    @torch.no_grad()
    def initialize(
        self,
        target: nn.Module,
        *,
        assignment: Sequence[int] | None = None,
        strict_order: bool = True,
        allow_head_mismatch: bool = False,
    ) -> list[str]:
        """Write the weights of a descendant into a model that exists, of any depth and perhaps for other classes.

        Parameters
        ----------
        target : nn.Module
            Changed in place.
        assignment, strict_order
            As for :meth:`expand`.
        allow_head_mismatch : bool, default: False
            Also where attention has other heads, which then do not compute what they have learned.

        Returns
        -------
        list of str
            Parameters and buffers of the target that were left unchanged, such as a classifier of other classes.

        Raises
        ------
        HyperparameterError
            As :meth:`expand`.
        ShapeError
            If something other than a linear layer outside the stack does not fit.
        UnsupportedModelError
            If blocks differ in shape, heads, epsilon or class of a module.
        """
        ours, theirs = find_stack(self.model, self.plan.stack), find_stack(target, self.plan.stack)
        if difference := block_difference(
            ours.blocks[0], theirs.blocks[0], ignore=HEAD_COUNTS if allow_head_mismatch else ()
        ):
            raise UnsupportedModelError(f"blocks of learngene and target differ: {difference}")
        stages = check_assignment(assignment, len(theirs), len(self.plan.stages), "stages", strict_order)
        sources = [ours.blocks[position] for position in self.plan.positions(stages)]
        mine, fresh = _outer_state(self.model, ours), []
        writes: list[tuple[Tensor, Tensor]] = []
        for name, tensor in _outer_state(target, theirs).items():
            if name in mine and mine[name].shape == tensor.shape:
                writes.append((tensor, mine[name]))
            elif isinstance(get_module(target, name.rpartition(".")[0]), nn.Linear):
                fresh.append(name)
            else:
                found = tuple(mine[name].shape) if name in mine else "none"
                raise ShapeError(f"{name!r} of the learngene", found=found, expected=tuple(tensor.shape))
        for source, block in zip(sources, theirs.blocks, strict=True):
            state = source.state_dict()
            writes += [(tensor, state[name]) for name, tensor in block.state_dict().items()]
        with restored_on_error(target):
            for tensor, value in writes:
                tensor.copy_(value)
        return fresh

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a safetensors file with every tensor once.

        Parameters
        ----------
        path : path-like
            Ends in ``.safetensors``.
        overwrite : bool, default: False
            Replace an existing file.

        Raises
        ------
        CheckpointError
            If the file exists or cannot be written.
        """
        if Path(path).suffix != ".safetensors":
            raise CheckpointError(f"learngene file {str(path)!r}", expected="a name that ends in .safetensors")
        tensors = {name: tensor.detach().contiguous() for name, tensor in _once(self.model).items()}
        plan = {"stack": self.plan.stack, "stages": self.plan.stages, "own": self.plan.own}
        with atomic_output(path, overwrite=overwrite) as target:
            save_file(tensors, target, metadata={"format": "pt", "learngene": json.dumps(plan)})

    @classmethod
    @torch.no_grad()
    def load(cls, path: str | os.PathLike[str], model: nn.Module) -> Learngene:
        """Read a learngene into a model made as the one it was saved from, whose weights do not matter.

        Parameters
        ----------
        path : path-like
            Written by :meth:`save`.
        model : nn.Module
            With as many blocks as the stages have positions; changed in place.

        Raises
        ------
        CheckpointError
            If the file is damaged, is no learngene, or does not fit the model.
        HyperparameterError
            If the model has another number of blocks.
        """
        try:
            with safe_open(path, framework="pt") as file:
                plan_text = (file.metadata() or {}).get("learngene")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {path}", found=error) from error
        if plan_text is None:
            raise CheckpointError(f"{path} is no learngene", do="Write one with Learngene.save.")
        stored = parse_json(plan_text, str(path))
        try:
            stages, stack, own = [int(size) for size in stored["stages"]], stored["stack"], stored["own"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged", found=error, do="Copy the file again.") from error
        with restored_on_error(model):
            plan = share_stages(model, stages, stack=stack, own=own)
            places = _once(model)
            if odd := sorted({*places} ^ {*tensors}) or [n for n in places if places[n].shape != tensors[n].shape]:
                raise CheckpointError(f"{path} does not fit the model", found=f"tensors such as {odd[:3]}")
            for name, place in places.items():
                place.copy_(tensors[name])
        return cls(model.eval(), plan)


def retention(gene: Learngene, evaluate: Callable[[nn.Module], float], depths: Iterable[int]) -> Result:
    """Measure models of several depths before any training of their own.

    Parameters
    ----------
    gene : Learngene
        The learngene. The shared model is measured, too.
    evaluate : callable
        From a model to a score that is better when higher, such as an accuracy.
    depths : iterable of int
        Depths to try.

    Returns
    -------
    Result
        One row per depth: ``score``, and ``retention``, the score over that of the shared model.

    Examples
    --------
    >>> model = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(2)]).requires_grad_(False)
    >>> _ = [block.weight.fill_(0.5) for block in model]
    >>> gene = Learngene(model, share_stages(model, (2,), stack=""))
    >>> score = lambda model: model(torch.ones(1, 1)).item()
    >>> [row["retention"] for row in retention(gene, score, [1, 2, 3]).layers]
    [2.0, 1.0, 0.5]
    """
    with record("learngene", stages=list(gene.plan.stages)) as result, evaluation_mode(gene.model):
        shared = float(evaluate(gene.model))
        for depth in depths:
            score = float(evaluate(gene.expand(depth)))
            result.layer(f"depth {depth}", score=score, retention=score / shared if shared else float("nan"))
        result.totals = {"score": shared, "parameters": gene.parameters}
    return result


@training_method(learning_rate=5e-4, weight_decay=0.05, batch_size=8, scheduler="cosine", warmup=0.05)
def learngene(
    model: nn.Module,
    training: Samples,
    *,
    teacher: nn.Module,
    stages: int = 5,
    sizes: Sequence[int] | None = None,
    depth: int | None = None,
    stack: str | None = None,
    alpha: float = 1.0,
    temperature: float = 1.0,
    tune_epochs: int = 0,
    tune_learning_rate: float = 5e-5,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Distil a teacher into a model whose blocks share weights by stages, then expand it to any depth.

    Parameters
    ----------
    model : nn.Module
        The model to train; each stage starts as its middle block. It has ``depth`` blocks at the end.
    training : sequence of mapping
        Samples with the models' inputs; the last tenth is held out to measure the agreement with the teacher.
    teacher : nn.Module
        With the same classes (the same tokenizer): a copy of the model, or a larger one.
    stages : int, default: 5
        Blocks to keep.
    sizes : sequence of int, optional
        Positions of each stage; even by default. The paper has 3, 3, 4, 3, 3 of 16.
    depth : int, optional
        Blocks of the model at the end. By default one per stage: the learngene itself, which ``expand`` expands later.
    stack : str, optional
        Where the blocks are; found automatically in most models.
    alpha : float, default: 1.0
        Weight of the teacher against the labels.
    temperature : float, default: 1.0
        Temperature.
    tune_epochs : int, default: 0
        Passes over the samples with labels after the expansion to ``depth``. The paper has 10.
    tune_learning_rate : float, default: 5e-5
        Learning rate of these passes; their other training options are those below.
    generator : torch.Generator, optional
        Draws the order of the samples.
    **options
        Training options of the shared stages, see :class:`weightsmith.core.training.FitOptions`. The paper has 100 to
        150 epochs. The optimizer is AdamW, without weight decay of vectors.

    Returns
    -------
    Result
        For several depths, before any tuning: the agreement with the teacher's decisions and the divergence from its
        probabilities. Also the training losses.

    Raises
    ------
    HyperparameterError
        If a number is out of range, there are fewer than two samples, or the sizes do not sum to the depth.
    LayerNotFoundError, UnsupportedModelError
        As :func:`weightsmith.core.models.find_stack`.
    NonFiniteError, ShapeError
        As :func:`soft_target_loss`.

    References
    ----------
    Xia et al., arXiv 2404.16897.
    """
    found = find_stack(model, stack)
    if sizes is None:
        stages = check_whole("stages", stages, 1, len(found), f"The model has {len(found)} blocks.")
        whole = assign(len(found), stages)
        sizes = [whole.count(stage) for stage in range(stages)]
    depth = len(sizes) if depth is None else depth
    check_assignment(None, depth, len(sizes), "stages", True)
    check_options({"learning_rate": tune_learning_rate}, prefix="tune_")
    if tune_epochs < 0:
        raise HyperparameterError("tune_epochs", found=tune_epochs, expected=">= 0")
    if len(training) < 2:
        raise HyperparameterError("training samples", found=len(training), expected="at least 2")
    held = max(1, len(training) // 10)
    seen, unseen = take(training, 0, len(training) - held), take(training, len(training) - held)
    seed = draw_seed(generator)
    hyper: dict[str, Any] = {"stages": len(sizes), "sizes": list(sizes), "depth": depth, "stack": stack}
    hyper |= {"alpha": alpha, "temperature": temperature}
    tuning: dict[str, Any] = {"tune_epochs": tune_epochs, "tune_learning_rate": tune_learning_rate}
    with record("learngene", seed=seed_of(generator), **hyper, **tuning, **options) as result:
        shared = copy.deepcopy(model)
        gene = Learngene(shared, share_stages(shared, sizes, stack=stack))
        run = distil(shared, teacher, seen, alpha=alpha, temperature=temperature, seed=seed, **options)
        for other in sorted({len(sizes), depth, len(found), 2 * len(found)}):
            result.layer(f"depth {other}", **agreement(gene.expand(other), teacher, unseen, options["batch_size"]))
        result.curves["training loss"] = run.losses
        grown = gene.expand(depth)
        if tune_epochs:
            options |= {"learning_rate": tune_learning_rate, "epochs": tune_epochs}
            optimizer = decaying_adamw(grown, tune_learning_rate, options["weight_decay"])
            result.curves["tuning loss"] = fit(grown, seen, optimizer=optimizer, seed=seed, **options).losses
        result.totals = {
            "blocks": depth,
            "trainable": gene.parameters,
            **agreement(grown, teacher, unseen, options["batch_size"]),
        }
        set_blocks(model, found, gene.plan.positions(assign(depth, len(sizes))))
        model.load_state_dict(grown.state_dict())
    return result


def _own(block: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """The parameters of a block that each position keeps: of batch normalization, or named by a pattern."""
    running = [
        f"{path}.{name}".lstrip(".")
        for path, module in block.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, _ in module.named_parameters(recurse=False)
    ]
    named = [name for name, _ in block.named_parameters() if any(fnmatchcase(name, p) for p in patterns)]
    return tuple(dict.fromkeys([*running, *named]))


def _outer_state(model: nn.Module, stack: Stack) -> dict[str, Tensor]:
    """The state outside the stack's blocks."""
    inside = tuple(f"{stack.name(block)}." for block in range(len(stack)))
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(inside)}


def _once(model: nn.Module) -> dict[str, Tensor]:
    """The state with every tensor under its first name only."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        first.setdefault(id(tensor), name)
    return {name: state[name] for name in first.values()}
