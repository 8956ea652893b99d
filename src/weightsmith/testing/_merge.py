"""The contract of a method that makes one checkpoint from several."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from weightsmith.core.errors import WeightsmithError
from weightsmith.signature import Signature, read
from weightsmith.testing._models import TRANSFORMERS, check_names, tiny
from weightsmith.testing._state import outputs, same

__all__ = ["check_merge", "merge_checks"]

WEIGHTS = "model.safetensors"


def check_merge(
    function: Callable[..., Any],
    *,
    count: int = 2,
    options: Mapping[str, Any] | None = None,
    refuses: Sequence[str] = (),
    models: Sequence[str] = ("llama", "bert", "mixtral"),
) -> None:
    """Check that a method which merges checkpoints on disk keeps the contract of all weightsmith methods.

    On folders of tiny models: the result loads in plain transformers, with the names, shapes, element types and small
    files of its parts, no value is NaN, and equal seeds give equal bytes; the inputs stay as they are; other shapes,
    NaN, adapters, quantized weights, a damaged file and an existing output are refused, with nothing written.

    Parameters
    ----------
    function : callable
        The method: ``function(checkpoints, out, ...)``.
    count : int, default: 2
        Checkpoints it takes.
    options : mapping, optional
        Hyper-parameters to call it with.
    refuses : sequence of str, default: ()
        Architectures it does not support. It must refuse exactly these, with nothing written.
    models : sequence of str
        Architectures to try, names of :func:`~weightsmith.testing.tiny`.

    Raises
    ------
    AssertionError
        If a part of the contract does not hold; the message says which and what was found.

    Examples
    --------
    >>> from weightsmith.merge import soup
    >>> check_merge(soup, models=["bert"])
    """
    for _, check in merge_checks(function, count=count, options=options, refuses=refuses, models=models):
        check()


def merge_checks(
    function: Callable[..., Any],
    *,
    count: int = 2,
    options: Mapping[str, Any] | None = None,
    refuses: Sequence[str] = (),
    models: Sequence[str] = ("llama", "bert", "mixtral"),
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the checks of :func:`check_merge` one by one, each with its name.

    Examples
    --------
    >>> from weightsmith.merge import soup
    >>> [name for name, _ in merge_checks(soup, models=["bert"])][0]
    'loads_in_transformers-bert'
    """
    signature = read(function)
    check_names(models, refuses)
    for name in models:
        if name in refuses:
            yield f"refuses-{name}", partial(_run, _refuses, signature, name, count, options or {})
            continue
        for check in CHECKS:
            yield f"{check.__name__.strip('_')}-{name}", partial(_run, check, signature, name, count, options or {})


def _run(
    check: Callable[[Case], None], signature: Signature, name: str, count: int, options: Mapping[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check(Case(signature, name, count, Path(folder), options))


@dataclass(frozen=True)
class Case:
    """One method on folders of one architecture."""

    signature: Signature
    architecture: str
    count: int
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What messages start with."""
        return f"{self.signature.function.__name__} on {self.architecture}"

    def parts(self, dtype: torch.dtype = torch.float32) -> list[Path]:
        """Checkpoints: one network, and others near it."""
        assert self.architecture in TRANSFORMERS, f"{self.architecture} has no folder"
        model = tiny(self.architecture)[0].to(dtype)
        paths = [self.folder / f"part{number}" for number in range(self.count)]
        for number, path in enumerate(paths):
            generator = torch.Generator().manual_seed(number)
            with torch.no_grad():
                for parameter in model.parameters():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_((0.01 * noise * parameter.std(correction=0)).to(dtype))
            model.save_pretrained(path)
            (path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
            (path / "special_tokens_map.json").write_text('{"pad_token": "p"}')
        return paths

    def call(self, parts: Sequence[Path], out: Path, **options: Any) -> Any:
        """Call the method; equal calls draw equal random numbers."""
        generator = self.signature.generator
        seed = {} if generator is None else {generator.name: torch.Generator().manual_seed(0)}
        return self.signature.function(list(parts), out, **seed, **{**self.options, **options})

    def must_refuse(self, parts: Sequence[Path], what: str) -> str:
        """Call the method on what it cannot merge; return its message."""
        out, before = self.folder / "refused", _digest(parts)
        try:
            self.call(parts, out)
        except WeightsmithError as error:
            assert not out.exists(), f"{self.title}, {what}: refused, and wrote {out.name}"
            strays = [path.name for path in self.folder.iterdir() if path not in parts]
            assert not strays, f"{self.title}, {what}: left {strays}"
            assert _digest(parts) == before, f"{self.title}, {what}: changed its inputs"
            return str(error)
        except Exception as error:
            raise AssertionError(f"{self.title}, {what}: {type(error).__name__}: {error}") from error
        raise AssertionError(f"{self.title}, {what}: not refused")


def _loads_in_transformers(case: Case) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        parts, out = case.parts(dtype), case.folder / f"out-{dtype}"
        before = _digest(parts)
        case.call(parts, out)
        assert _digest(parts) == before, f"{case.title}: changed its inputs"
        model, batch = tiny(case.architecture)
        again, report = type(model).from_pretrained(out, output_loading_info=True, dtype="auto")
        lost = [*report["missing_keys"], *report["unexpected_keys"]]
        assert not lost, f"{case.title}: transformers reports {lost[:3]}"
        assert all(p.dtype == dtype for p in again.parameters()), f"{case.title}: no longer {dtype}"
        assert outputs(again.eval(), batch).isfinite().all(), f"{case.title}: the outputs hold NaN or infinity"
        for name in ("special_tokens_map.json", "weightsmith.json", "README.md"):
            assert (out / name).exists(), f"{case.title}: no {name} beside the weights"
        card = (out / "README.md").read_text()
        missing = [path.name for path in parts if path.name not in card or "license: mit" not in card]
        assert not missing, f"{case.title}: the model card does not name {missing}, or its license"


def _is_repeatable(case: Case) -> None:
    parts = case.parts()
    for out in ("first", "second"):
        case.call(parts, case.folder / out)
    first, second = (load_file(case.folder / out / WEIGHTS) for out in ("first", "second"))
    assert all(same(first[name], second[name]) for name in first), f"{case.title}: equal seeds gave other bits"


def _reads_what_transformers_reads(case: Case) -> None:
    parts = case.parts()
    case.call(parts, case.folder / "first")
    shutil.copy(parts[-1] / WEIGHTS, parts[0] / "old.safetensors")
    case.call(parts, case.folder / "second")
    first, second = (load_file(case.folder / out / WEIGHTS) for out in ("first", "second"))
    assert all(same(first[name], second[name]) for name in first), f"{case.title}: read a file beside {WEIGHTS}"


def _names_what_it_leaves_behind(case: Case) -> None:
    parts = case.parts()
    for part, plan in zip(parts[-2:], ("quantization.json", "wina.json"), strict=True):
        (part / plan).write_text("{}")  # which would be false of other weights
    config = json.loads((parts[0] / "config.json").read_text())
    (parts[0] / "config.json").write_text(json.dumps(config | {"initializer_range": 0.5}))
    out = case.folder / "out"
    case.call(parts, out)
    notes = (out / "weightsmith.json").read_text()
    assert "initializer_range" in notes, f"{case.title}: does not say that the configurations differ"
    for plan in ("quantization.json", "wina.json"):
        assert not (out / plan).exists(), f"{case.title}: wrote a {plan} of other weights"
        assert plan in notes, f"{case.title}: does not say that {plan} was left out"


def _never_replaces_unasked(case: Case) -> None:
    parts, out = case.parts(), case.folder / "out"
    case.call(parts, out)
    before = _digest([out])
    try:
        case.call(parts, out)
    except WeightsmithError:
        assert _digest([out]) == before, f"{case.title}: refused an existing output, and changed it"
    else:
        raise AssertionError(f"{case.title}: replaced an existing output unasked")
    case.call(parts, out, overwrite=True)
    assert {path.name for path in case.folder.iterdir()} == {*(p.name for p in parts), "out"}


def _refuses_other_shapes(case: Case) -> None:
    parts = case.parts()
    state = load_file(parts[0] / WEIGHTS)
    name = next(name for name, tensor in state.items() if tensor.ndim == 2)
    save_file(state | {name: state[name][:-1].clone()}, parts[0] / WEIGHTS, {"format": "pt"})
    assert name in case.must_refuse(parts, "other shapes"), f"{case.title}: does not name {name}"
    del state[name]
    save_file(state, parts[0] / WEIGHTS, {"format": "pt"})
    case.must_refuse(parts, "a missing tensor")


def _refuses_what_is_not_finite(case: Case) -> None:
    for value in (float("nan"), float("inf")):
        parts = case.parts()
        state = load_file(parts[-1] / WEIGHTS)
        name = next(name for name, tensor in state.items() if tensor.ndim == 2)
        state[name][0, 0] = value
        save_file(state, parts[-1] / WEIGHTS, {"format": "pt"})
        assert name in case.must_refuse(parts, f"{value}"), f"{case.title}: does not name {name}"


def _refuses_damaged_files(case: Case) -> None:
    parts = case.parts()
    file = parts[-1] / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    case.must_refuse(parts, "a file cut short")
    file.unlink()
    case.must_refuse(parts, "a folder without weights")


def _refuses_quantized_weights(case: Case) -> None:
    parts = case.parts()
    for part in parts:
        state = load_file(part / WEIGHTS)
        name = next(name for name, tensor in state.items() if tensor.ndim == 2)
        scaled = {name: state[name].to(torch.float8_e4m3fn), name + "_scale_inv": torch.ones(1, 1)}
        save_file(state | scaled, part / WEIGHTS, {"format": "pt"})
        config = json.loads((part / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        (part / "config.json").write_text(json.dumps(config))
    case.must_refuse(parts, "float8 weights with scales")


def _refuses_adapters(case: Case) -> None:
    from peft import LoraConfig, get_peft_model

    parts = [case.folder / f"adapter{number}" for number in range(case.count)]
    for part in parts:
        config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(tiny(case.architecture)[0], config).save_pretrained(part)
    case.must_refuse(parts, "LoRA adapters, whose factors do not add up")


def _refuses(case: Case) -> None:
    parts, out = case.parts(), case.folder / "out"
    try:
        case.call(parts, out)
    except WeightsmithError:
        assert not out.exists(), f"{case.title}: refused, but wrote {out.name}"
    else:
        raise AssertionError(f"{case.title}: expected a refusal")


CHECKS: tuple[Callable[[Case], None], ...] = (
    _loads_in_transformers,
    _is_repeatable,
    _reads_what_transformers_reads,
    _names_what_it_leaves_behind,
    _never_replaces_unasked,
    _refuses_other_shapes,
    _refuses_what_is_not_finite,
    _refuses_damaged_files,
    _refuses_quantized_weights,
    _refuses_adapters,
)


def _digest(folders: Sequence[Path]) -> dict[str, str]:
    """The content of every file."""
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
