"""Run a model on a probe and keep, of each layer, its tangent kernel and what its units did.

The inputs of a layer and the gradients of its outputs are held for as many layers at once as fit into the memory that
is allowed; more layers take more passes. No gradient by a weight is formed for more than a piece of one layer.

Legend: ``N`` samples, ``T`` positions, ``D`` outputs or directions of outputs, ``R`` rows (``N`` times ``D``), ``I``
inputs, ``O`` outputs of a layer, ``H`` its units (outputs at all positions that count), ``V`` outputs of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from weightsmith.analyze._rich_lazy.kernels import tangent_kernel
from weightsmith.analyze._rich_lazy.recurrent import KINDS, matrices_of, product, unrolled
from weightsmith.core.data import Batch, to_model, without_labels
from weightsmith.core.errors import CalibrationError, NonFiniteError
from weightsmith.core.linalg import is_finite, upcast
from weightsmith.core.models import Layer, StreamMasks, call_checked, find_blocks, get_module, quiet, token_masks
from weightsmith.core.progress import track
from weightsmith.core.training import gradients_restored, logits_of, requires_grad_restored, restored_on_error

__all__ = ["MOST_OUTPUTS", "Observed", "observe_layers", "recurrent_layers"]

MOST_OUTPUTS = 32
"""Outputs per sample up to which each has a row in the kernel; more are projected onto random directions."""

UNSORTED = "its rows are not sorted by sample"


@dataclass(frozen=True)
class Observed:
    """What a layer did on the probe.

    Attributes
    ----------
    kernel_RR : Tensor of shape (rows, rows)
        Its tangent kernel; one row per sample and output, or direction of outputs.
    gram_NN : Tensor of shape (samples, samples)
        Inner products of the samples' activity.
    signs : uint8 array of shape (2, bytes)
        Which units of which samples are above and below zero, as bits.
    units : int
        Number of bits.
    """

    kernel_RR: Float[Tensor, "rows rows"]
    gram_NN: Float[Tensor, "samples samples"]
    signs: UInt8[np.ndarray, "2 bytes"]
    units: int


def recurrent_layers(model: nn.Module) -> list[Layer]:
    """The matrices of the recurrent modules of a model, by the names of their parameters.

    >>> [layer.name for layer in recurrent_layers(nn.Sequential(nn.RNN(2, 3)))]
    ['0.weight_ih_l0', '0.weight_hh_l0']
    """
    return [
        Layer(f"{path}.{name}".lstrip("."), module, parameter=name)
        for path, module in model.named_modules()
        if isinstance(module, KINDS)
        for name in matrices_of(module)
    ]


def observe_layers(
    model: nn.Module, batches: Sequence[Batch], layers: Sequence[Layer], *, directions: int, seed: int, memory: float
) -> tuple[dict[str, Observed], dict[str, str]]:
    """Observe layers on a probe; the model does not change.

    Returns
    -------
    observed : dict of str to Observed
        By layer.
    skipped : dict of str to str
        Layers that could not be observed, and why.
    """
    inputs = [to_model(without_labels(model, batch), model) for batch in batches]
    observed: dict[str, Observed] = {}
    with (
        restored_on_error(model, values=False),
        quiet(model),
        gradients_restored(model),
        requires_grad_restored(model),
        torch.enable_grad(),
    ):
        model.requires_grad_(False)
        trial = _Pass(model, layers, directions, seed)
        trial.run(inputs[0], 0, backward=False)
        skipped = dict(trial.skipped)
        groups = _groups([layer for layer in layers if layer.name not in skipped], trial.sizes(len(inputs)), memory)
        for number in track(range(len(groups) * len(inputs)), "tangent kernels"):
            at, place = divmod(number, len(inputs))
            if place == 0:
                trial = _Pass(model, groups[at], directions, seed)
            trial.run(inputs[place], place)
            if place == len(inputs) - 1:
                observed |= trial.finish()
                skipped |= trial.skipped
    return observed, skipped


def _groups(layers: Sequence[Layer], sizes: Mapping[str, float], memory: float) -> list[list[Layer]]:
    """Layers in order, as many at once as fit into so many gigabytes, at least one."""
    groups: list[list[Layer]] = []
    left = 0.0
    for layer in layers:
        if not groups or sizes[layer.name] > left:
            groups.append([])
            left = memory * 1e9
        groups[-1].append(layer)
        left -= sizes[layer.name]
    return groups


@dataclass
class _Seen:
    """What one layer received and gave."""

    layer: Layer
    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """In the batch that runs: inputs, and zeros added to the outputs, whose gradients are those of the outputs."""
    now: Tensor | None = None
    """In the batch that runs: the activity ``[N, H]``, of the last call."""
    batches: list[list[tuple[Tensor, list[Tensor]]]] = field(default_factory=list)
    """Inputs and gradients of each call in each batch."""
    activity: list[Tensor] = field(default_factory=list)


class _Pass:
    """One pass of the probe through the model, looking at some layers."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer], directions: int, seed: int) -> None:
        self.model, self.directions, self.seed = model, directions, seed
        self.seen = {layer.name: _Seen(layer) for layer in layers}
        self.recurrent = {(id(each.layer.module), each.layer.parameter): each for each in self.seen.values()}
        self.skipped: dict[str, str] = {}
        self.masks = StreamMasks(model, find_blocks(model))
        self.samples, self.images, self.rows = 0, False, 0

    def run(self, batch: Batch, number: int, *, backward: bool = True) -> None:
        """Run a batch forward, and backward from each direction of its outputs."""
        first = _first_tensor(batch)
        self.samples, self.images = len(first), first.ndim > 3 and first.is_floating_point()
        for seen in self.seen.values():
            seen.calls, seen.now = [], None
        with self._watching():
            self.masks.start(token_masks(batch))
            outputs = _outputs(call_checked(self.model, batch, number))
        if len(outputs) != self.samples:
            raise CalibrationError(
                "outputs of the model",
                found=f"{len(outputs)} rows for {self.samples} samples",
                expected="the samples as first axis",
                do="Make recurrent layers batch_first, or pool within the model.",
            )
        for name, seen in self.seen.items():
            if not seen.calls:
                self.skipped.setdefault(name, "not reached by the probe")
        scalars = _scalars(outputs, _real(self.model, batch, outputs), self.directions, self.seed)
        self.rows = len(scalars)
        if not bool(torch.stack(scalars).isfinite().all()):
            raise NonFiniteError("the outputs of the model hold NaN or infinity", do="Check the probe and the weights.")
        if backward:
            self._keep_gradients(scalars)

    def _keep_gradients(self, scalars: Sequence[Tensor]) -> None:
        live = [seen for name, seen in self.seen.items() if name not in self.skipped]
        taps = [tap for seen in live for _, tap in seen.calls]
        if not taps:
            return
        found = [torch.autograd.grad(s, taps, retain_graph=True, allow_unused=True) for s in scalars if s.requires_grad]
        place = 0
        for seen in live:
            count = len(seen.calls)
            of_calls = [[each[place + call] for each in found] for call in range(count)]
            place += count
            if all(gradient is None for call in of_calls for gradient in call):
                self.skipped[seen.layer.name] = "no output depends on it"
                continue
            seen.batches.append(
                [
                    (x, [torch.zeros_like(tap) if g is None else g for g in gradients])
                    for (x, tap), gradients in zip(seen.calls, of_calls, strict=True)
                ]
            )
            assert seen.now is not None
            seen.activity.append(seen.now)
            seen.calls = []

    def finish(self) -> dict[str, Observed]:
        """The kernels and Gram matrices of the layers, whose factors are let go of."""
        observed = {}
        for name, seen in self.seen.items():
            if name in self.skipped:
                continue
            x_NTI, g_NDTO = _factors(seen)
            h_NH = upcast(torch.cat(seen.activity))
            for what, values in (("activity", h_NH), ("inputs", x_NTI), ("gradients", g_NDTO)):
                if not is_finite(values):
                    raise NonFiniteError(f"{what} of layer {name!r} hold NaN or infinity")
            signs = np.stack([np.packbits((side * h_NH > 0).cpu().numpy()) for side in (1, -1)])
            kernel_RR = tangent_kernel(x_NTI, g_NDTO)
            observed[name] = Observed(kernel_RR.cpu(), (h_NH @ h_NH.T).cpu(), signs, h_NH.numel())
            seen.batches, seen.activity = [], []
        return observed

    def sizes(self, batches: int) -> dict[str, float]:
        """The bytes that each layer takes over all batches, from the one that ran."""
        return {
            name: float(
                batches * sum(x.nbytes + tap.numel() * tap.element_size() * self.rows for x, tap in seen.calls)
                + (seen.now.nbytes * batches if seen.now is not None else 0)
            )
            for name, seen in self.seen.items()
        }

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Look at the layers' inputs and outputs while the model runs."""
        modules = [seen.layer.module for seen in self.seen.values()]
        recurrent = list({id(module): module for module in modules if isinstance(module, KINDS)}.values())
        with ExitStack() as stack:
            stack.enter_context(self.masks)
            stack.enter_context(unrolled(recurrent, self._multiply, self._see_states))
            for seen in self.seen.values():
                if not isinstance(seen.layer.module, KINDS):
                    paths = (seen.layer.name, *seen.layer.aliases)
                    for module in {id(m): m for m in (get_module(self.model, path) for path in paths)}.values():
                        stack.callback(module.register_forward_hook(self._hook(seen)).remove)
            yield

    def _hook(self, seen: _Seen) -> Callable[..., Tensor]:
        def see(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            mask_NT = self.masks.now.of(args[0])
            x_NTI = self._by_sample(seen.layer.rows(args[0].detach()), mask_NT)
            if x_NTI is None:
                self.skipped[seen.layer.name] = UNSORTED
                return output
            h_NTO = seen.layer.output_rows(output.detach())
            if _is_convolution(module) and h_NTO.shape[1] != x_NTI.shape[1]:
                self.skipped[seen.layer.name] = "a convolution with padding of its own"
                return output
            h_NTO = h_NTO.reshape(*x_NTI.shape[:2], -1)
            seen.now = h_NTO.flatten(1) if self.images else _last(h_NTO, mask_NT)
            return self._tapped(seen, x_NTI, output)

        return see

    def _multiply(self, module: nn.Module, name: str, x: Tensor) -> Tensor:
        output = product(module, name, x)
        seen = self.recurrent.get((id(module), name))
        if seen is None:
            return output
        if len(x) != self.samples:
            self.skipped[seen.layer.name] = UNSORTED
            return output
        return self._tapped(seen, x.detach().reshape(len(x), -1, x.shape[-1]), output)

    def _see_states(self, module: nn.Module, suffix: str, states: Tensor) -> None:
        for kind in ("ih", "hh"):
            if (seen := self.recurrent.get((id(module), f"weight_{kind}{suffix}"))) is not None:
                seen.now = states[:, -1].detach()

    def _tapped(self, seen: _Seen, x_NTI: Float[Tensor, "n t i"], output: Tensor) -> Tensor:
        """Add zeros to the output that get its gradient; what comes next in place does not change what is recorded."""
        outs = seen.layer.weight_OI.shape[0]
        tap_NTO = output.new_zeros(()).requires_grad_().expand(*x_NTI.shape[:2], outs)
        seen.calls.append((x_NTI, tap_NTO))
        return output + (tap_NTO.transpose(1, 2) if _is_convolution(seen.layer.module) else tap_NTO).reshape(
            output.shape
        )

    def _by_sample(
        self, x_SRI: Float[Tensor, "s r i"], mask_NT: Bool[Tensor, "n t"] | None
    ) -> Float[Tensor, "samples positions i"] | None:
        """The rows of each sample; None where which sample a row belongs to is not known."""
        rows = x_SRI.shape[0] * x_SRI.shape[1]
        if x_SRI.shape[0] == self.samples:
            return x_SRI
        if x_SRI.shape[0] > 1:
            return None
        if rows == self.samples or (mask_NT is not None and rows == mask_NT.numel()):
            return x_SRI.reshape(self.samples, -1, x_SRI.shape[-1])
        return None


def _factors(seen: _Seen) -> tuple[Float[Tensor, "n t i"], Float[Tensor, "n d t o"]]:
    """All calls of a batch follow each other as positions; shorter batches end in zeros."""
    inputs = [torch.cat([x for x, _ in calls], 1) for calls in seen.batches]
    gradients = [torch.cat([torch.stack(slopes, 1) for _, slopes in calls], 2) for calls in seen.batches]
    most = max(x_NTI.shape[1] for x_NTI in inputs)
    return (
        torch.cat([upcast(functional.pad(x_NTI, (0, 0, 0, most - x_NTI.shape[1]))) for x_NTI in inputs]),
        torch.cat([upcast(functional.pad(g_NDTO, (0, 0, 0, most - g_NDTO.shape[2]))) for g_NDTO in gradients]),
    )


def _is_convolution(module: nn.Module) -> bool:
    return hasattr(module, "kernel_size")


def _last(h_NTO: Float[Tensor, "n t o"], mask_NT: Bool[Tensor, "n t"] | None) -> Float[Tensor, "n o"]:
    """The last real position of each sample."""
    if mask_NT is None or mask_NT.shape != h_NTO.shape[:2]:
        return h_NTO[:, -1]
    places_T = torch.arange(h_NTO.shape[1], device=h_NTO.device)
    last_N = (mask_NT.to(h_NTO.device) * places_T).amax(1)
    return h_NTO[torch.arange(len(h_NTO), device=h_NTO.device), last_N]


def _first_tensor(batch: Batch) -> Tensor:
    values = batch.values() if isinstance(batch, Mapping) else [batch] if isinstance(batch, Tensor) else batch
    found = [value for value in values if isinstance(value, Tensor) and value.ndim > 0]
    if not found:
        raise CalibrationError("a batch of the probe", found="no tensor", expected="inputs of the model")
    return found[0]


def _outputs(result: Any) -> Tensor:
    """The logits, or the last hidden states of a model without a head."""
    states = getattr(result, "last_hidden_state", None)
    return states if isinstance(states, Tensor) and getattr(result, "logits", None) is None else logits_of(result)


def _real(model: nn.Module, batch: Batch, outputs: Tensor) -> Bool[Tensor, "n t"] | None:
    """Which positions of the outputs are of real tokens; None where the outputs are not of tokens."""
    if outputs.ndim != 3:
        return None
    real = token_masks(batch).own
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and isinstance(batch, Mapping):
        given = [batch[name] for name in ("labels", "decoder_attention_mask", "decoder_input_ids") if name in batch]
        labels = "labels" in batch
        real = (given[0] != -100 if labels else given[0] != 0) if given else None
    return real if real is not None and real.shape == outputs.shape[:2] else None


def _scalars(outputs: Tensor, real_NT: Bool[Tensor, "n t"] | None, directions: int, seed: int) -> list[Tensor]:
    """Sums over the samples of each output, or of random combinations of the outputs if there are many.

    A combination of the outputs at tokens is the product of a normal vector over the outputs and of signs over the
    positions. The expected kernel is the trace over all outputs and positions; padding has no part in it.
    """
    if real_NT is None:
        y_NV = upcast(outputs.flatten(1))
        if y_NV.shape[1] <= MOST_OUTPUTS:
            return list(y_NV.sum(0))
        return list((y_NV @ _normal(y_NV, directions, seed)).sum(0))
    mixed_NTD = upcast(outputs) @ _normal(upcast(outputs[:1, :1]), directions, seed)
    draw = torch.Generator().manual_seed(seed + 1)
    signs_TD = (2.0 * torch.randint(2, (real_NT.shape[1], directions), generator=draw) - 1).to(mixed_NTD)
    place_NT = (real_NT.long().cumsum(1) - 1).clamp(min=0)  # padding on the left shifts no sign
    counted_NTD = torch.where(real_NT[..., None], mixed_NTD * signs_TD[place_NT], 0.0)
    return list(counted_NTD.sum((0, 1)))


def _normal(like: Tensor, directions: int, seed: int) -> Float[Tensor, "v d"]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape[-1], directions, generator=draw).to(like)
