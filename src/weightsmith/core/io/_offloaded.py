"""Models larger than memory: the weights stay on disk, and one block's are in memory at a time."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from weightsmith.core.errors import CheckpointError, NonFiniteError, UnsupportedModelError, WeightsmithError
from weightsmith.core.io._checkpoint import CheckpointReader, CheckpointWriter
from weightsmith.core.io._header import TensorSpec
from weightsmith.core.io._pretrained import load_config, model_class
from weightsmith.core.linalg import is_finite

__all__ = [
    "OffloadedModel",
    "StoredNames",
    "StoredState",
    "checkpoint_keys",
    "lacks_weights",
    "meta_model",
    "offloaded",
    "offloaded_of",
    "refuse_meta",
]


WEIGHTLESS = "_weightless"
"""The attribute of models that are meant to have no weights in memory; their copies have it, too."""

_NOT_THERE = re.compile(r"\bmeta tensor|\bregister_meta\b|\bdevice meta\b|\bmeta device\b|devices?, .*\bmeta\b")
"""What PyTorch says of a tensor on the meta device whose value is asked for."""


def offloaded_of(model: nn.Module) -> OffloadedModel | None:
    """Return the storage of a model's weights, if it was opened with :func:`offloaded`."""
    return _MODELS.get(model)


def refuse_meta(model: nn.Module) -> None:
    """Refuse a model whose weights are not in memory, such as one that Accelerate has offloaded.

    Models of :func:`offloaded` and of :func:`meta_model` are meant to be so.

    Raises
    ------
    UnsupportedModelError
        If a parameter is on the meta device.

    Examples
    --------
    >>> refuse_meta(nn.Linear(2, 2))
    >>> refuse_meta(nn.Linear(2, 2, device="meta"))
    Traceback (most recent call last):
    weightsmith.core.errors.UnsupportedModelError: 2 parameters such as 'weight' are on the meta device: expected \
    weights in memory. Load the model without offloading, or give its folder to the command.
    """
    absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if absent and not hasattr(model, WEIGHTLESS):
        raise UnsupportedModelError(
            f"{len(absent)} parameters such as {absent[0]!r} are on the meta device",
            expected="weights in memory",
            do="Load the model without offloading, or give its folder to the command.",
        )


@contextmanager
def offloaded(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, overwrite: bool = False
) -> Iterator[nn.Module]:
    """Open a Hugging Face checkpoint larger than memory, to be changed block by block by a transform.

    Parameters
    ----------
    path : path-like
        The checkpoint's folder; only read.
    out : path-like
        The folder for the changed checkpoint; it appears complete at the end, or not at all.
    overwrite : bool, default: False
        Replace what is at ``out``.

    Yields
    ------
    nn.Module
        The model on the meta device. Transforms that go through :func:`stream` read, change, write and free one
        block at a time; a module outside the blocks is read when it is called and freed at the next block.

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged or incomplete, or ``out`` cannot be written.
    NonFiniteError
        If a weight that is read holds NaN or infinity.
    UnsupportedModelError
        If the method does not work block by block: it visits no block, or needs weights outside the one it visits.
    """
    reader = CheckpointReader(path)
    model = meta_model(path)
    with CheckpointWriter(out, reader.specs, like=path, overwrite=overwrite) as writer:
        stored = OffloadedModel(model, reader, writer)
        _MODELS[model] = stored
        try:
            yield model
        except (RuntimeError, TypeError) as error:  # PyTorch has no class for reading a value that is not there
            if isinstance(error, WeightsmithError) or not lacks_weights(error):
                raise
            raise _not_by_blocks(f"the method or the model reads weights of {path} that are not in memory") from error
        if not stored.written:
            raise _not_by_blocks(f"nothing of {path} was changed block by block")
        stored.copy_rest()
        if writer.specs != reader.specs:
            model.config.save_pretrained(writer.target)  # type: ignore[union-attr, operator]


def lacks_weights(error: Exception) -> bool:
    """Whether PyTorch's error says that a tensor on the meta device has no values."""
    return bool(_NOT_THERE.search(str(error)))


def _not_by_blocks(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        what,
        expected="a method that goes through its model's blocks",
        do="Load the model into memory for this method.",
    )


def meta_model(path: str | os.PathLike[str], *, revision: str = "main") -> nn.Module:
    """Build the architecture of a Hugging Face checkpoint with its weights on the meta device, tied as configured.

    Parameters
    ----------
    path : path-like
        Folder or hub id.
    revision : str, default: "main"
        Branch, tag or commit on the hub.

    Raises
    ------
    CheckpointError
        If the folder holds no configuration that transformers knows.
    UnsupportedModelError
        If it needs code of its own.
    """
    from accelerate import init_empty_weights

    config = load_config(path, revision=revision)
    with init_empty_weights(include_buffers=False), _EmptyOnMeta(), torch.random.fork_rng(devices=[]):
        model: nn.Module = model_class(config)(config).eval()
    model.tie_weights()  # type: ignore[operator]
    setattr(model, WEIGHTLESS, True)
    return model


class StoredState(Mapping[str, Tensor]):
    """A state dict on disk: each tensor is read on access, and not kept in memory.

    Parameters
    ----------
    path : path-like
        A checkpoint.
    model : nn.Module, optional
        Its architecture, which names the tensors; by default the names are those of the files.

    Attributes
    ----------
    specs : dict of str to TensorSpec
        Every tensor's element type and shape, known without reading it.
    keys_of : dict of str to str
        The checkpoint's name of every tensor.

    Raises
    ------
    CheckpointError
        If the checkpoint cannot be read.
    UnsupportedModelError
        If a parameter of the model, such as a stack of experts, is several tensors in the checkpoint.

    Examples
    --------
    >>> import tempfile, safetensors.torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     safetensors.torch.save_file({"w": torch.arange(6.0).view(3, 2)}, f"{folder}/model.safetensors")
    ...     state = StoredState(folder)
    ...     print(state.specs["w"].shape, state.rows("w", 1, 2))
    (3, 2) tensor([[2., 3.]])
    """

    def __init__(self, path: str | os.PathLike[str], model: nn.Module | None = None) -> None:
        self.reader = CheckpointReader(path)
        self.keys_of, stacks = (
            checkpoint_keys(model, self.reader) if model is not None else ({k: k for k in self.reader}, {})
        )
        if stacks:
            raise UnsupportedModelError(
                f"{self.reader.path} holds what the model stacks, {next(iter(stacks))!r}, in several tensors",
                do="Load the model into memory for this method.",
            )
        if model is not None:
            tied = getattr(model, "all_tied_weights_keys", None) or {}
            for pair in tied.items():
                for name, other in (pair, pair[::-1]):
                    if name not in self.keys_of and other in self.keys_of:
                        self.keys_of[name] = self.keys_of[other]
        self.specs: dict[str, TensorSpec] = {name: self.reader.specs[key] for name, key in self.keys_of.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.reader.tensor(self.keys_of[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys_of)

    def __len__(self) -> int:
        return len(self.keys_of)

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Read the indices ``begin`` to ``end`` of a tensor's first axis."""
        shape = self.specs[name].shape
        each = self.specs[name].numel // max(shape[0], 1)
        return self.reader.read(self.keys_of[name], begin * each, end * each).view(-1, *shape[1:])


class _EmptyOnMeta(TorchFunctionMode):
    """Uninitialized tensors are made on the meta device; buffers with values stay in memory.

    Accelerate alone makes each parameter in memory before it moves it, and the allocator keeps that memory.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


class OffloadedModel:
    """The storage of a model on the meta device: reads, writes and frees the weights of its modules."""

    def __init__(self, model: nn.Module, reader: CheckpointReader, writer: CheckpointWriter) -> None:
        self.model, self.reader, self.writer = model, reader, writer
        self.names = {module: name for name, module in model.named_modules()}
        self.stored = StoredNames(model, reader)
        for name, parameter in model.named_parameters():
            if name in self.stored.keys and parameter.is_meta:
                parameter.data = parameter.data.to(reader.specs[self.stored.keys[name]].dtype)
        self.written: set[str] = set()
        self.loaded: set[nn.Module] = set()

    def resize(self, like: nn.Module) -> None:
        """Announce parameters of other shapes, before the first is written; the configuration is written as well.

        Parameters
        ----------
        like : nn.Module
            A model of the same parameters in their new shapes, such as on the meta device.
        """
        specs, old = dict(self.reader.specs), dict(self.model.named_parameters(remove_duplicate=False))
        for name, parameter in like.named_parameters():
            if parameter.shape != old[name].shape:
                for key, part in self.stored.parts(name, parameter.to("meta")).items():
                    specs[key] = TensorSpec(specs[key].dtype, tuple(part.shape))
        self.writer.announce(specs)

    def load(self, module: nn.Module) -> None:
        """Read the weights of a module that are not in memory; NaN and infinity are refused."""
        from accelerate.utils import set_module_tensor_to_device

        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_meta:
                value = self.tensor(module, name)
                if value.is_floating_point() and value.element_size() > 1 and not is_finite(value):
                    raise NonFiniteError(
                        f"parameter {self._path(module, name)!r} of {self.reader.path}",
                        found="NaN or infinity",
                        do="Repair the checkpoint.",
                    )
                set_module_tensor_to_device(module, name, "cpu", value=value, dtype=value.dtype)
        self.loaded.add(module)

    def tensor(self, module: nn.Module, name: str) -> Tensor:
        """Read one parameter of a module, which stays as it is."""
        return self._read(self._path(module, name))

    def store(self, module: nn.Module) -> None:
        """Write a module's parameters, each once."""
        for name, tensor in module.named_parameters():
            for key, part in self.stored.parts(self._path(module, name), tensor).items():
                if key not in self.written:
                    self.writer.write(key, part)
                    self.written.add(key)

    def free(self) -> None:
        """Free everything that was read."""
        from accelerate.utils import set_module_tensor_to_device

        for module in self.loaded:
            for name, _ in list(module.named_parameters()):
                set_module_tensor_to_device(module, name, "meta")
        self.loaded.clear()
        self.model.tie_weights()  # type: ignore[operator] # reading a tied weight has made it one of its own

    def copy_rest(self) -> None:
        """Copy the tensors that were not written."""
        for key in self.reader:
            if key not in self.written:
                self.writer.write(key, self.reader.tensor(key))

    def _path(self, module: nn.Module, name: str) -> str:
        return f"{self.names[module]}.{name}".lstrip(".")

    def _read(self, path: str) -> Tensor:
        """Read a parameter; the experts of a stacked one are read one by one and converted as transformers does."""
        if path not in self.stored.stacks:
            return self.reader.tensor(self.stored.key(path))
        converter, parts = self.stored.stacks[path]
        converter = copy.deepcopy(converter)
        for key, pattern in parts:
            converter.add_tensor(path, key, pattern, self.reader.tensor(key))
        found: Tensor | list[Tensor] = converter.convert(path, model=self.model, config=self.model.config)[path]
        return found[0] if isinstance(found, list) else found


class StoredNames:
    """How a checkpoint names the parameters of a model, by the rules of transformers.

    Parameters
    ----------
    model : nn.Module
        Of transformers.
    reader : CheckpointReader
        What it is loaded from.

    Attributes
    ----------
    keys : dict of str to str
        The checkpoint's name of each parameter that is one tensor there.
    stacks : dict of str to tuple
        The other parameters, such as stacks of experts: their converter, and the tensors with the pattern each matches.
    """

    def __init__(self, model: nn.Module, reader: CheckpointReader) -> None:
        self.model, self.reader = model, reader
        self.keys, self.stacks = checkpoint_keys(model, reader)

    def parts(self, path: str, tensor: Tensor) -> dict[str, Tensor]:
        """What a parameter is in the checkpoint."""
        if path not in self.stacks:
            return {self.key(path): tensor}
        from transformers.core_model_loading import revert_weight_conversion

        parts = revert_weight_conversion(self.model, {path: tensor.detach()})
        if odd := [key for key in parts if key not in self.reader]:
            raise CheckpointError(
                f"{self.reader.path} holds the experts of {path!r} in a layout that is not written",
                found=f"no tensor {odd[0]!r}",
                do="Load the model into memory.",
            )
        return {key: part.contiguous() for key, part in parts.items()}

    def key(self, path: str) -> str:
        """The checkpoint's name of a parameter, or of the weight it is tied to."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        for name in (path, tied.get(path, path)):
            if name in self.keys:
                return self.keys[name]
        raise CheckpointError(
            f"{self.reader.path} lacks tensor {path!r}",
            found=f"{len(self.reader)} tensors such as {list(self.reader)[:3]}",
            do="A checkpoint that transformers splits while loading cannot be streamed: load it.",
        )


def checkpoint_keys(
    model: nn.Module, reader: CheckpointReader
) -> tuple[dict[str, str], dict[str, tuple[Any, list[tuple[str, str]]]]]:
    """The checkpoint's name of each parameter, by the rules of transformers.

    Parameters that are made of several tensors, such as a stack of experts, come with their converter, and the tensors
    with the pattern that each matches.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix, parameters = model.base_model_prefix, model.state_dict()
    keys: dict[str, str] = {}
    stacks: dict[str, tuple[Any, list[tuple[str, str]]]] = {}
    for key in sorted(reader, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, parameters)
        if pattern is None:
            keys[name] = key
        elif len(by_pattern[pattern].target_patterns) == 1:
            stacks.setdefault(name, (by_pattern[pattern], []))[1].append((key, pattern))
    return keys, stacks


_MODELS: WeakKeyDictionary[nn.Module, OffloadedModel] = WeakKeyDictionary()
