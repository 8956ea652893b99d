"""The linear layer that drops inputs, and what it needs to know of the prompt.

Legend: ``O`` outputs, ``I`` inputs, ``N`` tokens.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from weightsmith.core.errors import CheckpointError
from weightsmith.core.levels import WeightLevels
from weightsmith.sparsify._wina.plan import ActivationPlan, Projection
from weightsmith.sparsify._wina.selection import (
    column_norms,
    dropped,
    prefix_mask,
    threshold_limits,
    topk_limits,
)

__all__ = ["Kernel", "Prompt", "SparseLinear", "weight_state"]


class Kernel(Protocol):
    """Computes single tokens for the layers of a group, and counts the inputs they keep."""

    seen: int
    total: Tensor

    def output(self, position: int, x: Tensor) -> Tensor:
        """Return the output of the layer at a position of the group."""

    def release(self) -> None:
        """Restore the parameters' own storage."""


class Prompt:
    """Which tokens of the present forward pass stay dense.

    Parameters
    ----------
    share : float
        The last fraction of a prompt's tokens, which is sparse.

    Attributes
    ----------
    dense_SN : Tensor of shape (sequences, tokens) or None
        True for tokens that stay dense; None when the model did not say what is padding.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.dense_SN: Tensor | None = None
        self.warned = False

    def see(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the arguments of the model, as a forward pre-hook."""
        self.dense_SN = None
        tokens = next((kwargs[k] for k in ("input_ids", "inputs_embeds") if kwargs.get(k) is not None), None)
        tokens = args[0] if tokens is None and args else tokens
        if not isinstance(tokens, Tensor) or tokens.ndim < 2 or tokens.shape[1] == 1:
            return
        shape, mask = tokens.shape[:2], kwargs.get("attention_mask")
        cache = next((kwargs[k] for k in ("cache", "past_key_values") if kwargs.get(k) is not None), None)
        past = getattr(cache, "get_seq_length", int)()
        if past:
            # a chunk that continues a cache has none of the first tokens
            self.dense_SN = torch.zeros(shape, dtype=torch.bool, device=tokens.device)
        elif isinstance(mask, Tensor) and mask.shape == shape:
            self.dense_SN = prefix_mask(mask.bool(), self.share)
        elif mask is None and (tokens.ndim == 3 or not tokens.is_floating_point()):
            self.dense_SN = prefix_mask(torch.ones(shape, dtype=torch.bool, device=tokens.device), self.share)

    def dense_rows(self, x: Float[Tensor, "*tokens in"]) -> Bool[Tensor, "*tokens"] | None:
        """Mark the rows of a layer's input that stay dense, or return None when there is none."""
        known, rows = self.dense_SN, x.shape[:-1]
        if known is not None and known.numel() == rows.numel() and len(rows) in (1, 2):
            return known.reshape(rows)
        if len(rows) < 2 or rows[-1] == 1:
            return None
        return prefix_mask(torch.ones(1, rows[-1], dtype=torch.bool, device=x.device), self.share).expand(rows)


class SparseLinear(nn.Module):
    """A linear layer that multiplies only the inputs its selection keeps.

    It has the parameters of the layer it replaces, under the same names, so that the state dict does not change. The
    selection is constant with respect to gradients. Column norms are computed again when the weight changes.

    Parameters
    ----------
    original : nn.Linear or Conv1D
        The layer to replace; :attr:`original` until the sparsity is removed.
    projection : Projection
        Its selection.
    plan : ActivationPlan
        The plan of the projection.
    prompt : Prompt
        Shared by the layers of the model.
    levels : WeightLevels, optional
        Those of the weight: the kernel reads codes.
    name : str, default: ""
        The layer's, for errors.

    Attributes
    ----------
    kernel : Kernel or None
        What computes single tokens; None to mask only.
    position : int
        Place in the kernel's group.

    Examples
    --------
    >>> fc = nn.Linear(2, 2, bias=False)
    >>> _ = fc.weight.data.copy_(torch.tensor([[3.0, 0.1], [4.0, 0.0]]))
    >>> plan = ActivationPlan(0.5, "topk", 1.0, {"fc": Projection(0.5, 0.0, norms=True)})
    >>> SparseLinear(fc, plan.projections["fc"], plan, Prompt(1.0))(torch.tensor([0.5, 1.0]))
    tensor([1.5000, 2.0000], grad_fn=...)
    """

    def __init__(
        self,
        original: nn.Linear | Conv1D,
        projection: Projection,
        plan: ActivationPlan,
        prompt: Prompt,
        levels: WeightLevels | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        self.weight, self.bias = original.weight, original.bias
        self.transposed = isinstance(original, Conv1D)
        self.out_features, self.in_features = (int(n) for n in self.weight_OI.shape)
        self.projection, self.select, self.prompt = projection, plan.select, prompt
        self.levels, self.name = levels, name
        self.kernel: Kernel | None = None
        self.position = 0
        self.training = original.training
        self._original = (original,)  # in a tuple: not a child
        self._state: tuple[int, int] | None = None
        self.register_buffer("norm_I", None, persistent=False)
        self.register_buffer("limit_I", None, persistent=False)
        self._refresh()
        self.kept: float | Tensor = 0.0
        self.seen = 0

    @property
    def original(self) -> nn.Linear | Conv1D:
        """The layer that this one replaces."""
        return self._original[0]

    @property
    def stored_bits(self) -> int:
        """Bits of a weight as a single token reads it: codes have four or eight."""
        return 8 * self.weight.element_size() if self.levels is None else 4 if self.levels.bits <= 4 else 8

    def codes(self) -> tuple[Tensor, int, int]:
        """Return codes ``[out, in]``, factor and offset of the present weight, as :meth:`WeightLevels.codes`.

        Raises
        ------
        CheckpointError
            If the weight is off its levels.
        """
        assert self.levels is not None
        try:
            return self.levels.codes(self.weight_OI)
        except CheckpointError as error:
            raise CheckpointError(f"{self.name!r}: {error}") from error

    @property
    def weight_OI(self) -> Float[Tensor, "out in"]:
        """The weight as outputs by inputs."""
        weight = self.weight.detach()
        return weight.T if self.transposed else weight

    def forward(self, input: Tensor) -> Tensor:  # named as in nn.Linear
        """Multiply; a single token goes to the kernel where there is one."""
        x = input
        # the kernel's operator knows layers of this process: an exported graph masks
        kernel = None if torch.compiler.is_exporting() else self.kernel
        if kernel is not None and x.numel() == self.in_features and not self._needs_grad(x):
            return kernel.output(self.position, x)
        return self._dense(self.mask(x))

    def mask(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens in"]:
        """Set the inputs that are not kept to zero."""
        if self.projection.sparsity == 0:
            if not torch.compiler.is_compiling():
                self._count(x, 0)
            return x
        drop = dropped(x, self.limits(x))
        dense = self.prompt.dense_rows(x)
        if dense is not None:
            drop = drop & ~dense.unsqueeze(-1)
        if not torch.compiler.is_compiling():
            self._count(x, drop.sum())
        return x.masked_fill(drop, 0)

    def limits(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "..."]:
        """Limits within which inputs are dropped: ``[in]``, or one row per token when each keeps its k largest."""
        if not torch.compiler.is_compiling() and self._state != weight_state(self.weight):
            self._refresh()
        if self.select == "topk" and self.projection.sparsity > 0:
            rows = topk_limits(x.detach().reshape(-1, self.in_features), self.norm_I, self.projection.sparsity)
            return rows.reshape(x.shape)
        return self.limit_I

    def _refresh(self) -> None:
        """Compute the column norms of the present weight, and what depends on them."""
        norm_I = column_norms(self.weight_OI)
        # a column of zeros is never read, whatever the score
        self.norm_I = norm_I if self.projection.norms else (norm_I != 0).float()
        if self.projection.sparsity == 0:
            self.limit_I = torch.full_like(norm_I, -1.0)
        else:
            self.limit_I = threshold_limits(self.projection.threshold, self.norm_I)
        self._state = weight_state(self.weight)

    def _dense(self, x: Tensor) -> Tensor:
        if self.kernel is not None and not self.prompt.warned and x.ndim > 2 and x.shape[-2] == 1 and x.shape[0] > 1:
            self.prompt.warned = True
            warnings.warn(
                "activation sparsity saves no time at batch sizes above 1: together the sequences need all columns",
                stacklevel=2,
            )
        weight = self.weight.T if self.transposed else self.weight
        return nn.functional.linear(x, weight, self.bias)

    def _needs_grad(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)

    def _count(self, x: Tensor, dropped: Tensor | int) -> None:
        """Count the kept inputs for the report, on the device and without waiting for it."""
        self.kept = self.kept + (x.numel() - dropped)
        self.seen += x.shape[:-1].numel()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Save the weight in the usual layout: files have no transposed views of a shared buffer."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.kernel is not None and self.levels is None and not keep_vars:
            key = f"{prefix}weight"
            destination[key] = destination[key].clone(memory_format=torch.contiguous_format)

    def extra_repr(self) -> str:
        """Shown in the model's print."""
        return f"{self.in_features}, {self.out_features}, sparsity={self.projection.sparsity:.3f}, {self.select}"


def weight_state(weight: Tensor) -> tuple[int, int]:
    """Return a value that changes when a weight is written to or replaced.

    Examples
    --------
    >>> weight = torch.zeros(2)
    >>> before = weight_state(weight)
    >>> weight_state(weight.add_(1)) == before
    False
    """
    return (0 if weight.is_inference() else weight._version, weight.data_ptr())
