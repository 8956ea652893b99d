"""Train many small networks of one architecture at once.

Their parameters are stacked, one ``vmap`` computes all gradients, and torch's optimizers, which work element by
element, take exactly the steps that they would take for each network alone. The operations of a step are recorded once
per size of the batch, and replayed: Python's share of a step is most of it for small networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.optim.lr_scheduler import LRScheduler

from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError, UnsupportedModelError
from weightsmith.core.jobs import Backend, run_jobs
from weightsmith.core.models import has_batchnorm

__all__ = ["Task", "train_many"]

_ADAM = partial(torch.optim.Adam, lr=1e-3)


class Task(NamedTuple):
    """The training data of one network, or of several, stacked.

    Attributes
    ----------
    inputs : Tensor of shape ([members,] samples, ...)
        Inputs of the network.
    labels : Tensor of shape ([members,] samples)
        Classes.
    """

    inputs: Tensor
    labels: Tensor


def train_many(
    build: Callable[[], nn.Module],
    tasks: Task,
    *,
    optimizer: Callable[[Any], torch.optim.Optimizer] = _ADAM,
    steps: int = 200,
    batch_size: int | None = None,
    order: Sequence[Int[Tensor, "members batch"]] | None = None,
    scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    same_start: bool = True,
    seed: int = 0,
    keep_diverged: bool = False,
    workers: int = 1,
    backend: Backend = "processes",
) -> list[dict[str, Tensor]]:
    """Train one small network per task, all at once.

    Parameters
    ----------
    build : callable
        Makes the network. It must have no batch normalization, whose statistics ``vmap`` cannot update.
    tasks : Task
        Inputs of shape (members, samples, ...) and labels of shape (members, samples).
    optimizer : callable, default: Adam with rate 1e-3
        Given parameters, returns an optimizer that works element by element: SGD, Adam, AdamW, RMSprop.
    steps : int, default: 200
        Optimizer steps.
    batch_size : int, optional
        Samples per step and member, drawn with replacement at the same positions for all; all samples by default.
    order : sequence of Tensor of shape (members, batch), optional
        Positions of each member's samples at each step, in place of ``steps`` and ``batch_size``.
    scheduler : callable, optional
        Given the optimizer, returns one of torch's schedulers; it is called after every step.
    same_start : bool, default: True
        Start all members from the same weights. Networks from different starts differ by permutations of their units,
        which an autoencoder of weights cannot learn.
    seed : int, default: 0
        Of the initial weights and the batches.
    keep_diverged : bool, default: False
        Return members that diverge with the NaN or infinite weights that they end with, in place of an error.
    workers, backend
        Split the members among several processes, see :func:`~weightsmith.core.jobs.run_jobs`.

    Returns
    -------
    list of dict of str to Tensor
        One state dict per member.

    Raises
    ------
    ShapeError
        If inputs and labels do not have the same members and samples.
    HyperparameterError
        If a count is out of range.
    NonFiniteError
        If a member diverges.
    UnsupportedModelError
        If the network has batch normalization.

    Examples
    --------
    >>> x = torch.randn(3, 20, 2, generator=torch.Generator().manual_seed(0))
    >>> states = train_many(lambda: nn.Linear(2, 2), Task(x, (x[..., 0] > 0).long()), steps=5)
    >>> len(states), states[0]["weight"].shape
    (3, torch.Size([2, 2]))
    """
    if tasks.labels.ndim != 2 or tasks.inputs.shape[:2] != tasks.labels.shape:
        found = f"inputs {tuple(tasks.inputs.shape)}, labels {tuple(tasks.labels.shape)}"
        raise ShapeError("tasks", found=found, expected="(members, samples, ...) and (members, samples)")
    for name, value in (("steps", steps), ("batch_size", batch_size or 1)):
        if value < 1:
            raise HyperparameterError(name, found=value, expected=">= 1")
    drawn = _drawn(tasks.labels, steps, batch_size, seed) if order is None else order
    train = partial(
        _train_part,
        build=build,
        optimizer=optimizer,
        scheduler=scheduler,
        same=same_start,
        seed=seed,
        keep=keep_diverged,
    )
    jobs = []
    for part in np.array_split(np.arange(len(tasks.labels)), min(workers, len(tasks.labels))):
        own = slice(part[0], part[-1] + 1)
        steps_of_part = [None if rows is None else rows[own] for rows in drawn]
        jobs.append((part.tolist(), Task(tasks.inputs[own], tasks.labels[own]), steps_of_part))
    return [state for states in run_jobs(train, jobs, workers=workers, backend=backend) for state in states]


def _drawn(
    labels: Int[Tensor, "members samples"], steps: int, batch_size: int | None, seed: int
) -> Sequence[Int[Tensor, "members batch"] | None]:
    """The same positions for all members at each step; None stands for all samples."""
    if batch_size is None:
        return [None] * steps
    members, samples = labels.shape
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(samples, (batch_size,), generator=draw).expand(members, -1) for _ in range(steps)]


def _train_part(
    job: tuple[list[int], Task, Sequence[Tensor | None]],
    *,
    build: Callable[[], nn.Module],
    optimizer: Callable[[Any], torch.optim.Optimizer],
    scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None,
    same: bool,
    seed: int,
    keep: bool,
) -> list[dict[str, Tensor]]:
    members, (inputs, labels), order = job
    networks = []
    with torch.random.fork_rng():
        for member in members:
            torch.manual_seed(seed if same else seed + member)
            networks.append(build().train())
    if has_batchnorm(networks[0]):
        raise UnsupportedModelError("networks trained at once cannot have batch normalization", do="Use group norm.")
    parameters, buffers = stack_module_state(networks)
    base = networks[0]

    def loss(own: dict[str, Tensor], kept: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(base, (own, kept), (x,)), y)

    gradients = vmap(grad_and_value(loss), randomness="different")
    values = {name: parameter.detach() for name, parameter in parameters.items()}
    recorded: dict[int, Callable[..., Any]] = {}
    step = optimizer(list(parameters.values()))
    schedule = None if scheduler is None else scheduler(step)
    everyone = torch.arange(len(members))[:, None]
    for number, rows in enumerate(order):
        x, y = (inputs, labels) if rows is None else (inputs[everyone, rows], labels[everyone, rows])
        with torch.no_grad():
            if y.shape[1] not in recorded:
                recorded[y.shape[1]] = make_fx(gradients)(values, buffers, x, y)
            found, value = recorded[y.shape[1]](values, buffers, x, y)
        _check_losses(value, members, number, keep)
        for name, parameter in parameters.items():
            parameter.grad = found[name]
        step.step()
        if schedule is not None:
            schedule.step()
    stacked = {**parameters, **buffers}
    return [{name: tensor[i].detach().clone() for name, tensor in stacked.items()} for i in range(len(members))]


def _check_losses(value: Float[Tensor, " members"], members: Sequence[int], number: int, keep: bool) -> None:
    if not keep and not bool(value.isfinite().all()):
        member = members[int((~value.isfinite()).nonzero()[0])]
        raise NonFiniteError(f"the loss of member {member} at step {number + 1}", do="Lower the learning rate.")
