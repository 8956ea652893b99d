"""Where in a model activations are read and replaced, and forward passes that repeat only what comes after.

Legend: ``P`` prompts, ``T`` tokens, ``D`` features of a site, ``V`` vocabulary.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.analyze._sae_eval.task import Prompts
from weightsmith.core.data import Samples, batched, pad_token_id, token_positions
from weightsmith.core.errors import HyperparameterError, LayerNotFoundError, NonFiniteError, UnsupportedModelError
from weightsmith.core.linalg import is_finite, upcast
from weightsmith.core.models import evaluation_mode, find_blocks
from weightsmith.core.progress import track

__all__ = ["PatchedRuns", "Site", "collect_activations", "collect_token_activations"]

Kind = Literal["resid", "q", "k", "v", "z"]
Patches = Mapping["Site", Float[Tensor, "P _"]]
_At = tuple[Tensor, Tensor]
"""Numbers of prompts, and of their tokens."""

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
OUTPUTS = ("o_proj", "out_proj", "c_proj", "dense")
"""Names that language models give to attention and to the projection of its output."""


@dataclass(frozen=True)
class Site:
    """A vector that a model computes for each prompt.

    Attributes
    ----------
    block : int
        Number of the block, from 0.
    kind : {"resid", "q", "k", "v", "z"}
        The block's output; the query, key or value of a head as its projection computes it (before rotation or
        normalization); or the head's output before the projection that joins the heads.
    position : str
        Name of the token, as in :attr:`Prompts.positions <weightsmith.analyze.Prompts>`.
    head : int or None
        Number of the head; with grouped queries that of the shared keys and values. None for ``"resid"``.

    Examples
    --------
    >>> str(Site.parse("9.z.6@end")), Site.parse("23.resid@end").block
    ('9.z.6@end', 23)
    """

    block: int
    kind: Kind
    position: str = "end"
    head: int | None = None

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read ``BLOCK.resid@POSITION`` or ``BLOCK.KIND.HEAD@POSITION``.

        Raises
        ------
        HyperparameterError
            If it is neither.
        """
        found = re.fullmatch(r"(\d+)\.(?:resid|([qkvz])\.(\d+))@([\w+]+)", text.strip())
        if found is None:
            raise HyperparameterError("site", found=repr(text), expected="such as '23.resid@end' or '9.z.6@end'")
        block, kind, head, position = found.groups()
        return cls(int(block), cast(Kind, kind or "resid"), position, None if head is None else int(head))

    def __str__(self) -> str:
        return f"{self.block}.{self.kind}{'' if self.head is None else f'.{self.head}'}@{self.position}"


@dataclass(frozen=True)
class _Place:
    """The module whose input or output holds a site, and which of its features are the site's."""

    module: nn.Module
    features: slice
    before: bool = False


def find_place(model: nn.Module, site: Site) -> _Place:
    """Return where a site is in a model.

    Raises
    ------
    HyperparameterError
        If the model has no such block or head.
    UnsupportedModelError
        If its attention is laid out in an unknown way.
    """
    blocks = list(find_blocks(model).values())
    if site.kind not in get_args(Kind) or (site.head is None) != (site.kind == "resid"):
        raise HyperparameterError("site", found=str(site), expected="a head for q, k, v and z, none for resid")
    if site.block >= len(blocks):
        raise HyperparameterError(f"site {site}", found=f"{len(blocks)} blocks", expected="a block from 0 on")
    block = blocks[site.block]
    if site.kind == "resid":
        return _Place(block, slice(None))
    attention = next((getattr(block, name) for name in ATTENTION if hasattr(block, name)), None)
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = getattr(config, "num_attention_heads", None)
    output = next((getattr(attention, name) for name in OUTPUTS if hasattr(attention, name)), None)
    if attention is None or output is None or not heads:
        raise UnsupportedModelError(f"site {site}", found=type(block).__name__, expected="a block with attention heads")
    shared = getattr(config, "num_key_value_heads", None) or heads
    rows, columns = output.weight.shape
    joined = rows if hasattr(output, "nf") else columns  # Conv1D stores its weight transposed
    width = joined // heads
    count = shared if site.kind in "kv" else heads
    head = cast(int, site.head)
    if head >= count:
        raise HyperparameterError(f"site {site}", found=f"{count} heads", expected="a head from 0 on")
    if site.kind == "z":
        return _Place(output, slice(head * width, (head + 1) * width), before=True)
    own = getattr(attention, f"{site.kind}_proj", None)
    if own is not None:
        return _Place(own, slice(head * width, (head + 1) * width))
    place = "qkv".index(site.kind)
    for name in ("c_attn", "qkv_proj"):  # queries, keys, values of all heads, one after the other
        if hasattr(attention, name):
            start = (0, heads * width, (heads + shared) * width)[place] + head * width
            return _Place(getattr(attention, name), slice(start, start + width))
    if hasattr(attention, "query_key_value") and shared == heads:  # head by head
        start = (3 * head + place) * width
        return _Place(attention.query_key_value, slice(start, start + width))
    raise UnsupportedModelError(f"site {site}", found=type(attention).__name__, expected="known projections")


class _Done(Exception):
    """All sites have been read."""


@contextmanager
def _hooked(
    places: Mapping[Site, _Place],
    at: Mapping[Site, _At],
    read: dict[Site, Tensor],
    patches: Patches,
    *,
    stop: bool,
) -> Iterator[None]:
    """Read sites, each as a copy in float32 on the CPU, and replace those that have a patch."""

    def see(site: Site, value: Tensor) -> Tensor | None:
        (prompts, tokens), part = at[site], places[site].features
        if site in patches:
            value = value.clone()
            value[prompts, tokens, part] = patches[site].to(value)
            return value
        read[site] = upcast(value[prompts, tokens, part]).cpu()  # indexing copies: later operations may work in place
        if stop and len(read) == len(places):
            raise _Done
        return None

    def after(site: Site) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            new = see(site, output[0] if isinstance(output, tuple) else output)
            return new if new is None or not isinstance(output, tuple) else (new, *output[1:])

        return hook

    def before(site: Site) -> Any:
        def hook(module: nn.Module, args: Any) -> Any:
            new = see(site, args[0])
            return None if new is None else (new, *args[1:])

        return hook

    handles = [
        place.module.register_forward_pre_hook(before(site))
        if place.before
        else place.module.register_forward_hook(after(site))
        for site, place in places.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class PatchedRuns:
    """Forward passes over some prompts in which activations are replaced.

    The model runs once as a whole. What a patch cannot change is not computed again: blocks before the first site, and
    tokens before its position, whose keys and values are cached. A pass with the clean activations as patches is
    bit-identical to a pass without patches.

    Parameters
    ----------
    model : nn.Module
        A causal language model of the transformers library.
    prompts : Prompts
        As many as fit in one batch.
    sites : sequence of Site
        What is read, and may be replaced.

    Attributes
    ----------
    activations : dict of Site to Tensor of shape (prompts, features)
        Of the clean run, in float32 on the CPU.

    Examples
    --------
    >>> from weightsmith.analyze import ioi_task
    >>> from weightsmith.embedded import load
    >>> model, tokenizer = load("smollm2")
    >>> site = Site.parse("23.resid@end")
    >>> prompts = ioi_task(tokenizer, evaluation_prompts=4).evaluation
    >>> runs = PatchedRuns(model, prompts, [site])
    >>> torch.equal(runs.logits({}), runs.logits(runs.activations))
    True
    >>> runs.activations[site].shape
    torch.Size([4, 576])
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, prompts: Prompts, sites: Sequence[Site]) -> None:
        if not sites:
            raise HyperparameterError("sites", found="none", expected="at least one")
        self.model = model
        self._places = {site: find_place(model, site) for site in sites}
        blocks = list(find_blocks(model).values())
        self._start = min(site.block + (site.kind == "resid") for site in sites)
        self._skipped = blocks[: self._start]
        device = next(model.parameters()).device
        self._ids = prompts.input_ids.to(device)
        self._masks = _masks(model, prompts.attention_mask.to(device))
        at = _positions(prompts, sites)
        kept: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            self._as_tuple = isinstance(output, tuple)
            kept.append((output[0] if self._as_tuple else output).clone())

        names = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self._options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        handle = None
        if self._skipped:
            handle = self._skipped[-1].register_forward_hook(keep)
        self._first = 0
        self._cache: Any = None
        try:
            with evaluation_mode(model):
                output = self._run(use_cache=True)
        finally:
            if handle is not None:
                handle.remove()
        first = min(int(tokens.min()) for _, tokens in at.values())
        cache: Any = getattr(output, self._cache_name, None)
        length = self._ids.shape[1]
        if first and all(hasattr(layer, "keys") for layer in getattr(cache, "layers", [object()])):
            with suppress(RuntimeError):  # a window that has passed its first tokens cannot be turned back
                cache.crop(first - length)
                self._cache, self._first = cache, first
        self._at = {site: (rows, tokens - self._first) for site, (rows, tokens) in at.items()}
        self._entry = [hidden[:, self._first :] for hidden in kept]
        # read again in a pass as short as the patched ones: attention rounds otherwise for fewer tokens
        self.activations: dict[Site, Tensor] = {}
        self._clean = self._patched({}, self.activations)
        _check_finite(self.activations)

    @torch.no_grad()
    def logits(self, patches: Patches) -> Float[Tensor, "P V"]:
        """Return the logits after the last token with some activations replaced, in float32."""
        return self._patched(patches, {}) if patches else self._clean

    def _patched(self, patches: Patches, read: dict[Site, Tensor]) -> Tensor:
        old = [vars(block).get("forward") for block in self._skipped]
        try:
            for number, block in enumerate(self._skipped):
                block.forward = self._repeat if number == self._start - 1 else self._pass_on
            with evaluation_mode(self.model), _hooked(self._places, self._at, read, patches, stop=False):
                return upcast(self._run(use_cache=self._cache is not None).logits[:, -1])
        finally:
            for block, forward in zip(self._skipped, old, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward

    def _run(self, *, use_cache: bool) -> Any:
        options = {**self._options, **self._masks}
        if "position_ids" in options:
            options["position_ids"] = options["position_ids"][:, self._first :]
        if self._cache is not None:
            cache = copy.copy(self._cache)  # what a pass adds to the layers of its copy is forgotten with it
            cache.layers = [copy.copy(layer) for layer in cache.layers]
            options[self._cache_name] = cache
        return self.model(input_ids=self._ids[:, self._first :], use_cache=use_cache, **options)

    def _pass_on(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states,) if self._as_tuple else hidden_states

    def _repeat(self, *args: Any, **kwargs: Any) -> Any:
        entry = self._entry[0].clone()  # the next block may work in place
        return (entry,) if self._as_tuple else entry


def collect_activations(
    model: nn.Module, prompts: Prompts, sites: Sequence[Site], *, batch_size: int = 128
) -> dict[Site, Float[Tensor, "P _"]]:
    """Read the activations of prompts; nothing after the last site is computed.

    Parameters
    ----------
    model : nn.Module
        A causal language model of the transformers library.
    prompts : Prompts
        What to run it on.
    sites : sequence of Site
        What to read.
    batch_size : int, default: 128
        Prompts per forward pass.

    Returns
    -------
    dict of Site to Tensor of shape (prompts, features)
        Copies in float32 on the CPU.

    Raises
    ------
    LayerNotFoundError
        If the prompts have no such token.
    NonFiniteError
        If an activation is NaN or infinite.
    """
    starts = range(0, len(prompts), batch_size)
    batches = [prompts[start : start + batch_size] for start in starts]
    return _collect(
        model, sites, [(batch.input_ids, batch.attention_mask, _positions(batch, sites)) for batch in batches]
    )


def collect_token_activations(
    model: nn.Module, samples: Samples, site: Site, *, batch_size: int = 8
) -> Float[Tensor, "tokens D"]:
    """Read the activations of all tokens of a text but padding and start tokens, wherever these are.

    Parameters
    ----------
    model : nn.Module
        A causal language model of the transformers library.
    samples : Samples
        Mappings with ``input_ids``.
    site : Site
        What to read; its position does not matter.
    batch_size : int, default: 8
        Samples per forward pass.
    """
    start = getattr(getattr(model, "config", None), "bos_token_id", None)
    runs: list[tuple[Tensor, Tensor, dict[Site, _At]]] = []
    for batch in batched(samples, batch_size, pad_token_id=pad_token_id(model)):
        ids = cast(Mapping[str, Tensor], batch)["input_ids"]
        mask = cast(Mapping[str, Tensor], batch).get("attention_mask", torch.ones_like(ids)).bool()
        wanted = mask if start is None else mask & (ids != start)
        rows, tokens = wanted.nonzero(as_tuple=True)
        runs.append((ids, mask, {site: (rows, tokens)}))
    return _collect(model, [site], runs)[site]


@torch.no_grad()
def _collect(
    model: nn.Module, sites: Sequence[Site], runs: Sequence[tuple[Tensor, Tensor, Mapping[Site, _At]]]
) -> dict[Site, Tensor]:
    places, device = {site: find_place(model, site) for site in sites}, next(model.parameters()).device
    found: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for ids, mask, at in track(runs, "activations", total=len(runs)):
        read: dict[Site, Tensor] = {}
        with evaluation_mode(model), _hooked(places, at, read, {}, stop=True), suppress(_Done):
            model(input_ids=ids.to(device), use_cache=False, **_masks(model, mask.to(device)))
        for site, rows in read.items():
            found[site].append(rows)
    together = {site: torch.cat(rows) for site, rows in found.items()}
    _check_finite(together)
    return together


def _masks(model: nn.Module, mask: Tensor) -> dict[str, Tensor]:
    """The attention mask, and positions that padding on the left does not shift."""
    mask = mask.long()
    return {"attention_mask": mask, **token_positions(model, mask)}


def _positions(prompts: Prompts, sites: Sequence[Site]) -> dict[Site, _At]:
    for site in sites:
        if site.position not in prompts.positions:
            raise LayerNotFoundError(
                f"position of site {site}", found=site.position, expected=f"one of {sorted(prompts.positions)}"
            )
    return {site: (torch.arange(len(prompts)), prompts.positions[site.position]) for site in sites}


def _check_finite(activations: Mapping[Site, Tensor]) -> None:
    for site, rows in activations.items():
        if not is_finite(rows):
            raise NonFiniteError(f"activations of site {site}", do="Repair the model, or choose another site.")
