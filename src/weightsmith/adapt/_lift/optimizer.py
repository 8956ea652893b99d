"""The optimizer: Adam whose moments exist for the principal weights only.

Legend: ``O`` outputs, ``I`` inputs, ``S`` the shorter side, ``R`` the rank, ``K`` the weights trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightsmith.adapt._lift.groups import approx_rank as rank_of, budget, check_group, has_budget, names
from weightsmith.core.errors import (
    CheckpointError,
    HyperparameterError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.io import SparseDelta
from weightsmith.core.linalg import is_finite, project, randomized_singular_basis, refine_singular_basis, singular_basis
from weightsmith.core.processes import refuse_several_processes
from weightsmith.core.selection import largest_k
from weightsmith.core.sharding import like_parameter, read_places, whole, write_places

__all__ = ["LIFTAdamW"]

EXACT_UP_TO = 1024
"""Matrices whose shorter side is longer than this get a randomized basis by default."""

NITER = 8
"""Power iterations of a randomized basis by default."""


class LIFTAdamW(torch.optim.Optimizer):
    r"""AdamW on the principal weights of every matrix; the others stay unchanged, bit for bit.

    .. math::

        m \leftarrow \beta_1 m + (1 - \beta_1)\, g_M, \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g_M^2, \qquad
        W_M \leftarrow W_M - \eta\, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}\, \frac{m}{\sqrt v + \epsilon}

    Parameters
    ----------
    params : iterable
        What :func:`lift_groups` returns, or parameters, or groups of them. A group may have its own value of every
        hyper-parameter below; one with ``density=None`` and ``lora_rank=None`` is trained whole, of any shape.
    lr : float, default: 2e-4
        Learning rate; two to four times that of full fine-tuning.
    betas : (float, float), default: (0.9, 0.95)
        Decay of the moments, each in [0, 1).
    eps : float, default: 1e-6
        Added to :math:`\sqrt v` before the bias correction.
    weight_decay : float, default: 0.0
        Decoupled, of the trained weights only.
    density : float or None, default: 0.05
        Share of a matrix that is trained, in (0, 1].
    lora_rank : int, optional
        Instead of ``density``: train as many weights as LoRA of this rank would, ``lora_rank * (out + in)``.
    approx_rank : int, optional
        Rank :math:`R` of the approximation; 64, or half of the shorter side if that is less, by default. The whole
        shorter side gives the weights of largest magnitude.
    update_interval : int or None, default: 200
        Steps from one choice of the weights to the next; None keeps the first choice.
    niter : int, optional
        Power iterations of a randomized low-rank approximation. By default the approximation is exact for matrices
        whose shorter side is at most 1024, and takes 8 for larger ones. Later choices start from the basis of the
        one before and need one.
    max_grad_norm : float, optional
        Upper bound of the norm of the trained weights' gradient, over all groups. (Clipping outside of the optimizer
        counts the gradients of all weights, twenty times as many.)
    free_gradients : bool, default: False
        During ``backward``, keep of each gradient the trained weights' part and free the rest, so that at most one
        layer's dense gradient exists. Works with gradient accumulation, in one process, without a GradScaler. What
        clips gradients outside, such as the ``Trainer``, finds none: set ``max_grad_norm`` here. Only
        :meth:`zero_grad` of the optimizer forgets the parts.
    generator : torch.Generator, optional
        Of the randomized approximation. Under data parallelism it must be the same on every process.

    Raises
    ------
    HyperparameterError
        If a hyper-parameter is out of range.
    NonFiniteError
        If a weight holds NaN or infinity when weights are chosen.
    ShapeError
        If a vector is in a group with a budget.
    UnsupportedModelError
        If a parameter is quantized, complex or on the meta device, or its gradient is sparse. With ``free_gradients``
        also in several processes and under a GradScaler.

    Notes
    -----
    The state of a trained weight: its index (int32), both moments (float32) and, for bfloat16 and float16 weights,
    its value in float32, without which small steps would be rounded away. Weights are chosen at the first step, on
    the device they are on then. The first choice is renewed before step ``update_interval``, then after as many
    steps each, as in the paper; the step count never starts over.

    Parameters may be sharded (FSDP2, DTensor). A matrix is gathered to choose its weights, one at a time; the state is
    that of the whole matrix on every process, and the processes exchange the gradients of the trained weights.

    References
    ----------
    Liu, Pang, Balabanov, et al., arXiv 2506.00772.

    Examples
    --------
    >>> from weightsmith.adapt import lift_groups
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 1))
    >>> before = model[0].weight.detach().clone()
    >>> optimizer = LIFTAdamW(lift_groups(model, density=0.05), lr=1e-3)
    >>> model(torch.rand(8, 64)).square().mean().backward()
    >>> optimizer.step()
    >>> int((model[0].weight != before).sum()), round(0.05 * 64 * 32)
    (102, 102)
    """

    keeps_float = True
    """Small steps on weights of half precision are not lost, see :func:`~weightsmith.core.training.float_steps`."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        density: float | None = 0.05,
        lora_rank: int | None = None,
        approx_rank: int | None = None,
        update_interval: int | None = 200,
        niter: int | None = None,
        max_grad_norm: float | None = None,
        free_gradients: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise HyperparameterError("max_grad_norm", found=max_grad_norm, expected="> 0")
        if free_gradients:
            refuse_several_processes(
                "free_gradients takes gradients before they are averaged over processes", do="Leave it out."
            )
            self._step_supports_amp_scaling = True  # a GradScaler then sets `found_inf`, by which `step` knows of it
        self.generator, self.max_grad_norm, self.free_gradients = generator, max_grad_norm, free_gradients
        self._kept: dict[Tensor, Tensor] = {}
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "density": None if lora_rank is not None else density,
            "lora_rank": lora_rank,
            "approx_rank": approx_rank,
            "update_interval": update_interval,
            "niter": niter,
            "stacked": False,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, refused before anything changes."""
        if "density" in param_group:
            param_group.setdefault("lora_rank", None)
        elif "lora_rank" in param_group:
            param_group["density"] = None
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(group)
        except Exception:  # whatever is wrong with it, the group must not stay
            self.param_groups.pop()
            raise
        self._free_gradients(len(self.param_groups) - 1)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs, which torch's optimizers leave out of their subclasses."""
        own = {name: getattr(self, name) for name in ("generator", "max_grad_norm", "free_gradients", "_kept")}
        return super().__getstate__() | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take it over, and watch the gradients of the copied parameters."""
        super().__setstate__(state)
        if "free_gradients" in state:  # torch also comes here to load a state dict
            for position in range(len(self.param_groups)):
                self._free_gradients(position)

    def _free_gradients(self, position: int) -> None:
        """Keep the trained weights' part of the gradients of a group as soon as they are there."""
        group = self.param_groups[position]
        if self.free_gradients and has_budget(group):
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(
                    lambda parameter: self._keep_part_of_gradient(parameter, self.param_groups[position])
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient are left out."""
        if vars(self).pop("found_inf", None) is not None:
            raise UnsupportedModelError(
                "a GradScaler needs the gradients that are freed", do="Leave free_gradients out, or train in bfloat16."
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work: list[tuple[dict[str, Any], list[Tensor], list[Tensor]]] = []
        for group in self.param_groups:
            found = [(parameter, self._gradient(parameter, group)) for parameter in group["params"]]
            pairs = [(parameter, gradient) for parameter, gradient in found if gradient is not None]
            if pairs:
                work.append((group, [parameter for parameter, _ in pairs], [gradient for _, gradient in pairs]))
        if self.max_grad_norm is not None and work:
            norm = nn.utils.get_total_norm([gradient for _, _, gradients in work for gradient in gradients])
            scale = (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            work = [(group, parameters, list(torch._foreach_mul(g, scale))) for group, parameters, g in work]
        for group, parameters, gradients in work:
            self._update(group, parameters, gradients)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, the kept parts too."""
        super().zero_grad(set_to_none)
        self._kept.clear()

    def select(self, parameter: Tensor, group: Mapping[str, Any]) -> Int[Tensor, "K"]:
        """Choose the weights to train: flat indices, ascending; of a stack of experts for each alone."""
        if not group.get("stacked"):
            return self.select_matrix(whole(parameter.detach()).flatten(1), group, self.state[parameter], "basis")
        size = parameter[0].numel()
        parts = [
            number * size + self.select_matrix(matrix_OI, group, self.state[parameter], f"basis_{number}")
            for number, matrix_OI in enumerate(whole(parameter.detach()))
        ]
        return torch.cat(parts)

    def select_matrix(
        self, matrix_OI: Float[Tensor, "O I"], group: Mapping[str, Any], state: dict[str, Any], key: str
    ) -> Int[Tensor, "K"]:
        """Choose the weights of one matrix. A subclass may follow another criterion.

        The basis of a randomized approximation is stored in ``state[key]``, for the next choice to start from.
        """
        count, rank = budget(matrix_OI, {**group, "stacked": False}), rank_of(matrix_OI, group)
        if rank == min(matrix_OI.shape) or count == matrix_OI.numel():
            return largest_k(matrix_OI, count)
        if group["niter"] is None and min(matrix_OI.shape) <= EXACT_UP_TO:
            return largest_k(project(matrix_OI, singular_basis(matrix_OI, rank)), count)
        if key in state:
            basis_SR = refine_singular_basis(matrix_OI, state[key])
        else:
            niter = NITER if group["niter"] is None else group["niter"]
            basis_SR = randomized_singular_basis(matrix_OI, rank, niter=niter, generator=self.generator)
        if group["update_interval"] is not None:
            state[key] = basis_SR.bfloat16()
        return largest_k(project(matrix_OI, basis_SR), count)

    def trained(self) -> int:
        """Count the weights that a step changes."""
        return sum(budget(parameter, group) for group in self.param_groups for parameter in group["params"])

    def sparse_delta(self, base: Mapping[str, Tensor]) -> SparseDelta:
        """Return what the optimizer's parameters changed, to be saved and applied to the base model.

        Parameters
        ----------
        base : mapping of str to Tensor
            State dict (a copy) of the model before training.

        Raises
        ------
        HyperparameterError
            If the optimizer does not know its parameters' names; :func:`lift_groups` gives them.
        """
        named: dict[str, Tensor] = {}
        for group in self.param_groups:
            if "param_names" not in group:
                raise HyperparameterError(
                    "parameters without names", do="Build the groups with lift_groups or pass (name, parameter) pairs."
                )
            named.update(zip(group["param_names"], map(whole, group["params"]), strict=True))
        return SparseDelta.between(base, named)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state: the chosen weights with it, as they cannot be found again from weights that have moved on.

        Raises
        ------
        CheckpointError
            If the state is damaged.
        ShapeError
            If the state belongs to parameters of other sizes.
        """
        _check_complete(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=False):
            _check_state(state_dict["state"].get(number, {}), parameter)
        # torch would cast indices and moments to the weights' type
        super().load_state_dict({**state_dict, "state": {}})
        for number, parameter in zip(numbers, parameters, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                copied = value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value
                self.state[parameter][key] = copied

    def _begin(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
        """The parameter's state, made at its first use."""
        state = self.state[parameter]
        if "step" not in state:
            index = self._choose(parameter, group) if has_budget(group) else None
            values = _read(parameter, index)
            state["step"] = 0
            if index is not None:
                state["index"] = index
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(values), torch.zeros_like(values)
        return state

    def _choose(self, parameter: Tensor, group: Mapping[str, Any]) -> Int[Tensor, "K"]:
        if not is_finite(parameter.detach()):
            name = names(group)[[id(p) for p in group["params"]].index(id(parameter))]
            raise NonFiniteError(f"weights of {name!r} hold NaN or infinity", do="Restore them from a checkpoint.")
        return self.select(parameter, group).to(torch.int32 if parameter.numel() < 2**31 else torch.int64)

    def _keep_part_of_gradient(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        with torch.no_grad():
            part = self._gradient(parameter, group)
        parameter.grad = None
        if part is not None:
            self._kept[parameter] = part

    def _gradient(self, parameter: Tensor, group: Mapping[str, Any]) -> Float[Tensor, "K"] | None:
        """The trained weights' gradient in the precision of the moments; parts kept earlier are added."""
        kept = self._kept.pop(parameter, None)
        if parameter.grad is None:
            return kept
        if parameter.grad.is_sparse:
            raise UnsupportedModelError("a sparse gradient", do="Use sparse=False in the embedding.")
        gradient = _read(like_parameter(parameter), self._begin(parameter, group).get("index"))
        return gradient if kept is None else kept + gradient

    def _update(self, group: Mapping[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        states = [self._begin(parameter, group) for parameter in parameters]
        values = [_exact(parameter, state) for parameter, state in zip(parameters, states, strict=True)]
        firsts, seconds = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        (beta1, beta2), rate = group["betas"], float(group["lr"])
        sizes = []
        for state in states:
            state["step"] += 1
            sizes.append(-rate * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"]))
        if group["weight_decay"]:
            torch._foreach_mul_(values, 1 - rate * group["weight_decay"])
        torch._foreach_mul_(firsts, beta1)
        torch._foreach_add_(firsts, gradients, alpha=1 - beta1)
        torch._foreach_mul_(seconds, beta2)
        torch._foreach_addcmul_(seconds, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(seconds)
        torch._foreach_add_(roots, group["eps"])  # before the bias correction, as in the paper's code
        torch._foreach_addcdiv_(values, firsts, roots, sizes)
        for parameter, state, value in zip(parameters, states, values, strict=True):
            write_places(parameter, state.get("index"), value)
            interval = group["update_interval"]
            if "index" in state and interval is not None and (state["step"] + 1) % interval == 0:
                self._renew(parameter, group, state)

    def _renew(self, parameter: Tensor, group: Mapping[str, Any], state: dict[str, Any]) -> None:
        """Choose again; weights that were trained before keep their moments, new ones start at zero."""
        old, new = state["index"], self._choose(parameter, group)
        place = torch.searchsorted(old, new).clamp(max=len(old) - 1)
        stayed = old[place] == new
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = state[key][place] * stayed
        if "value" in state:
            state["value"] = torch.where(stayed, state["value"][place], _read(parameter, new))
        state["index"] = new


def _exact(parameter: Tensor, state: dict[str, Any]) -> Float[Tensor, "K"]:
    """The trained weights, at least in float32; those that somebody else has set since the last step are taken over."""
    now = _read(parameter, state.get("index"))
    if now.dtype != parameter.dtype:
        if "value" in state:
            now = torch.where(state["value"].to(parameter.dtype) == now.to(parameter.dtype), state["value"], now)
        state["value"] = now
    return now


def _check_complete(state_dict: Mapping[str, Any]) -> None:
    try:
        parts = [state for state in state_dict["state"].values() if state]
        complete = all(part.keys() >= {"step", "exp_avg", "exp_avg_sq"} for part in parts)
        complete &= all(group.keys() >= {"params", "density"} for group in state_dict["param_groups"])
    except (KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise CheckpointError("optimizer state", found="parts are missing", do="Take a state that a LIFTAdamW saved.")


def _check_state(state: Mapping[str, Any], parameter: Tensor) -> None:
    if not state:
        return
    index, size = state.get("index"), state["exp_avg"].numel()
    fits = size == parameter.numel() if index is None else len(index) == size and int(index.max()) < parameter.numel()
    if not fits:
        raise ShapeError("optimizer state", found=f"{size} moments", expected=f"those of {tuple(parameter.shape)}")


def _read(tensor: Tensor, index: Int[Tensor, "K"] | None) -> Float[Tensor, "K"]:
    """Values at flat places (all by default), at least in float32."""
    values = read_places(tensor, index)
    return values if values.dtype == torch.float64 else values.float()
