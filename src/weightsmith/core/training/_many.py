"""Train many small networks of one architecture at once.

Their parameters are stacked, one ``vmap`` computes all losses, and torch's optimizers, which work element by element,
take exactly the steps that they would take for each network alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

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
    same_start: bool = True,
    seed: int = 0,
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
    same_start : bool, default: True
        Start all members from the same weights. Networks from different starts differ by permutations of their units,
        which an autoencoder of weights cannot learn.
    seed : int, default: 0
        Of the initial weights and the batches.
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
    train = partial(
        _train_part, build=build, optimizer=optimizer, steps=steps, batch_size=batch_size, same=same_start, seed=seed
    )
    parts = np.array_split(np.arange(len(tasks.labels)), min(workers, len(tasks.labels)))
    jobs = [(part.tolist(), Task(tasks.inputs[part], tasks.labels[part])) for part in parts]
    return [state for states in run_jobs(train, jobs, workers=workers, backend=backend) for state in states]


def _train_part(
    job: tuple[list[int], Task],
    *,
    build: Callable[[], nn.Module],
    optimizer: Callable[[Any], torch.optim.Optimizer],
    steps: int,
    batch_size: int | None,
    same: bool,
    seed: int,
) -> list[dict[str, Tensor]]:
    members, (inputs, labels) = job
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

    losses = vmap(loss, randomness="different")
    step = optimizer(list(parameters.values()))
    draw = torch.Generator().manual_seed(seed)
    for number in range(steps):
        rows: Any = slice(None)
        if batch_size is not None:
            rows = torch.randint(labels.shape[1], (batch_size,), generator=draw)
        value: Float[Tensor, " members"] = losses(parameters, buffers, inputs[:, rows], labels[:, rows])
        if not bool(value.isfinite().all()):
            member = members[int((~value.isfinite()).nonzero()[0])]
            raise NonFiniteError(f"the loss of member {member} at step {number + 1}", do="Lower the learning rate.")
        step.zero_grad()
        value.sum().backward()
        step.step()
    stacked = {**parameters, **buffers}
    return [{name: tensor[i].detach().clone() for name, tensor in stacked.items()} for i in range(len(members))]
