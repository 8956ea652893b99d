"""Give batch normalization the statistics that belong to weights nobody trained it with: predicted, merged, grown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from weightsmith.core.data import Batches, call, to_model
from weightsmith.core.errors import CalibrationError, NonFiniteError, UnsupportedModelError
from weightsmith.core.linalg import is_finite
from weightsmith.core.models._layers import evaluation_mode
from weightsmith.core.processes import all_reduce_sum, process_count

__all__ = ["has_batchnorm", "recalibrate_batchnorm", "reset_batchnorm"]


def recalibrate_batchnorm(model: nn.Module, batches: Batches, *, reset: bool = True) -> int:
    """Re-estimate the running means and variances from data; weights and affine parameters stay.

    Layers that no batch reaches keep their statistics.

    Parameters
    ----------
    model : nn.Module
        Changed in place; its modules keep their training or evaluation mode.
    batches : Batches
        Inputs of the model.
    reset : bool, default: True
        Forget the old statistics and average over all batches, by their sizes; otherwise update them with the
        layer's momentum. Several processes, each with batches of its own, average what they found by the number of
        samples: without the old statistics that is what one process finds with all batches.

    Returns
    -------
    int
        Layers re-estimated.

    Raises
    ------
    CalibrationError
        If there are no batches, or none from which a layer can estimate a variance.
    NonFiniteError
        If a statistic is NaN or infinite; the model has its old ones then.
    UnsupportedModelError
        If the model has no batch normalization with running statistics.

    Examples
    --------
    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> recalibrate_batchnorm(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
    1
    >>> model[0].running_mean
    tensor([4.])
    """
    layers = _layers(model)
    if len(batches) == 0:
        raise CalibrationError("no batches to estimate running statistics from", expected="at least one")
    momenta = [layer.momentum for layer in layers]
    seen: dict[nn.Module, int] = {}
    before: dict[nn.Module, int] = {}

    def weigh(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        """One value per channel has no variance: the layer then normalizes and learns nothing from it."""
        assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
        layer.training = args[0].numel() > args[0].shape[1]
        rows = len(args[0]) if layer.training else 0
        seen[layer] = seen.get(layer, 0) + rows
        if reset and rows:
            layer.momentum = rows / seen[layer]

    hooks = [layer.register_forward_pre_hook(weigh) for layer in layers]
    kept = {layer: {name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers}
    with evaluation_mode(model), torch.no_grad():
        try:
            for layer in layers:
                if reset:
                    layer.reset_running_stats()
                before[layer] = int(layer.num_batches_tracked)  # type: ignore[arg-type]
            for batch in batches:
                call(model, to_model(batch, model))
            for layer in layers:
                _add_processes(layer, seen, before[layer])
            if not seen:
                raise CalibrationError("the batches reach no layer of batch normalization", do="Give other batches.")
            if 0 in seen.values():
                raise CalibrationError(
                    "no batch has a variance", found="one sample per batch", expected="batches of two samples or more"
                )
            for name, module in model.named_modules():
                if module in seen and not all(map(is_finite, (module.running_mean, module.running_var))):
                    do = "Repair the batches, or, with reset=False, the old statistics."
                    raise NonFiniteError(f"statistics of {name!r} on the batches", found="NaN or infinity", do=do)
            _restore((layer, kept[layer]) for layer in layers if layer not in seen)
        except BaseException:
            _restore(kept.items())
            raise
        finally:
            for hook in hooks:
                hook.remove()
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
    return len(seen)


def _restore(kept: Iterable[tuple[nn.Module, Mapping[str, Tensor]]]) -> None:
    for layer, buffers in kept:
        for name, buffer in buffers.items():
            layer.get_buffer(name).copy_(buffer)


def _add_processes(layer: nn.modules.batchnorm._BatchNorm, seen: dict[nn.Module, int], before: int) -> None:
    """Average a layer's statistics over processes, by the samples of each, and count all of their batches."""
    if process_count() == 1:
        return
    mean, variance, count = layer.running_mean, layer.running_var, layer.num_batches_tracked
    assert mean is not None
    assert variance is not None
    assert count is not None
    reached, rows = layer in seen, seen.get(layer, 0)
    facts = torch.tensor([reached, rows, int(count) - before], dtype=torch.float64)
    sums = [value.double() * rows for value in (mean, variance)]
    all_reduce_sum(facts, *sums)
    if facts[0]:
        seen[layer] = int(facts[1])
    if facts[1]:
        mean.copy_(sums[0] / facts[1])
        variance.copy_(sums[1] / facts[1])
        count.fill_(before + int(facts[2]))


def reset_batchnorm(model: nn.Module) -> int:
    """Set scale 1, shift 0, mean 0 and variance 1, as a layer starts.

    Returns
    -------
    int
        Layers reset.

    Raises
    ------
    UnsupportedModelError
        If the model has no batch normalization with running statistics.

    Examples
    --------
    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> _ = nn.init.constant_(model[0].weight, 5.0)
    >>> reset_batchnorm(model), model[0].weight.item()
    (1, 1.0)
    """
    layers = _layers(model)
    for layer in layers:
        layer.reset_parameters()
    return len(layers)


def has_batchnorm(model: nn.Module) -> bool:
    """Whether the model has batch normalization with running statistics.

    Examples
    --------
    >>> has_batchnorm(nn.BatchNorm1d(1)), has_batchnorm(nn.BatchNorm1d(1, track_running_stats=False))
    (True, False)
    """
    return bool(_find(model))


def _layers(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    layers = _find(model)
    if not layers:
        raise UnsupportedModelError("the model has no batch normalization with running statistics")
    return layers


def _find(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
