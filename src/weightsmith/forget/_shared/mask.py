"""Which weights of a model may change: masks of an exact size, on disk as bits, kept by any optimizer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from weightsmith.core.errors import LayerNotFoundError, ShapeError
from weightsmith.core.io import load_tagged, save_tagged
from weightsmith.core.sharding import local, shard_like

__all__ = ["WeightMask", "masked_updates"]

KIND = "weight mask"


class WeightMask(Mapping[str, Tensor]):
    """Per parameter which of its weights may change.

    Parameters
    ----------
    masks : mapping of str to Tensor
        Boolean, of the parameters' shapes.

    Examples
    --------
    >>> mask = WeightMask({"weight": torch.tensor([[True, False]])})
    >>> mask.count, mask.size, mask.density
    (1, 2, 0.5)
    """

    def __init__(self, masks: Mapping[str, Bool[Tensor, "..."]]) -> None:
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise ShapeError(f"mask {name!r}", found=mask.dtype, expected="boolean")
        self.masks = dict(masks)

    def __getitem__(self, name: str) -> Tensor:
        return self.masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.masks)

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def count(self) -> int:
        """Weights that may change."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def size(self) -> int:
        """All weights."""
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def density(self) -> float:
        """Share of the weights that may change."""
        return self.count / max(self.size, 1)

    def check(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the trainable parameters that the mask is for, by name.

        Raises
        ------
        LayerNotFoundError
            If the model has no parameter of a name, or the mask none for a trainable parameter.
        ShapeError
            If a shape differs.
        """
        every = dict(model.named_parameters())
        trained = {name: parameter for name, parameter in every.items() if parameter.requires_grad}
        if unknown := [name for name in self.masks if name not in every]:
            raise LayerNotFoundError(
                f"the mask names {unknown[0]!r}", found=f"parameters such as {next(iter(every))!r}"
            )
        if missing := [name for name in trained if name not in self.masks]:
            raise LayerNotFoundError(
                f"the mask has nothing for {len(missing)} trainable parameters such as {missing[0]!r}",
                do="Freeze them, or give a mask of False.",
            )
        for name, mask in self.masks.items():
            if mask.shape != every[name].shape:
                raise ShapeError(f"mask {name!r}", found=tuple(mask.shape), expected=tuple(every[name].shape))
        return {name: trained[name] for name in self.masks if name in trained}

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the mask to a ``.safetensors`` file, eight weights per byte.

        Raises
        ------
        CheckpointError
            If the file exists and ``overwrite`` is off, its name ends otherwise, or it cannot be written.
        """
        bits = {name: torch.from_numpy(np.packbits(mask.cpu().numpy())) for name, mask in self.masks.items()}
        shapes = {name: list(mask.shape) for name, mask in self.masks.items()}
        save_tagged(bits, path, kind=KIND, about=shapes, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> WeightMask:
        """Read a mask that :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            If the file cannot be read or is no mask.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     WeightMask({"w": torch.tensor([[True, False, True]])}).save(f"{folder}/mask.safetensors")
        ...     WeightMask.load(f"{folder}/mask.safetensors")["w"]
        tensor([[ True, False,  True]])
        """
        return load_tagged(
            path,
            KIND,
            lambda reader, shapes: cls({name: _unpacked(reader.tensor(name), shape) for name, shape in shapes.items()}),
        )


def _unpacked(bits: Tensor, shape: Sequence[int]) -> Tensor:
    flat = np.unpackbits(bits.numpy(), count=int(np.prod(shape)))
    return torch.from_numpy(flat.astype(bool)).reshape(*shape)


@contextmanager
def masked_updates(
    model: nn.Module, optimizer: torch.optim.Optimizer, mask: Mapping[str, Bool[Tensor, "..."]]
) -> Iterator[None]:
    """Let any optimizer change only the weights of a mask; all others stay bit-identical.

    Gradients are masked when they are complete, so that clipping sees only those that count. After every step, frozen
    weights get their value back, whatever weight decay or momentum did to them. The optimizer's state of frozen weights
    is cleared at the start.

    Parameters
    ----------
    model : nn.Module
        Its trainable parameters are those of the mask. They may be sharded (FSDP2); the mask is whole on every process.
    optimizer : torch.optim.Optimizer
        Over parameters of the model. It works on, unwrapped: in a loop, in ``Trainer``, under Accelerate.
    mask : mapping of str to Tensor
        A :class:`WeightMask`, or boolean tensors by the parameters' names.

    Raises
    ------
    LayerNotFoundError
        If a name is unknown, or a trainable parameter has no mask.
    ShapeError
        If a shape or type differs.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> before = model.weight.detach().clone()
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    >>> with masked_updates(model, optimizer, {"weight": torch.tensor([[True, False]])}):
    ...     model(torch.ones(1, 2)).sum().backward()
    ...     optimizer.step()
    >>> (model.weight == before).tolist()
    [[False, True]]
    """
    mask = mask if isinstance(mask, WeightMask) else WeightMask(mask)
    parameters = mask.check(model)
    chosen = {parameter: mask[name].to(parameter.device) for name, parameter in parameters.items()}
    partial = {parameter: local(shard_like(m, parameter)) for parameter, m in chosen.items() if not bool(m.all())}
    frozen = {parameter: local(parameter.detach()).clone() for parameter in partial}

    def mask_gradient(parameter: Tensor) -> None:
        assert parameter.grad is not None
        # not a product: 0 times a gradient that is not finite is not zero
        local(parameter.grad).masked_fill_(~partial[parameter], 0)  # type: ignore[index]

    @torch.no_grad()
    def restore(*_: Any) -> None:
        for parameter, own in partial.items():
            torch.where(own, local(parameter), frozen[parameter], out=local(parameter))

    for parameter, own in partial.items():
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                local(value).masked_fill_(~own, 0)
        if parameter.grad is not None:
            mask_gradient(parameter)
    handles = [parameter.register_post_accumulate_grad_hook(mask_gradient) for parameter in partial]
    handles.append(optimizer.register_step_post_hook(restore))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
