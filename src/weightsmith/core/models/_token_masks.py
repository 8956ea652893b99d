"""Which tokens are real, in each of the streams that run through a model.

An encoder-decoder, or a model of images and text, has several streams of tokens. A mask belongs to one of them: that of
the encoder says nothing of the decoder's tokens, even if there are equally many.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeGuard

import torch
from greenlet import getcurrent
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from weightsmith.core.data import Batch

__all__ = ["StreamMasks", "TokenMasks", "token_masks"]

OTHERS = ("pixel_values", "input_features", "input_values")
"""Inputs of a part of a model whose stream is not of tokens."""


class TokenMasks(NamedTuple):
    """The masks of what a part of a model works on: True for real tokens, None where all are real or none are tokens.

    Attributes
    ----------
    own : Tensor of shape (sequences, tokens) or None
        Of its own stream.
    states : Tensor or None
        The hidden states of another stream to which it attends, an encoder's.
    other : Tensor of shape (sequences, tokens) or None
        Of that other stream.
    ids : Tensor or None
        The tokens of its own stream.
    """

    own: Bool[Tensor, "sequences tokens"] | None = None
    states: Tensor | None = None
    other: Bool[Tensor, "sequences tokens"] | None = None
    ids: Tensor | None = None

    def of(self, x: Shaped[Tensor, "..."]) -> Bool[Tensor, "sequences tokens"] | None:
        """Return the mask of the stream that a tensor belongs to."""
        return self.other if x is self.states else self.own


def token_masks(batch: Batch) -> TokenMasks:
    """Return the masks of a batch as a whole, before the model splits it into streams."""
    if isinstance(batch, Mapping):
        if isinstance(mask := batch.get("attention_mask"), Tensor) and mask.ndim == 2:
            return TokenMasks(mask.bool())
        ids = batch.get("input_ids")
    else:
        ids = batch if isinstance(batch, Tensor) else batch[0]
    if isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point():
        return TokenMasks(torch.ones_like(ids, dtype=torch.bool))
    return TokenMasks()


class StreamMasks:
    """Follows forward passes into the parts of a model and knows the masks of the part that runs now.

    Parameters
    ----------
    model : nn.Module
        The model. Passes may run as greenlets that take turns.
    blocks : iterable of str
        Paths of its blocks; the modules above them are followed.
    """

    def __init__(self, model: nn.Module, blocks: Iterable[str]) -> None:
        above = {path[:at] for path in blocks for at in range(len(path)) if path[at] == "."} | {""}
        self._modules = [module for path, module in model.named_modules() if path in above and path not in blocks]
        self._stacks: dict[object, list[TokenMasks]] = {}

    def __enter__(self) -> StreamMasks:
        self._hooks = [hook for module in self._modules for hook in self._hooked(module)]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def now(self) -> TokenMasks:
        """The masks of the innermost part."""
        return self._stacks[getcurrent()][-1]

    def start(self, masks: TokenMasks) -> None:
        """Begin a forward pass with the masks of its batch."""
        self._stacks[getcurrent()] = [masks]

    def _hooked(self, module: nn.Module) -> list[Any]:
        signature = inspect.signature(module.forward)

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stack = self._stacks.get(getcurrent())
            if stack is None:
                return  # a pass of another observer, inside the loop over blocks
            stack.append(_inner(stack[-1], module, _given(signature, args, kwargs), outermost=len(stack) == 1))

        def leave(*_: object) -> None:
            if (stack := self._stacks.get(getcurrent())) is not None:
                stack.pop()

        return [
            module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True),
            module.register_forward_hook(leave),
        ]


def _given(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors among the arguments of a call, by name."""
    try:
        given = signature.bind_partial(*args, **kwargs).arguments
    except TypeError:
        given = kwargs
    return {name: value for name, value in {**given, **kwargs}.items() if isinstance(value, Tensor)}


def _inner(outer: TokenMasks, module: nn.Module, given: Mapping[str, Tensor], *, outermost: bool) -> TokenMasks:
    """The masks of a part, from its arguments."""
    ids = given.get("input_ids")
    tokens = given.get("inputs_embeds") if ids is None else ids
    own, mask, frames = outer.own, given.get("attention_mask"), given.get("hidden_states")
    if tokens is None and _masks(mask, frames):  # a model of sound has a mask of frames, made of that of its samples
        own = mask.bool()
    elif tokens is None or tokens.ndim < 2:
        own = None if any(name in given for name in OTHERS) else own
    elif mask is not None and mask.shape == tokens.shape[:2]:
        own = mask.bool()
    elif ids is not None and ids is not outer.ids and not outermost:
        own = _unpadded(ids, getattr(getattr(module, "config", None), "pad_token_id", None))
    elif own is not None and own.shape != tokens.shape[:2]:
        own = None
    if (states := given.get("encoder_hidden_states")) is None:
        return TokenMasks(own, outer.states, outer.other, outer.ids if ids is None else ids)
    other = given.get("encoder_attention_mask")
    return TokenMasks(own, states, other.bool() if other is not None and other.ndim == 2 else None, ids)


def _masks(mask: Tensor | None, states: Tensor | None) -> TypeGuard[Tensor]:
    """Whether a mask says which rows of hidden states are real, and is not one that is added to scores."""
    return (
        mask is not None
        and states is not None
        and states.ndim == 3
        and mask.shape == states.shape[:2]
        and not mask.is_floating_point()
    )


def _unpadded(ids: Tensor, pad: int | None) -> Tensor:
    """All but the padding at the end: a decoder needs no mask for it, since no token attends to later ones."""
    real = torch.ones_like(ids, dtype=torch.bool) if pad is None else ids != pad
    return real.flip(1).long().cumsum(1).flip(1) > 0
