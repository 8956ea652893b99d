"""The weights that LIFT changed as an adapter of PEFT's SHiRA."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from safetensors.torch import save_file
from torch import Tensor

from weightsmith.core.errors import HyperparameterError, ShapeError
from weightsmith.core.io import SparseDelta, atomic_output, matching

__all__ = ["export_shira"]


def export_shira(
    delta: SparseDelta, base: Mapping[str, Tensor], folder: str | os.PathLike[str], *, overwrite: bool = False
) -> int:
    """Write a delta as an adapter of PEFT's SHiRA, which adds sparse differences to linear layers.

    ``PeftModel.from_pretrained(base_model, folder)`` loads it. Differences are rounded once, so the result agrees with
    the fine-tuned model to the precision of the weights and not to the bit.

    Parameters
    ----------
    delta : SparseDelta
        Changed weights of ``nn.Linear`` layers (the whole delta; others are refused).
    base : mapping of str to Tensor
        State dict of the base model.
    folder : path-like
        The adapter's folder to create.
    overwrite : bool, default: False
        Replace an existing file.

    Returns
    -------
    int
        SHiRA's rank ``r``: it stores ``r * (out + in)`` weights for every layer, the surplus as zeros.

    Raises
    ------
    CheckpointError
        If ``folder`` exists and ``overwrite`` is off.
    HyperparameterError
        If more weights of a layer changed than SHiRA can store.
    LayerNotFoundError, ShapeError
        If ``base`` is not the delta's base, or a part is no matrix of a layer.
    """
    from peft import ShiraConfig

    for name, part in delta.parts.items():
        if not name.endswith(".weight") or len(part.shape) != 2:
            raise ShapeError(f"tensor {name!r}", found=part.shape, expected="the weight of a linear layer")
    rank = max(1, *(-(-len(part.index) // sum(part.shape)) for part in delta.parts.values()))
    tensors = {}
    for name, part in delta.parts.items():
        rows, columns = part.shape
        count = rank * (rows + columns)
        if count > rows * columns:
            raise HyperparameterError(
                f"SHiRA rank for {name!r}",
                found=rank,
                expected=f"at most {rows * columns // (rows + columns)}",
                do="Train fewer weights, or keep the first choice (update_interval=None).",
            )
        weight = matching(base, name, torch.Size(part.shape), part.value.dtype).reshape(-1).cpu()
        unused = torch.ones(rows * columns, dtype=torch.bool)
        unused[part.index.cpu()] = False
        index = torch.cat([part.index.cpu().long(), unused.nonzero().squeeze(1)[: count - len(part.index)]])
        difference = torch.zeros(count)
        difference[: len(part.index)] = part.value.cpu().float() - weight[part.index.cpu()].float()
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{layer}.shira_weight"] = difference
        tensors[f"{layer}.shira_indices"] = torch.stack([index // columns, index % columns]).int()
    config = ShiraConfig(r=rank, target_modules=[name.removesuffix(".weight") for name in delta.parts])
    config.inference_mode = True
    with atomic_output(folder, overwrite=overwrite, nbytes=sum(t.nbytes for t in tensors.values())) as target:
        config.save_pretrained(str(target))
        save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return rank
