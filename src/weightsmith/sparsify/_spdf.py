r"""SPDF: pre-train with most weights frozen at zero, then fine-tune all of them densely.

Thangarasa, Gupta, Marshall, Li, Leong, DeCoste, Lie, Saxena 2023, arXiv 2303.10464. A mask :math:`M`, drawn at random
once for every matrix of the transformer blocks, holds the same weights at zero through all of pre-training:

.. math::

    W \leftarrow W \odot M, \qquad \nabla_W L \leftarrow \nabla_W L \odot M,
    \qquad \lVert M \rVert_0 = \lfloor (1 - s) \, |W| \rfloor .

Fine-tuning then drops the masks, and the zeros are ordinary weights that start at zero. On hardware that skips zeros
the sparse phase saves the multiplications that :func:`forward_flops` counts. **On CPUs and GPUs an unstructured mask
saves no time**: a masked weight is multiplied all the same.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Unpack

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from weightsmith.core.choices import check_choice
from weightsmith.core.data import Batch, Samples, batched, call, take, to_model, without_labels
from weightsmith.core.errors import HyperparameterError, NonFiniteError, UnsupportedModelError
from weightsmith.core.models import (
    Layer,
    block_layers,
    evaluation_mode,
    exclude_frozen,
    unreached,
    watching_experts,
    writable,
)
from weightsmith.core.results import Result, record
from weightsmith.core.selection import keep_
from weightsmith.core.sharding import local, shard_like, split_again
from weightsmith.core.training import (
    FitOptions,
    check_options,
    draw_seed,
    fit,
    refuse_adapters,
    restored_on_error,
    seed_of,
    training_method,
)

__all__ = ["StaticSparsity", "forward_flops", "spdf"]

Start = Literal["random", "magnitude", "zeros"]


class StaticSparsity:
    """Holds the same weights at exactly zero through training, and releases them afterwards.

    The weights are set to zero and the masks registered as buffers ``weight_mask`` beside them, so they move with the
    model and are saved in its ``state_dict``. From then on the ``grad`` of masked weights is zero, which is all that
    AdamW and SGD need; :meth:`attach` gives the guarantee for any optimizer. The model may be sharded afterwards
    (FSDP2); the masks stay whole on every process.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    sparsity : float, default: 0.75
        Share of each matrix that is held at zero, in [0, 1).
    start : {"random", "magnitude", "zeros"}, default: "random"
        Which weights stay: drawn at random (the paper), the largest, or those that are not zero now (``sparsity`` is
        then not used).
    include, exclude : str or sequence of str
        Patterns on the paths of the matrices inside the model's blocks; embeddings, heads, norms and biases are
        always dense.
    generator : torch.Generator, optional
        Draws the random masks.

    Attributes
    ----------
    layers : list of Layer
        The masked layers.

    Raises
    ------
    HyperparameterError
        If ``sparsity`` is outside [0, 1) or leaves a layer no weight.
    UnsupportedModelError
        If a layer is masked already, tied to another module, or not of floating point.

    References
    ----------
    Thangarasa et al. 2023, arXiv 2303.10464.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    >>> sparse = StaticSparsity(model, 0.75, generator=torch.Generator().manual_seed(0))
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> sparse.attach(optimizer)
    >>> model(torch.randn(4, 8)).square().sum().backward()
    >>> optimizer.step()
    >>> int(model[0].weight.count_nonzero())
    16
    >>> sparse.densify()
    >>> list(model[0].state_dict())
    ['weight', 'bias']
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float = 0.75,
        *,
        start: Start = "random",
        include: str | Sequence[str] = "*",
        exclude: str | Sequence[str] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        _check_sparsity(sparsity)
        self.model = model
        self.layers = block_layers(model, include, exclude)
        _check_layers(model, self.layers)
        self._owners = list({(layer.module, layer.parameter): layer for layer in self.layers}.values())
        masks = [_first_mask(layer, sparsity, start, generator) for layer in self.layers]
        self._attached = False
        self._handles: list[Any] = []
        self._hooked: dict[int, tuple[Tensor, Any]] = {}
        with restored_on_error(model):
            try:
                self._handles.append(model.register_forward_pre_hook(self._before_forward))
                for layer, mask in zip(self.layers, masks, strict=True):
                    _register(layer, mask)
                self._mask_gradients()
                self.apply()
            except BaseException:
                self._remove_hooks()
                raise

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the zeros exact after every step of an optimizer, whatever its rule, and its loaded state clean.

        Raises
        ------
        UnsupportedModelError
            If the optimizer holds none of the masked weights (it was made for another model, or before a copy).
        """
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        if not any(_parameter(layer) in held for layer in self._owners):
            raise UnsupportedModelError(
                "the optimizer holds none of the masked weights", do="Make it from this model's parameters."
            )
        self._clean(optimizer)
        self._handles += [
            optimizer.register_step_post_hook(lambda *_: self.apply()),
            optimizer.register_load_state_dict_post_hook(self._clean),
        ]
        self._attached = True

    @torch.no_grad()
    def apply(self) -> None:
        """Set the masked weights to zero."""
        for layer in self._owners:
            _keep(_parameter(layer), layer)

    @torch.no_grad()
    def relax(self, sparsity: float, generator: torch.Generator | None = None) -> None:
        """Release weights drawn at random until a lower sparsity is reached: pre-training in phases.

        Raises
        ------
        HyperparameterError
            If the new sparsity is not lower, in any layer, than the present one.
        """
        _check_sparsity(sparsity)
        released = []
        for layer in self.layers:
            mask = _mask(layer)
            more = _kept(layer, sparsity) - int(mask.sum())
            if more < 0:
                found = f"{sparsity} where {1 - mask.float().mean().item():.4g} of {layer.name!r} is zero"
                raise HyperparameterError("sparsity", found=found, expected="not more than now: masks are nested")
            free = (~mask).flatten().nonzero().squeeze(1).cpu()
            flat = mask.flatten().clone()
            flat[free[torch.randperm(len(free), generator=generator)[:more]].to(mask.device)] = True
            released.append(flat.view(mask.shape))
        for layer, wider in zip(self.layers, released, strict=True):
            _mask(layer).copy_(wider)

    def densify(self) -> None:
        """Release all weights: masks and hooks go, the zeros stay as starting values.

        Raises
        ------
        NonFiniteError
            If a masked weight is not zero: something wrote to it behind the hooks' back.
        """
        split_again(self.model)
        for layer in self._owners:
            parameter = _parameter(layer).detach()
            inside = local(parameter)[~local(shard_like(_whole_mask(layer), parameter))]
            if inside.count_nonzero():
                found = f"{int(inside.count_nonzero())} of {inside.numel()} are not"
                raise NonFiniteError(
                    f"masked weights of {layer.stack or layer.name!r} must be zero",
                    found=found,
                    do="Attach the optimizer that trains.",
                )
        self._discard()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy of the model holds: its parameters have no hooks yet, and no optimizer is attached."""
        return vars(self) | {"_attached": False, "_hooked": {}}

    def _discard(self) -> None:
        """Take hooks and masks away, whatever the weights are."""
        self._remove_hooks()
        for layer in self._owners:
            delattr(layer.module, _buffer(layer))
        self.layers, self._owners = [], []

    def _remove_hooks(self) -> None:
        for handle in [*self._handles, *(handle for _, handle in self._hooked.values())]:
            handle.remove()
        self._handles, self._hooked = [], {}

    def _before_forward(self, model: nn.Module, _: object) -> None:
        if model.training and not self._attached:
            warnings.warn(
                "static sparsity without attach(optimizer): only optimizers that do not move weights with zero "
                "gradient and zero state will keep the zeros",
                stacklevel=3,
            )
            self._attached = True
        if torch.is_grad_enabled():
            self._mask_gradients()

    def _mask_gradients(self) -> None:
        """Hook the parameters' gradients; again where a parameter has been replaced by another since."""
        split_again(self.model)  # gathered parameters are not those that stay
        for number, layer in enumerate(self._owners):
            parameter = _parameter(layer)
            hooked, handle = self._hooked.get(number, (None, None))
            if hooked is parameter or not parameter.requires_grad:
                continue
            if handle is not None:
                handle.remove()

            def select(parameter: Tensor, layer: Layer = layer) -> None:
                assert parameter.grad is not None
                _keep(parameter.grad, layer)

            self._hooked[number] = (parameter, parameter.register_post_accumulate_grad_hook(select))

    @torch.no_grad()
    def _clean(self, optimizer: torch.optim.Optimizer) -> None:
        """Set moments of masked weights to zero; state of another shape (factored, 8-bit) stays."""
        for layer in self._owners:
            mask = _whole_mask(layer)
            for state in optimizer.state.get(_parameter(layer), {}).values():
                if isinstance(state, Tensor) and state.shape == mask.shape:
                    own = local(shard_like(mask, state))
                    local(state).masked_fill_(~own.to(state.device), 0)


@torch.no_grad()
def forward_flops(model: nn.Module, batch: Batch) -> dict[str, float]:
    """Count the multiply-adds of a forward pass, with and without those of weights that are zero.

    Training takes three times as many (forward, gradient of inputs, gradient of weights).

    Parameters
    ----------
    model : nn.Module
        Any model, also on the meta device, where counting costs nothing.
    batch : mapping, tuple or Tensor
        One batch of inputs.

    Returns
    -------
    dict
        ``dense``: floating point operations, attention and head included (two a multiply-add); ``sparse``: without
        those of zero weights, masked ones if there are masks; ``ratio``: dense over sparse.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    >>> _ = StaticSparsity(model, 0.75)
    >>> forward_flops(model, torch.ones(10, 8))
    {'dense': 2560.0, 'sparse': 640.0, 'ratio': 4.0}
    """
    saved = 0.0

    layers = block_layers(model)
    zeros: dict[str, int] = {}
    for layer in layers:
        if layer.module._buffers.get(_buffer(layer)) is not None:
            zeros[layer.name] = int((~_mask(layer)).sum())
        else:
            zeros[layer.name] = 0 if layer.weight.is_meta else int((layer.weight_OI == 0).sum())

    def multiplied(layer: Layer, x: Tensor, _: Tensor | None = None) -> None:
        nonlocal saved
        saved += 2.0 * zeros[layer.name] * layer.rows(x).shape[:2].numel()

    def hook(layer: Layer) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda _, args, kwargs: multiplied(layer, *args, *kwargs.values())

    handles = [
        layer.module.register_forward_pre_hook(hook(layer), with_kwargs=True)
        for layer in layers
        if layer.expert is None
    ]
    try:
        # the plain attention kernel: the counter does not know all of the fused ones
        with (
            evaluation_mode(model),
            watching_experts(layers, multiplied),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    dense = float(counter.get_total_flops())
    return {"dense": dense, "sparse": dense - saved, "ratio": dense / (dense - saved)}


@training_method(
    learning_rate=6e-4,
    weight_decay=0.1,
    batch_size=8,
    clip_norm=1.0,
    scheduler="cosine",
    warmup=0.15,
    final_learning_rate_ratio=0.1,
)
def spdf(
    model: nn.Module,
    training: Samples,
    *,
    sparsity: float = 0.75,
    start: Start = "random",
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    dense_learning_rate: float = 1e-4,
    dense_epochs: int = 1,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Train with most weights held at zero, then release them and continue training, on the same samples.

    To fine-tune on data of their own, run it with ``dense_epochs=0``: the saved model is dense, its zeros ordinary
    weights.

    Parameters
    ----------
    model : nn.Module
        Changed in place; with its present weights.
    training : sequence of mapping
        Samples with ``input_ids`` or other inputs, and ``labels``.
    sparsity : float, default: 0.75
        Share of each matrix held at zero in the first phase, in [0, 1).
    start : {"random", "magnitude", "zeros"}, default: "random"
        Which weights stay: random ones (the paper, for training from scratch), the largest, or those not zero now.
    include, exclude : str or sequence of str
        Patterns on the paths of the matrices inside the blocks.
    dense_learning_rate : float, default: 1e-4
        Of the dense phase. Its other training options are those below, but for a weight decay of 0.01, a warm-up of
        0.1 and a schedule that ends at zero.
    dense_epochs : int, default: 1
        Passes over the samples in the dense phase, which has a fresh optimizer; 0 leaves it out.
    generator : torch.Generator, optional
        Draws the masks and the order of the samples.
    **options
        Training options of the sparse phase, see :class:`weightsmith.core.training.FitOptions`; by default the recipe
        of GPT-3 125M. The optimizer is AdamW.

    Returns
    -------
    Result
        Density of every layer after the sparse phase, operations saved by it, losses.

    References
    ----------
    Thangarasa et al. 2023, arXiv 2303.10464.
    """
    refuse_adapters(model)
    if dense_epochs < 0:
        raise HyperparameterError("dense_epochs", found=dense_epochs, expected=">= 0")
    check_options({"learning_rate": dense_learning_rate}, prefix="dense_")
    seed = draw_seed(generator)
    hyper: dict[str, Any] = {"sparsity": sparsity, "start": start, "include": include, "exclude": exclude}
    dense: dict[str, Any] = {"dense_learning_rate": dense_learning_rate, "dense_epochs": dense_epochs}
    with record("spdf", seed=seed_of(generator), **hyper, **dense, **options) as result:
        result.notes += unreached(model, block_layers(model), "Not sparse", trains=True)
        # frozen layers could not learn to do without what a mask takes away
        left_out, notes = exclude_frozen(block_layers(model, include, exclude), exclude)
        result.notes += notes
        held = StaticSparsity(model, generator=generator, **hyper | {"exclude": left_out})
        try:
            for layer in held.layers:
                result.layer(layer.name, density=_mask(layer).float().mean().item())
            counted = forward_flops(model, _first_sample(training, model))
            optimizer = torch.optim.AdamW(
                model.parameters(),
                lr=options["learning_rate"],
                betas=(0.9, 0.95),
                weight_decay=options["weight_decay"],
                fused=True,
            )
            held.attach(optimizer)
            run = fit(model, training, optimizer=optimizer, seed=seed, **options)
            held.densify()
        except BaseException:  # an interrupt of the measures or of the check, too, must leave no hooks
            held._discard()
            raise
        result.curves["sparse phase: training loss"] = run.losses
        if dense_epochs:
            options |= {"learning_rate": dense_learning_rate, "epochs": dense_epochs, "weight_decay": 0.01}
            options |= {"warmup": 0.1, "final_learning_rate_ratio": 0.0}
            run = fit(model, training, seed=seed, **options)
            result.curves["dense phase: training loss"] = run.losses
        result.totals = {
            "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "operations_saved_by_the_sparse_phase": counted["ratio"],
        }
        result.notes.append("The saved operations need hardware that skips zeros; this machine computed them all.")
    return result


def _first_sample(training: Samples, model: nn.Module) -> Batch:
    """The first sample as a batch, without its labels."""
    batch = to_model(batched(take(training, 0, 1), 1)[0], model)
    return without_labels(model, batch)


def _first_mask(layer: Layer, sparsity: float, start: Start, generator: torch.Generator | None) -> Bool[Tensor, "..."]:
    weight = layer.weight.detach()
    check_choice("start", start, Start)
    if start == "zeros":
        return weight != 0
    if start == "magnitude":
        score = weight.abs().float()
    else:
        # drawn on the CPU, so that a seed gives the same mask on every device
        score = torch.rand(weight.shape, generator=generator).to(weight.device)
    mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[score.flatten().topk(_kept(layer, sparsity)).indices] = True
    return mask.view_as(weight)


def _kept(layer: Layer, sparsity: float) -> int:
    """Weights that stay: the product is rounded to float32 before it is cut, as the paper's library does."""
    total = layer.weight_OI.numel()
    kept = int(torch.tensor(1 - sparsity, dtype=torch.float32) * total)
    if kept < 1:
        raise HyperparameterError(
            "sparsity", found=f"{sparsity}, which leaves {layer.name!r} none of its {total} weights", do="Lower it."
        )
    return kept


def _parameter(layer: Layer) -> nn.Parameter:
    """The parameter that holds a layer's weight, of all experts of a stack."""
    parameter = layer.module._parameters[layer.parameter]
    assert parameter is not None
    return parameter


def _buffer(layer: Layer) -> str:
    return f"{layer.parameter}_mask"


def _register(layer: Layer, mask: Tensor) -> None:
    """Make the mask a buffer of the layer's module; a stack of experts has one for all."""
    if layer.expert is None:
        layer.module.register_buffer(_buffer(layer), mask)
        return
    if _buffer(layer) not in layer.module._buffers:
        layer.module.register_buffer(_buffer(layer), torch.ones_like(_parameter(layer), dtype=torch.bool))
    _mask(layer).copy_(mask)


def _whole_mask(layer: Layer) -> Tensor:
    """The mask of the parameter that holds a layer's weight."""
    mask = layer.module._buffers[_buffer(layer)]
    assert mask is not None
    return mask


def _keep(tensor: Tensor, layer: Layer) -> None:
    """Set the masked places of a layer's parameter, or of its gradient, to zero; of a sharded one this process's."""
    keep_(local(tensor.detach()), local(shard_like(_whole_mask(layer), tensor)))


def _mask(layer: Layer) -> Tensor:
    mask = _whole_mask(layer)
    return mask if layer.expert is None else mask[layer.expert]


def _check_sparsity(sparsity: float) -> None:
    if not (math.isfinite(sparsity) and 0 <= sparsity < 1):
        do = f"Use {sparsity / 100:g}." if 1 < sparsity < 100 else None
        raise HyperparameterError("sparsity", found=sparsity, expected="a share in [0, 1)", do=do)


def _check_layers(model: nn.Module, layers: Sequence[Layer]) -> None:
    embeddings = {id(m.weight): name for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    for layer in layers:
        if layer.parameter in layer.module._parameters and _buffer(layer) in layer.module._buffers:
            raise UnsupportedModelError(f"{layer.name!r} is masked already", do="Call densify() first.")
        if id(layer.module._parameters.get(layer.parameter)) in embeddings or layer.aliases:
            other = embeddings.get(id(layer.weight)) or layer.aliases[0]
            raise UnsupportedModelError(f"{layer.name!r} is tied to {other!r}", do="Leave it out with exclude.")
    writable(layers)
