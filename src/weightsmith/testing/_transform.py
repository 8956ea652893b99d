"""The contract of a method that changes a network in place."""

from __future__ import annotations

import copy
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations

from weightsmith.core.errors import WeightsmithError
from weightsmith.core.io import load_model, offloaded, save_model
from weightsmith.core.sharding import whole
from weightsmith.signature import Signature, read
from weightsmith.testing._interrupts import InterruptAt, count_operations, evenly
from weightsmith.testing._models import (
    ARCHITECTURES,
    MIXTURES,
    PLAIN,
    REGRESSIONS,
    TRANSFORMERS,
    check_names,
    family_of,
    samples,
    tiny,
)
from weightsmith.testing._state import Snapshot, differences, outputs, same

__all__ = ["check_transform", "transform_checks"]

STREAMED = ("llama", "gpt2", "bert", "qwen3_moe")
"""Architectures that are also tried on disk, block by block: with untied and tied weights, and with experts."""


def check_transform(
    function: Callable[..., Any],
    *,
    options: Mapping[str, Any] | None = None,
    refuses: Sequence[str] = (),
    models: Sequence[str] = ARCHITECTURES,
) -> None:
    """Check that a method which changes a network keeps the contract of all weightsmith methods.

    On tiny models of the usual architectures: it changes something or refuses by name; whatever stops it, the model is
    exactly as before; equal seeds give equal bits; the dtype stays, and data may come in float32; the result is saved
    and loaded by plain transformers; from disk it does what it does in memory, or refuses; padding does not count;
    values that are not finite, options out of range, computed weights, packed layers, weights in another order of
    memory or not in it, PyTorch's global settings, adapters and weights that FSDP2 has split between processes are
    handled or refused.

    Parameters
    ----------
    function : callable
        The method. What its parameters stand for is read from their types, see :mod:`weightsmith.signature`.
    options : mapping, optional
        Hyper-parameters to call it with, such as a number of steps that is small enough for a test.
    refuses : sequence of str, default: ()
        Architectures it does not support. It must refuse exactly these, with a
        :class:`~weightsmith.core.errors.WeightsmithError`.
    models : sequence of str, default: all
        Architectures to try, names of :func:`~weightsmith.testing.tiny`; methods on regressions are tried on
        :data:`~weightsmith.testing.REGRESSIONS` instead.

    Raises
    ------
    AssertionError
        If a part of the contract does not hold; the message says which, on which model, and what was found.

    See Also
    --------
    transform_checks : the same checks one by one, for ``pytest.mark.parametrize``.

    Examples
    --------
    >>> from weightsmith.sparsify import magnitude
    >>> check_transform(magnitude, models=["mlp", "llama"])
    >>> def forgets(model: nn.Module) -> None:
    ...     '''Do nothing.'''
    >>> check_transform(forgets, models=["mlp"])
    Traceback (most recent call last):
    AssertionError: forgets on mlp: changed nothing...
    """
    for _, check in transform_checks(function, options=options, refuses=refuses, models=models):
        check()


def transform_checks(
    function: Callable[..., Any],
    *,
    options: Mapping[str, Any] | None = None,
    refuses: Sequence[str] = (),
    models: Sequence[str] = ARCHITECTURES,
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the checks of :func:`check_transform` one by one, each with its name.

    Examples
    --------
    >>> from weightsmith.sparsify import magnitude
    >>> [name for name, _ in transform_checks(magnitude, models=["mlp"])][:2]
    ['changes_or_refuses-mlp', 'restores_when_interrupted-mlp']
    """
    signature = read(function)
    check_names(models, refuses)
    for name in models:
        case = Case(signature, name, options or {})
        if name in refuses:
            yield f"refuses-{name}", partial(_refuses, case)
            continue
        for check in CHECKS:
            yield f"{check.__name__.strip('_')}-{name}", partial(check, case)


@dataclass(frozen=True)
class Case:
    """One method on one tiny model."""

    signature: Signature
    architecture: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What messages start with."""
        return f"{self.signature.function.__name__} on {self.architecture}"

    @property
    def is_transformer(self) -> bool:
        """Whether it is a Hugging Face model."""
        return self.family in TRANSFORMERS

    @property
    def family(self) -> str:
        """The architecture without what its outputs are."""
        return family_of(self.architecture)

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A fresh model, part of it frozen, with gradients and in training mode as a user may have left it."""
        model = tiny(self.architecture)[0].to(dtype).train()
        next(model.children()).eval()
        first = next(model.parameters())
        first.requires_grad_(False)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)
        return model

    def data(self, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """Batches and samples for every data parameter, real numbers in one type."""
        return {
            role.name: _cast([_labeled(self.architecture)] if role.kind == "batches" else self.samples(place), dtype)
            for place, role in enumerate(self.signature.data)
        }

    def samples(self, place: int) -> list[Any]:
        """Sixteen samples for the data set at a place of the signature; no label of a regression is in two sets."""
        return samples(self.architecture, 16 * (place + 1))[16 * place :]

    def arguments(self, data: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        """Everything the method needs beside the model; equal calls draw equal random numbers."""
        others = {role.name: _scaled(tiny(self.architecture)[0]) for role in self.signature.networks}
        generator = self.signature.generator
        seed = {} if generator is None else {generator.name: torch.Generator().manual_seed(0)}
        return {**self.data(), **(data or {}), **others, **seed, **self.options, **options}

    def call(
        self, model: nn.Module, data: Mapping[str, Any] | None = None, *, global_seed: int = 0, **options: Any
    ) -> Any:
        """Call the method with everything it needs."""
        arguments = self.arguments(data, **options)
        torch.manual_seed(global_seed)
        return self.signature.function(model, **arguments)

    def works_or_refuses(
        self,
        model: nn.Module,
        what: str,
        *,
        data: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        results: list[Any] | None = None,
    ) -> bool:
        """Call the method; anything but success, or a refusal that leaves the model unchanged, is an error."""
        before = Snapshot(model)
        try:
            result = self.call(model, data, **(options or {}))
        except WeightsmithError:
            changed = before.changes(model)
            assert not changed, f"{self.title}, {what}: refused, but left {_some(changed)}"
            return False
        except Exception as error:
            raise AssertionError(f"{self.title}, {what}: {type(error).__name__}: {error}") from error
        if results is not None:
            results.append(result)
        return True


def _refuses(case: Case) -> None:
    model = case.model()
    assert not case.works_or_refuses(model, "a model it does not support"), f"{case.title}: expected a refusal"


def _changes_or_refuses(case: Case) -> None:
    model, before = case.model(), case.model()
    modes = {name: module.training for name, module in model.named_modules()}
    hooks = _hooks(model)
    torch.manual_seed(0)  # as `call` does
    drawn = _random_state()
    assert case.works_or_refuses(model, "a plain call"), f"{case.title}: refused, but is not listed among `refuses`"
    assert all(map(same, drawn, _random_state())), f"{case.title}: changed a global random number generator"
    trains = {(name, p.shape): p.requires_grad for name, p in before.named_parameters()}
    wrong = [n for n, p in model.named_parameters() if trains.get((n, p.shape), p.requires_grad) != p.requires_grad]
    assert not wrong, f"{case.title}: changed requires_grad of {_some(wrong)}"
    wrong = [name for name, module in model.named_modules() if modes.get(name, module.training) != module.training]
    assert not wrong, f"{case.title}: changed the training mode of {_some(wrong)}"
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), f"{case.title}: {name} holds NaN or infinity"
    _, batch = tiny(case.architecture)
    expected = outputs(model.eval(), batch)
    if differences(model, before):
        assert _hooks(model) <= hooks, f"{case.title}: left {_hooks(model) - hooks} hooks"
    else:  # a method that works while the model runs
        assert not torch.equal(expected, outputs(before.eval(), batch)), f"{case.title}: changed nothing"
    assert expected.isfinite().all(), f"{case.title}: the outputs hold NaN or infinity"
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for name, again in {
        "deepcopy": copy.deepcopy(model),
        "pickle": torch.load(stream, weights_only=False),
    }.items():
        assert torch.equal(outputs(again, batch), expected), f"{case.title}: {name} computes other outputs"


def _restores_when_interrupted(case: Case) -> None:
    finished = case.model()
    _, total = count_operations(lambda: case.call(finished))
    for operation in evenly(total, 4)[1:]:
        model = case.model()
        before = Snapshot(model)
        try:
            with InterruptAt(operation):
                case.call(model)
        except KeyboardInterrupt:
            changed = before.changes(model)
            assert not changed, f"{case.title}: stopped at operation {operation} of {total}, left {_some(changed)}"
        else:
            raise AssertionError(f"{case.title}: swallowed Ctrl-C at operation {operation} of {total}")
        case.call(model)
        other = differences(model, finished)
        assert not other, (
            f"{case.title}: after a stop at {operation} of {total}, the next call gave another {_some(other)}"
        )


def _is_repeatable(case: Case) -> None:
    first, second = case.model(), case.model()
    case.call(first)
    case.call(second, global_seed=1)
    other = differences(first, second)
    assert not other, f"{case.title}: equal generators gave another {_some(other)}"


def _keeps_the_dtype(case: Case) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        model = case.model(dtype)
        if dtype == torch.float64 and case.architecture in MIXTURES:
            continue  # transformers' own experts do not run in it
        with torch.no_grad():
            _inner_matrices(model)[-2][1][0] = 0  # a dead unit
        if not case.works_or_refuses(model, str(dtype), data=case.data(dtype)):
            continue
        broken = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
        assert not broken, f"{case.title}: a row of zeros in {dtype} gave NaN or infinity in {_some(broken)}"
        wrong = [n for n, p in model.named_parameters() if p.is_floating_point() and p.dtype != dtype]
        assert not wrong, f"{case.title}: no longer {dtype}: {_some(wrong)}"


def _takes_data_in_float32(case: Case) -> None:
    """Images and labels come in float32, whatever the type of the weights."""
    if not case.signature.data or case.family not in ("vit", *PLAIN):  # the others read whole numbers
        return
    for dtype in (torch.bfloat16, torch.float64):
        if not case.works_or_refuses(case.model(dtype), str(dtype), data=case.data(dtype)):
            continue
        works = case.works_or_refuses(case.model(dtype), f"float32 data for weights in {dtype}")
        assert works, f"{case.title}: refuses float32 data for weights in {dtype}"


def _loads_in_transformers(case: Case) -> None:
    if not case.is_transformer:
        return
    model, before = case.model(), case.model()
    _, batch = tiny(case.architecture)
    result = case.call(model)
    if getattr(result, "files", None):
        # part of what it does, in files beside the model, works while the model runs: saved is the plain model
        before.load_state_dict(model.state_dict())
        expected = outputs(before.eval(), batch)
    else:
        expected = outputs(model.eval(), batch)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)  # type: ignore[operator]
        again, report = type(model).from_pretrained(folder, output_loading_info=True)  # type: ignore[attr-defined]
    lost = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    assert not lost, f"{case.title}: saved and loaded, transformers reports {_some(lost)}"
    gap = float((outputs(again.eval(), batch) - expected).abs().max())
    assert gap <= 1e-5 * max(1.0, float(expected.abs().max())), (
        f"{case.title}: saved and loaded, logits differ by {gap}"
    )


def _streams_or_refuses(case: Case) -> None:
    """From disk, block by block, a method does what it does in memory, to rounding, or refuses and writes nothing."""
    if case.architecture not in STREAMED:
        return
    with tempfile.TemporaryDirectory() as folder:
        source, out, expected = (Path(folder) / name for name in ("source", "out", "expected"))
        save_model(case.model(), source)
        try:
            with offloaded(source, out) as stored:
                case.call(stored)
        except WeightsmithError:
            assert not out.exists(), f"{case.title}, on disk: refused, but wrote {out.name}"
            return
        except Exception as error:
            raise AssertionError(f"{case.title}, on disk: {type(error).__name__}: {error}") from error
        model = case.model()
        case.call(model)
        save_model(model, expected)
        ours, theirs = (load_model(path).state_dict() for path in (out, expected))
    wrong = [n for n, v in theirs.items() if n not in ours or not torch.allclose(ours[n], v, rtol=1e-4, atol=1e-5)]
    assert not wrong, f"{case.title}, on disk: gave another {_some(wrong)} than in memory"


def _refuses_what_is_not_finite_on_disk(case: Case) -> None:
    if case.architecture not in STREAMED:
        return
    model = case.model()
    name, weight = _inner_matrices(model)[-1]
    with torch.no_grad():
        weight.view(-1)[0] = math.nan
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source", Path(folder) / "out"
        save_model(model, source)
        try:
            with offloaded(source, out) as stored:
                case.call(stored)
        except WeightsmithError:
            return
        except Exception as error:
            raise AssertionError(f"{case.title}, NaN in {name} on disk: {type(error).__name__}: {error}") from error
    raise AssertionError(f"{case.title}: accepted NaN in {name} on disk")


def _counts_what_it_reaches(case: Case) -> None:
    model, before = case.model(), case.model().state_dict()
    inner = dict(_inner_matrices(model))
    result = case.call(model)
    said, rows = _text(result), tuple(f"{row['layer']}." for row in getattr(result, "layers", []))
    after = model.state_dict()
    for name, tensor in before.items():
        if name in inner and name in after and torch.equal(after[name], tensor):
            layer = name.removesuffix(".weight")
            assert layer.startswith(rows) or layer in said or layer.rpartition(".")[2] in said, (
                f"{case.title}: {name} stayed unchanged, and the result does not name it"
            )


def _ignores_padding(case: Case) -> None:
    if not case.is_transformer or case.family == "vit" or not case.signature.data:
        return
    plain = case.model()
    case.call(plain)
    # a BERT classifies by its first position, and the decoder of a T5 begins there, whatever is in it
    for side in ("right",) if case.family in ("bert", "t5") else ("left", "right"):
        model = case.model()
        case.call(model, data={name: [_pad(item, side) for item in items] for name, items in case.data().items()})
        padded = model.state_dict()
        for name, tensor in plain.state_dict().items():
            far = float((~torch.isclose(tensor, padded[name], rtol=1e-3, atol=1e-5)).double().mean())
            assert far <= 0.01, f"{case.title}: padding on the {side} changed {far:.1%} of {name}"


def _handles_other_orders_of_memory(case: Case) -> None:
    """A matrix may be the transpose of one in memory, and convolutions are often ``torch.channels_last``."""
    plain, model = case.model(), case.model()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.transpose(1, -1).contiguous().transpose(1, -1)
            parameter.grad = None
    case.call(plain)
    if not case.works_or_refuses(model, "weights in another order of memory"):
        return
    found = model.state_dict()
    for name, tensor in plain.state_dict().items():
        if tensor.ndim > 1:  # rounding alone moves a bias before batch normalization, whose gradient is zero
            far = float((~torch.isclose(tensor, found[name], rtol=1e-3, atol=1e-5)).double().mean())
            assert far <= 0.01, f"{case.title}: weights in another order of memory: changed {far:.1%} of {name}"


def _takes_odd_batches(case: Case) -> None:
    if not case.signature.data:
        return
    batch = _labeled(case.architecture)
    for what, rows, width in (("one sample", 1, None), ("one token", 2, 1), ("ragged", None, None)):
        if width and (not case.is_transformer or case.family == "vit"):
            continue
        data = {}
        for place, role in enumerate(case.signature.data):
            if role.kind == "samples":
                cut = [_first(sample, width, dim=0) for sample in case.samples(place)]
                data[role.name] = cut[:rows] if rows else [*cut[:8], *[_first(sample, 7, dim=0) for sample in cut[8:]]]
            elif rows:
                data[role.name] = [_first(_rows(batch, rows), width, dim=1)]
            else:
                data[role.name] = [_rows(batch, 3), _first(_rows(batch, 1), 7, dim=1)]
        case.works_or_refuses(case.model(), f"{what} data", data=data)


def _refuses_what_is_not_finite(case: Case) -> None:
    for value in (math.nan, math.inf):
        model = case.model()
        name, weight = _inner_matrices(model)[-2]
        with torch.no_grad():
            weight.view(-1)[0] = value
        assert not case.works_or_refuses(model, f"{value} in {name}"), f"{case.title}: accepted {value} in {name}"


def _refuses_weights_that_are_not_in_memory(case: Case) -> None:
    """Accelerate's offloading leaves the weights on the meta device between two forward passes."""
    model = case.model()
    for parameter in model.parameters():
        parameter.grad = None
    try:
        case.call(model.to("meta"))
    except WeightsmithError:
        return
    except Exception as error:
        raise AssertionError(f"{case.title}, weights on the meta device: {type(error).__name__}: {error}") from error
    raise AssertionError(f"{case.title}: accepted weights on the meta device")


def _restores_shared_weights(case: Case) -> None:
    if case.architecture != "llama":
        return
    model: Any = case.model()
    first, second = model.model.layers[:2]
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    with torch.no_grad():
        second.mlp.down_proj.weight[0, 0] = math.nan
    refused = not case.works_or_refuses(model, "NaN after a weight that two blocks share")
    assert refused, f"{case.title}: accepted NaN in the last block"


def _names_layers_it_does_not_know(case: Case) -> None:
    if case.architecture != "llama" or any(role.kind == "samples" for role in case.signature.data):
        return
    model: Any = case.model()
    for parent in [module for layer in model.model.layers for module in layer.modules()]:
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, _Packed(child))
    results: list[Any] = []
    if case.works_or_refuses(model, "blocks of packed layers", results=results):
        assert "_Packed" in _text(results[0]), f"{case.title}: left packed layers out in silence"


class _Packed(nn.Module):
    """A linear layer as another package packs it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("qweight", (linear.weight.detach() * 1000).to(torch.int32))
        self.qweight: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply with the weights that the codes stand for."""
        return x @ self.qweight.to(x).T / 1000


def _refuses_inputs_that_are_not_finite(case: Case) -> None:
    if not case.signature.data or case.family not in ("vit", *PLAIN):  # the others read whole numbers
        return
    for value in (math.nan, math.inf):
        data = {name: [_each(item, partial(_broken, value)) for item in items] for name, items in case.data().items()}
        refused = not case.works_or_refuses(case.model(), f"{value} in the inputs", data=data)
        assert refused, f"{case.title}: accepted {value} in the inputs"


def _refuses_options_out_of_range(case: Case) -> None:
    for name, spec in case.signature.fields.items():
        numbers = [part for part in (int, float) if part in _types(spec.annotation)]
        if not numbers or bool in _types(spec.annotation):
            continue
        for value in (-1, math.nan, math.inf) if float in numbers else (-1,):
            given = [value] if spec.many else value
            case.works_or_refuses(case.model(), f"{name}={given}", options={name: given})


def _handles_computed_weights(case: Case) -> None:
    model = case.model()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    if len(layers) < 2:
        return
    name, layer = [*layers.items()][-2]
    parametrizations.weight_norm(layer)
    before = layer.weight.detach().clone()
    results: list[Any] = []
    if not case.works_or_refuses(model, f"{name} under weight_norm", results=results):
        return
    rows = [row["layer"] for row in getattr(results[0], "layers", [])]
    reached = any(name in row and not row.endswith(".bias") for row in rows)
    now: Any = dict(model.named_modules()).get(name)
    unchanged = now is not None and torch.equal(now.weight, before)
    assert not (reached and unchanged), f"{case.title}: reports {name}, whose weight under weight_norm stayed the same"
    assert reached or not unchanged or name in _text(results[0]), (
        f"{case.title}: {name} under weight_norm is left out in silence"
    )


def _handles_settings(case: Case) -> None:
    """A method does what it does whatever the caller has set globally: its types and devices are the weights'."""
    plain, model = case.model(), case.model()
    arguments = case.arguments()
    case.call(plain)
    device = torch.device("meta" if _runs_on_default_meta(case) else "cpu")
    own = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), device:
            case.signature.function(model, **arguments)
        kept = torch.get_default_dtype()
    finally:
        torch.set_default_dtype(own)
    assert kept == torch.float64, f"{case.title}: changed the default type"
    other = differences(plain, model)
    assert not other, f"{case.title}: under other settings of PyTorch, another {_some(other)}"
    spoiled = [name for name, value in model.state_dict(keep_vars=True).items() if value.is_inference()]
    assert not spoiled, f"{case.title}: in inference mode, can no longer be trained: {_some(spoiled)}"
    _, batch = tiny(case.architecture)
    expected, found = outputs(plain.eval(), batch), outputs(model.eval(), batch)
    assert torch.equal(expected, found), f"{case.title}: under other settings of PyTorch, other outputs"


def _runs_on_default_meta(case: Case) -> bool:
    """Whether a model itself runs where new tensors have no values: the cache of a Gemma makes some."""
    model, batch = tiny(case.architecture)
    try:
        with torch.device("meta"):
            outputs(model, batch)
    except NotImplementedError:
        return False
    return True


def _handles_adapters(case: Case) -> None:
    if not case.is_transformer:
        return
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny(case.architecture)[0], LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    if case.works_or_refuses(model, "a model with LoRA adapters"):
        now = dict(model.named_parameters())
        changed = [name for name, value in before.items() if name not in now or not torch.equal(now[name], value)]
        adapters = [name for name in changed if "lora_" in name]
        base = len(changed) - len(adapters)
        assert not (adapters and base), f"{case.title}: changed {base} weights and also the adapter's {_some(adapters)}"


def _handles_sharded_weights(case: Case) -> None:
    """One process stands for several: the weights are DTensors all the same."""
    if case.architecture not in ("mlp", "mlp_regression", "bert_regression", "cnn", "llama"):
        return
    plain, model = case.model(), case.model()
    with _fully_sharded(model):
        before = {name: whole(value).clone() for name, value in model.state_dict().items()}
        try:
            case.call(model)
        except WeightsmithError:
            changed = [name for name, value in model.state_dict().items() if not same(whole(value), before[name])]
            assert not changed, f"{case.title}, sharded weights: refused, but left {_some(changed)}"
            return
        except Exception as error:
            raise AssertionError(f"{case.title}, sharded weights: {type(error).__name__}: {error}") from error
        found = {name: whole(value) for name, value in model.state_dict().items()}
    case.call(plain)
    expected = plain.state_dict()
    other = [n for n, v in expected.items() if n not in found or not torch.allclose(found[n], v, atol=1e-5)]
    assert not other, f"{case.title}, sharded weights: gave another {_some(other)} than with whole ones"


@contextmanager
def _fully_sharded(model: nn.Module) -> Iterator[None]:
    """Shard a model by FSDP2 in a group of one process, where there is no group."""
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    alone = not distributed.is_initialized()
    if alone:
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        for parameter in model.parameters():
            parameter.grad = None
        fully_shard(model, mesh=distributed.device_mesh.init_device_mesh("cpu", (distributed.get_world_size(),)))
        yield
    finally:
        if alone:
            distributed.destroy_process_group()


CHECKS: tuple[Callable[[Case], None], ...] = (
    _changes_or_refuses,
    _restores_when_interrupted,
    _is_repeatable,
    _keeps_the_dtype,
    _takes_data_in_float32,
    _loads_in_transformers,
    _streams_or_refuses,
    _counts_what_it_reaches,
    _ignores_padding,
    _takes_odd_batches,
    _refuses_what_is_not_finite,
    _refuses_what_is_not_finite_on_disk,
    _refuses_weights_that_are_not_in_memory,
    _restores_shared_weights,
    _names_layers_it_does_not_know,
    _refuses_inputs_that_are_not_finite,
    _refuses_options_out_of_range,
    _handles_computed_weights,
    _handles_other_orders_of_memory,
    _handles_settings,
    _handles_adapters,
    _handles_sharded_weights,
)


def _labeled(architecture: str) -> Any:
    """The batch of :func:`tiny`, with labels where the model cannot take its inputs for them."""
    batch = tiny(architecture)[1]
    if architecture in REGRESSIONS and family_of(architecture) in PLAIN:
        return batch, torch.arange(len(batch))[:, None] / 8
    if architecture in REGRESSIONS:
        return batch | {"labels": torch.arange(8) / 8}
    if architecture in PLAIN:
        return batch, torch.arange(len(batch)) % 4
    if architecture in ("bert", "vit"):
        return batch | {"labels": torch.arange(8) % 2}
    return batch | {"labels": batch["decoder_input_ids"].contiguous()} if architecture == "t5" else batch


def _some(names: Sequence[str]) -> str:
    return ", ".join(name or "the model" for name in names[:3]) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )


def _inner_matrices(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The matrices, and stacks of them, in the repeated blocks; all of them in a plain model."""
    return [(n, p) for n, p in model.named_parameters() if p.ndim >= 2 and any(x.isdigit() for x in n.split("."))]


def _text(result: Any) -> str:
    return json.dumps(result.to_json() if hasattr(result, "to_json") else str(result))


def _random_state() -> tuple[Any, ...]:
    # not Python's own: what checks the types of arguments in tests draws from it
    return torch.random.get_rng_state(), str(np.random.get_state())  # noqa: NPY002


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def _scaled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    return model


def _types(annotation: Any) -> set[Any]:
    return {annotation, *(inner for part in get_args(annotation) for inner in _types(part))}


def _each(batch: Any, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(batch, Mapping):
        return {name: change(name, value) for name, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(change("", value) for value in batch)
    return change("", batch)


def _cast(items: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    return [_each(item, lambda _, value: value.to(dtype) if value.is_floating_point() else value) for item in items]


def _broken(value: float, _: str, tensor: torch.Tensor) -> torch.Tensor:
    """One number replaced, of a tensor that is not of whole numbers; a single number is a label."""
    return (
        tensor.index_put((torch.tensor(0),) * tensor.ndim, torch.tensor(value))
        if tensor.is_floating_point() and tensor.ndim
        else tensor
    )


def _rows(batch: Any, count: int) -> Any:
    return _each(batch, lambda _, value: value[:count])


def _first(batch: Any, width: int | None, dim: int) -> Any:
    """The first positions of token sequences; images and labels of a class stay whole."""
    return _each(
        batch,
        lambda _, value: (
            value.narrow(dim, 0, min(width, value.shape[dim]))
            if width and value.ndim == dim + 1 and not value.is_floating_point()
            else value
        ),
    )


def _pad(item: Any, side: str) -> Any:
    """Four more positions on one side, masked; -100 in the labels of tokens, also of one that padding would predict."""
    fill = {"attention_mask": 0, "labels": -100}

    def padded(name: str, value: torch.Tensor) -> torch.Tensor:
        per_sample = name == "labels" and (value.ndim < item["input_ids"].ndim or "decoder_input_ids" in item)
        if name == "decoder_input_ids" or value.ndim == 0 or per_sample:
            return value
        if side == "right":
            return nn.functional.pad(value, (0, 4), value=fill.get(name, 5))
        first = 1 if name == "labels" else 0
        return nn.functional.pad(value[..., first:], (4 + first, 0), value=fill.get(name, 5))

    return _each(item, padded)
