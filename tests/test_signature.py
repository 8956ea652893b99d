"""Reading a signature: what becomes a field, how text becomes a value, what a wrong value is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml
from torch import nn

from weightsmith.core.data import Batches
from weightsmith.core.errors import HyperparameterError, WeightsmithError
from weightsmith.core.io import YamlLoader
from weightsmith.signature import REQUIRED, Field, read


def method(
    model: nn.Module,
    calibration: Batches,
    *,
    sparsity: float | Literal["2:4", "4:8"] = 0.5,
    stop: Literal["improve", "reference"] = "improve",
    include: str | Sequence[str] = "*",
    steps: int,
    bias: bool = False,
    limit: int | None = None,
    folder: Path = Path("."),
    hook: Callable[[int], int] | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Do something to a model
    in two lines.

    More about it, with :func:`~torch.nn.functional.linear` and ``code``.

    Parameters
    ----------
    model : nn.Module
        The model.
    calibration : Batches
        Inputs.
    sparsity : float or {"2:4", "4:8"}, default: 0.5
        Share of weights that go; see :func:`wanda <weightsmith.wanda>`
        for ``N:M``.

        Between 0 and 1.
    stop, include : str
        Two at once.
    steps : int
        How many.

    Returns
    -------
    None
        Nothing: this line is not a help text of ``steps``.
    """


def test_roles_and_fields():
    signature = read(method)
    roles = {role.name: (role.kind, role.required) for role in signature.roles.values()}
    assert roles == {
        "model": ("network", True), "calibration": ("batches", True), "generator": ("generator", False)
    }  # fmt: skip
    assert signature.usage == "MODEL OUT"
    assert list(signature.fields) == ["sparsity", "stop", "include", "steps", "bias", "limit", "folder"]
    assert signature.fields["steps"].default is REQUIRED
    assert signature.summary == "Do something to a model in two lines."
    assert signature.description.endswith("in two lines.\n\nMore about it, with torch.nn.functional.linear and code.")


def test_help_is_the_docstrings():
    fields = read(method).fields
    assert fields["sparsity"].help == "Share of weights that go; see wanda for N:M. Between 0 and 1."
    assert fields["stop"].help == fields["include"].help == "Two at once."
    assert fields["steps"].help == "How many."
    assert fields["bias"].help == ""


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("sparsity", "0.6", 0.6),
        ("sparsity", "2:4", "2:4"),
        ("sparsity", "1e-3", 0.001),
        ("stop", "reference", "reference"),
        ("include", "[a, b]", ["a", "b"]),
        ("include", "*.mlp.*", "*.mlp.*"),
        ("steps", "12", 12),
        ("bias", "true", True),
        ("limit", "null", None),
        ("folder", "a/b", Path("a/b")),
    ],
)
def test_parse(name, text, value):
    assert read(method).fields[name].parse(text) == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparcity": 0.5, "steps": 1}, r"step 1: unknown field 'sparcity'. Did you mean 'sparsity'\?"),
        ({"zzz": 0.5, "steps": 1}, r"step 1: unknown field 'zzz'. It takes sparsity, stop, include"),
        ({}, "step 1: 'steps' is missing: expected whole number"),
        ({"steps": "many"}, "step 1: steps: found 'many', expected whole number"),
        (
            {"steps": 1, "sparsity": "2:5"},
            "step 1: sparsity: found '2:5', expected number, '2:4' or '4:8'",
        ),
        ({"steps": True}, "step 1: steps: found True, expected whole number"),
        ({"steps": 1, "sparsity": True}, "step 1: sparsity: found True, expected number, '2:4' or '4:8'"),
        ({"steps": 1, "stop": "never"}, "step 1: stop: found 'never', expected 'improve' or 'reference'"),
        ({"steps": 1, "include": 3}, "step 1: include: found 3, expected text or list of texts"),
    ],
)
def test_wrong_values_are_told_what_is_expected(values, message):
    with pytest.raises(HyperparameterError, match=message):
        read(method).check(values, "step 1")


def test_check_converts():
    assert read(method).check({"steps": "3", "include": ["a"]}, "x") == {"steps": 3, "include": ["a"]}


def test_a_required_parameter_that_is_no_text_is_refused():
    def bad(model: nn.Module, table: Mapping[str, int]) -> None: ...

    with pytest.raises(WeightsmithError, match="parameter 'table'"):
        read(bad)


def test_yaml_has_no_sexagesimal_numbers_and_no_norwegian_booleans():
    text = "{a: 2:4, b: no, c: 1e-3, d: -5, e: .5, f: ~, g: 1.5}"
    assert yaml.load(text, YamlLoader) == {
        "a": "2:4", "b": "no", "c": 0.001, "d": -5, "e": 0.5, "f": None, "g": 1.5,
    }  # fmt: skip


def test_yaml_keys_without_value_are_null_and_occur_once():
    assert yaml.load("a:\nb: ''", YamlLoader) == {"a": None, "b": ""}
    with pytest.raises(yaml.YAMLError, match="'a' occurs twice"):
        yaml.load("{a: 1, b: 2, a: 3}", YamlLoader)


def test_yaml_makes_no_objects():
    with pytest.raises(yaml.YAMLError):
        yaml.load("!!python/object/apply:os.getcwd []", YamlLoader)


def test_optional_list():
    field = Field("layers", Sequence[str] | None, None, "")
    assert field.many
    assert field.validate(("a", "b")) == ("a", "b")
    assert field.expects == "list of texts"


def test_a_union_of_choices_is_a_choice():
    field = Field("backend", Literal["cpu", "mask"] | Literal["auto"] | None, "auto", "")
    assert field.choices == ("cpu", "mask", "auto")
    assert Field("sparsity", float | Literal["2:4"], 0.5, "").choices == ()
