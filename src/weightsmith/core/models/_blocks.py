"""Run a model block by block over calibration data, whatever the model passes between its blocks.

The forward pass of every batch runs as a coroutine (a greenlet) that pauses where the model calls its next block.
So each block is met with exactly the arguments the model gives it (hidden states, masks, position embeddings, shared
biases, encoder outputs), and no model needs code of its own. One batch holds one hidden state, nothing else.

A model opened with :func:`~weightsmith.core.io.offloaded` has no weights in memory: each block's are read when the
stream reaches it and written when it leaves.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from safetensors.torch import load_file, save_file
from torch import nn

from weightsmith.core.caller import callers_settings
from weightsmith.core.data import Batch, Batches, as_batches, to_device
from weightsmith.core.errors import LayerNotFoundError, UnsupportedModelError
from weightsmith.core.io import OffloadedModel, TemporaryFolder, offloaded_of, refuse_meta, writing
from weightsmith.core.models._experts import find_matrices
from weightsmith.core.models._find_blocks import find_blocks, refuse_foreign_blocks
from weightsmith.core.models._layers import Layer, writable
from weightsmith.core.models._observe import A, call_checked, device_of, observe_runs, quiet
from weightsmith.core.models._products import products_in_float32
from weightsmith.core.models._token_masks import StreamMasks, TokenMasks, token_masks
from weightsmith.core.progress import track
from weightsmith.core.sharding import refuse_sharded

__all__ = ["Block", "block_layers", "rewriting", "stream"]

AGAIN = "the model applies its blocks again: {}. Their inputs are those of the first time"


@dataclass
class Block:
    """One block of a model, met by every batch at the same time.

    Attributes
    ----------
    name : str
        Dotted path in the model; empty for a model without repeated blocks, which is one block.
    module : nn.Module
        The block.
    layers : list of Layer
        Its weight matrices, named as in the whole model.
    inputs : list of (args, kwargs, masks)
        What the model passes to the block, one entry per batch, and which of its tokens are real.
    """

    name: str
    module: nn.Module
    layers: list[Layer]
    inputs: list[tuple[tuple[Any, ...], dict[str, Any], TokenMasks]] = field(default_factory=list)

    @torch.no_grad()
    def observe(self, layers: Sequence[Layer], make: Callable[[Layer], A], *, shared: bool = True) -> dict[str, A]:
        """Run the block as it is now on every batch and accumulate its layers' inputs.

        Parameters
        ----------
        layers : sequence of Layer
            The layers to watch.
        make : callable
            Makes the accumulator of a layer.
        shared : bool, default: True
            Whether layers that receive the very same tensors (query, key and value, say) share one.

        Returns
        -------
        dict of str to Accumulator
            By layer name; layers no batch reached are absent.
        """
        runs = [(lambda a=args, k=kwargs: self.run(a, k), lambda m=masks: m) for args, kwargs, masks in self.inputs]
        with products_in_float32(self.module.parameters()):
            return observe_runs(layers, make, runs, shared=shared)

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call the block as the model does."""
        with callers_settings():
            return self.module(*args, **kwargs)


def block_layers(
    model: nn.Module, include: str | Sequence[str] = "*", exclude: str | Sequence[str] = ()
) -> list[Layer]:
    """Find the weight matrices inside the repeated blocks: what is left out are embeddings, stems and heads.

    Parameters
    ----------
    model : nn.Module
        Any model; one without repeated blocks is a block as a whole.
    include, exclude : str or sequence of str
        Shell patterns as for :func:`weightsmith.core.models.find_layers`.

    Raises
    ------
    LayerNotFoundError
        If nothing inside the blocks matches.

    Examples
    --------
    >>> body = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    >>> [layer.name for layer in block_layers(nn.ModuleDict({"body": body, "head": nn.Linear(4, 2)}))]
    ['body.0', 'body.1']
    """
    return [layer for block in _blocks_with_layers(model, include, exclude).values() for layer in block.layers]


def stream(
    model: nn.Module, batches: Batches | None, include: str | Sequence[str] = "*", exclude: str | Sequence[str] = ()
) -> Generator[Block, None, None]:
    """Visit the blocks in the order the model calls them; what the loop does to a block, later blocks see.

    Parameters
    ----------
    model : nn.Module
        Any model, or one opened with :func:`~weightsmith.core.io.offloaded`.
    batches : sequence of Batch or None
        Calibration data. None visits the blocks in module order, without inputs.
    include, exclude : str or sequence of str
        Shell patterns on layer names, see :func:`~weightsmith.core.models.find_layers`. Blocks with no matching
        layer are passed by.

    Yields
    ------
    Block
        With the inputs every batch brings to it.

    Raises
    ------
    LayerNotFoundError
        If no layer of the model matches.
    CalibrationError
        If there are no batches, or the model rejects one.

    Warns
    -----
    UserWarning
        If no batch reaches some of the blocks (experts, a decoder that is not run): they stay as they are. If the
        model applies its blocks several times (ALBERT): their inputs are those of the first time. Or if one of several
        patterns matches nothing.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> [(block.name, len(block.inputs)) for block in stream(model, [torch.ones(3, 2)] * 4)]
    [('0', 4), ('2', 4)]
    """
    refuse_meta(model)
    blocks = _blocks_with_layers(model, include, exclude)
    offloaded = offloaded_of(model)
    if batches is None:
        for block in blocks.values():
            if block.layers:
                yield from _visit(block, offloaded)
                if offloaded is not None:
                    offloaded.free()
        return
    batches = as_batches(batches)
    named = _warn_of_shared_blocks(model, blocks)
    with quiet(model), _BatchForwards(model, blocks, batches, offloaded) as forwards:
        while (met := forwards.next_block()) is not None:
            if met.layers:
                yield from _visit(met, offloaded)
        if not named and forwards.apply_again():
            warnings.warn(AGAIN.format(f"{len(forwards.again)} of {len(blocks)}"), stacklevel=2)


@contextmanager
def rewriting(
    model: nn.Module, batches: Batches | None, include: str | Sequence[str] = "*", exclude: str | Sequence[str] = ()
) -> Iterator[Iterator[Block]]:
    """Open a :func:`stream` for a transform: if anything fails, every block is put back as it was.

    The old weights wait in a temporary file, not in memory. Parameters and errors are those of :func:`stream`.

    Yields
    ------
    iterator of Block
        To loop over, changing parameters in place.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False))
    >>> weight = model[0].weight.item()
    >>> try:
    ...     with rewriting(model, None) as blocks:
    ...         for block in blocks:
    ...             block.layers[0].write(torch.zeros(1, 1))
    ...             raise KeyboardInterrupt
    ... except KeyboardInterrupt:
    ...     print(model[0].weight.item() == weight)
    True
    """
    blocks = stream(model, batches, include, exclude)
    saved: list[tuple[nn.Module, Path]] = []
    with TemporaryFolder() as folder:

        def remembered() -> Iterator[Block]:
            refuse_sharded(model)
            found = _blocks_with_layers(model, include, exclude).values()
            layers = [layer for block in found for layer in block.layers]
            writable(layers)
            for name, module in model.named_modules():
                if getattr(module, "merged_adapters", None):
                    raise UnsupportedModelError(
                        f"an adapter is merged into the weight of {name!r}",
                        do="Unmerge it, or make it part of the weights with merge_and_unload.",
                    )
            for block in track(blocks, "blocks", total=sum(bool(block.layers) for block in found)):
                if offloaded_of(model) is None:
                    path = Path(folder) / f"{len(saved)}.safetensors"
                    with writing(path):
                        save_file({n: p.detach().contiguous() for n, p in block.module.named_parameters()}, path)
                    saved.append((block.module, path))
                yield block

        try:
            yield remembered()
        except BaseException:
            for module, path in reversed(saved):  # a weight that two blocks share was saved unchanged by the first
                old = load_file(path)
                for name, parameter in module.named_parameters():
                    parameter.data.copy_(old[name])
            raise
        finally:
            blocks.close()


class _BatchForwards:
    """The forward passes of all batches, each paused where its model calls a block not yet visited."""

    def __init__(
        self,
        model: nn.Module,
        blocks: Mapping[nn.Module, Block],
        batches: Sequence[Batch],
        offloaded: OffloadedModel | None,
    ) -> None:
        self.model, self.offloaded = model, offloaded
        self.pending = dict(blocks)
        self.device = device_of(model) if offloaded is None else torch.device("cpu")
        self.main = getcurrent()
        self.forwards = [greenlet(self._start(batch, index)) for index, batch in enumerate(batches)]
        self.masks = StreamMasks(model, [block.name for block in blocks.values()])
        self.paused_at: dict[greenlet, tuple[nn.Module, tuple[Any, ...], dict[str, Any], TokenMasks]] = {}
        self.again: set[nn.Module] = set()

    def __enter__(self) -> _BatchForwards:
        self.masks.__enter__()
        self.hooks = [
            module.register_forward_pre_hook(self._pause, with_kwargs=True, prepend=True) for module in self.pending
        ]
        if self.offloaded is not None:
            inside = {child for module in self.pending for child in module.modules()}
            self.hooks += [
                module.register_forward_pre_hook(self._load, prepend=True)
                for module in self.model.modules()
                if module not in inside and any(p.is_meta for p in module.parameters(recurse=False))
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
        for forward in self.forwards:
            if forward:
                forward.throw(GreenletExit)
        self.masks.__exit__()
        if self.offloaded is not None:
            self.offloaded.free()

    def next_block(self) -> Block | None:
        """Let every batch go on to its next block and return the first one met, or None when all were visited."""
        if not any(block.layers for block in self.pending.values()):
            return None
        with torch.no_grad(), products_in_float32(self.model.parameters()):
            for forward in self.forwards:
                if not forward.dead and self.paused_at.get(forward, (None,))[0] not in self.pending:
                    self._resume(forward)
        if self.offloaded is not None:
            self.offloaded.free()
        waiting = [forward for forward in self.forwards if not forward.dead]
        if not waiting:
            self._report_unreached()
            return None
        module = self.paused_at[waiting[0]][0]
        block = self.pending.pop(module)
        block.inputs = [
            self.paused_at[forward][1:]
            for forward in self.forwards
            if not forward.dead and self.paused_at[forward][0] is module
        ]
        return block

    def apply_again(self) -> bool:
        """Whether the model applies a block that was visited another time; the first batch runs on to its end for it.

        Only what a model in memory without a count of its layers does is unknown by now.
        """
        if self.offloaded is None and _layer_count(self.model) is None:
            # what goes wrong behind the last block does not concern a method on the blocks
            with torch.no_grad(), products_in_float32(self.model.parameters()), suppress(Exception):
                while not self.forwards[0].dead:
                    self._resume(self.forwards[0])
        return bool(self.again)

    def _resume(self, forward: greenlet) -> None:
        with callers_settings():  # entered and left here: a forward pass that is paused must leave none behind
            arrival = forward.switch()
        if isinstance(arrival, tuple):
            self.paused_at[forward] = arrival
        else:
            self.paused_at.pop(forward, None)

    def _start(self, batch: Batch, index: int) -> Callable[[], None]:
        def forward() -> None:
            placed = to_device(batch, self.device)
            self.masks.start(token_masks(placed))
            call_checked(self.model, placed, index)

        return forward

    def _pause(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if getcurrent() is self.main:
            return
        if module in self.pending:
            self.main.switch((module, args, kwargs, self.masks.now))
        else:
            self.again.add(module)

    def _load(self, module: nn.Module, args: object) -> None:
        assert self.offloaded is not None
        self.offloaded.load(module)

    def _report_unreached(self) -> None:
        names = [block.name for block in self.pending.values()]
        warnings.warn(f"no calibration batch reached blocks {names[:4]}: they stay as they are", stacklevel=4)


def _layer_count(model: nn.Module) -> int | None:
    """How many layers the configuration counts."""
    layers = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    return layers if isinstance(layers, int) else None


def _warn_of_shared_blocks(model: nn.Module, blocks: Mapping[nn.Module, Block]) -> bool:
    """Say that a block is applied several times, where the configuration counts more layers than there are."""
    layers = _layer_count(model)
    lists = [[len(part) for part in block.modules() if isinstance(part, nn.ModuleList)] for block in blocks]
    own = sum(max(lengths, default=1) for lengths in lists)  # a block may be a list of layers itself
    shared = layers is not None and own < layers and all(block.name for block in blocks.values())
    if shared:
        warnings.warn(AGAIN.format(f"{own} for {layers} layers"), stacklevel=3)
    return shared


def _visit(block: Block, offloaded: OffloadedModel | None) -> Iterator[Block]:
    """Hand out a block; of an offloaded model, read it before and write it after."""
    if offloaded is not None:
        offloaded.load(block.module)
    yield block
    if offloaded is not None:
        offloaded.store(block.module)
    block.inputs = []


def _blocks_with_layers(
    model: nn.Module, include: str | Sequence[str], exclude: str | Sequence[str]
) -> dict[nn.Module, Block]:
    refuse_foreign_blocks(model)
    blocks = {module: Block(name, module, []) for name, module in find_blocks(model).items()}
    owner = {child: block for block in blocks.values() for child in block.module.modules()}
    layers = find_matrices(model, include, exclude)
    for layer in layers:
        if layer.module in owner:
            owner[layer.module].layers.append(layer)
    if not any(block.layers for block in blocks.values()):
        raise LayerNotFoundError(
            f"no layer inside the blocks matches {include!r}",
            found=f"blocks {[block.name for block in blocks.values()][:4]}",
            do="Layers outside the repeated blocks (embeddings, heads) are not streamed.",
        )
    return blocks
