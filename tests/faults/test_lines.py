"""Odd command lines and recipes, made by hypothesis: an error is one clear line, never a traceback or a bug."""

from __future__ import annotations

import shutil

import huggingface_hub.constants
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings, strategies as st

from faults.lines import SIGNATURES, WRITING, line, run, write_inputs
from weightsmith.core.errors import HyperparameterError
from weightsmith.rehearsal import check_options

ODD = [
    "", " ", "0", "-1", "3", "0.5", "1e999", "nan", "inf", "true", "null", "[", "{", "[]", "{}", "*", "[a", "x=y",
    "2:4", "🔨", "é" * 300, "--", ".", "/dev/null", "/dev/zero", "{folder}/nothing", "{folder}/file", "{folder}/empty",
    "{folder}/empty.jsonl", "{folder}/odd.csv", "{folder}/tiny", "{folder}/tiny/model.safetensors", "{folder}/adapter",
    "{folder}/zoo", "embedded:", "embedded:nothing", "a/b", "a/b/c", "cuda:99", "$model",
]  # fmt: skip
"""No large numbers: what asks for them may take as long as it asks for."""

RECIPE = {
    "model": "{folder}/tiny",
    "out": "{folder}/out",
    "seed": 0,
    "device": "cpu",
    "compressed": False,
    "report": "{folder}/r.html",
    "data": {"calibration": {"file": "{folder}/inputs.safetensors", "samples": 4, "length": 8}},
    "evaluation": {"file": None, "control": None, "tokens": 64, "samples": 8, "speed": False},
    "steps": [
        {"wanda": {"sparsity": 0.5, "exclude": ["lm_head"]}},
        "magnitude",
    ],
    "compare": {"a": [{"magnitude": {"sparsity": 0.5}}], "b": ["wanda"]},
}
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(ODD) | st.text() | st.dates()
NESTED = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(VALUES, inner, max_size=3))

quick = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
thorough = settings(max_examples=3000, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    (folder / "file").write_text("text")
    (folder / "empty").mkdir()
    (folder / "empty.jsonl").write_text("")
    (folder / "odd.csv").write_text("a,b\n1\n")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def check(words, folder):
    code, printed = run([word.replace("{folder}", str(folder)) for word in words])
    for out in ("out", "empty"):  # hypothesis may have asked to write to the empty one
        shutil.rmtree(folder / out, ignore_errors=True)
    (folder / "empty").mkdir()
    assert code in (0, 1, 2), printed
    assert "a bug?" not in printed, (words, printed)
    assert "Traceback" not in printed, (words, printed)


@st.composite
def odd_lines(draw, folder, commands):
    name = draw(st.sampled_from(commands))
    words = line(name, folder, folder / "out")
    place = draw(st.integers(2, len(words) - 1))
    kind = draw(st.integers(0, 3))
    if kind == 0:
        words[place] = draw(st.sampled_from(ODD))
    elif kind == 1:
        del words[place]
    elif SIGNATURES[name].fields:
        field = draw(st.sampled_from([*SIGNATURES[name].fields]))
        words += [f"--{field.replace('_', '-')}", draw(st.sampled_from(ODD))]
    return words


@quick
@given(data=st.data())
def test_odd_command_lines(folder, data):
    check(data.draw(odd_lines(folder, ["magnitude", "wise-ft", "ties", "slerp", "wanda"])), folder)


@pytest.mark.slow
@thorough
@given(data=st.data())
def test_many_odd_command_lines(folder, data):
    check(data.draw(odd_lines(folder, WRITING)), folder)


@st.composite
def odd_recipes(draw):
    """A recipe with one value somewhere replaced, or a part of its text."""
    recipe = yaml.safe_load(yaml.safe_dump(RECIPE))
    place, keys = recipe, []
    while isinstance(place, (dict, list)) and place and (not keys or draw(st.booleans())):
        keys.append(draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))))
        parent, place = place, place[keys[-1]]
    if draw(st.booleans()):
        parent[keys[-1]] = draw(NESTED)
    elif isinstance(parent, dict):
        parent[draw(VALUES)] = parent.pop(keys[-1])
    text = yaml.dump(recipe, allow_unicode=True)
    if draw(st.booleans()):
        begin = draw(st.integers(0, len(text)))
        text = text[:begin] + draw(st.sampled_from(ODD) | st.text()) + text[begin + draw(st.integers(0, 9)) :]
    return text


def check_recipe(text, folder):
    (folder / "recipe.yaml").write_text(text.replace("{folder}", str(folder)), "utf-8", "surrogatepass")
    check(["run", str(folder / "recipe.yaml"), "--dry-run"], folder)


@quick
@example("out: x\nmodel: y\nsteps: [[]]")
@example("? [a, b]\n: 1")
@example("model: &a {b: *a}")
@given(odd_recipes())
def test_odd_recipes(folder, text):
    check_recipe(text, folder)


@pytest.mark.slow
@thorough
@given(odd_recipes())
def test_many_odd_recipes(folder, text):
    check_recipe(text, folder)


KEYS = st.sampled_from(["model", "out", "steps", "steps.1", "wanda.sparsity", "data.calibration.file", "compare.a.1"])
SETTINGS = st.builds("{}={}".format, KEYS | st.text(), st.sampled_from(ODD) | st.text()) | st.text()


@quick
@given(SETTINGS)
def test_odd_settings(folder, setting):
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE).replace("{folder}", str(folder)))
    check(["run", str(folder / "recipe.yaml"), "--dry-run", f"--set={setting}"], folder)


INFINITE = [
    ("sparsegpt", "damping"),
    ("dsnot", "variance_power"),
    ("mixture-growth", "scale"),
    ("loss-reweighting", "r"),
    ("loss-reweighting", "delta"),
    ("lift", "density"),
    ("pld", "temperature"),
    ("weight-compander", "slope"),
]


@pytest.mark.parametrize(("name", "option"), INFINITE)
def test_a_number_must_be_finite(folder, tmp_path, name, option):
    code, printed = run([*line(name, folder, tmp_path / "out"), f"--{option.replace('_', '-')}=inf"])
    assert code == 2, printed
    assert f"{option}: found inf" in printed


def test_a_language_model_with_one_label_per_row_is_named(folder, tmp_path):
    words = ["train", "meta-rescaling", str(folder / "tiny"), str(tmp_path / "out"), "--training"]
    code, printed = run([*words, str(folder / "labeled.safetensors")])
    assert code == 1
    assert "error: logits: found shape (16, 4, 64), expected [16, classes], one row per sample" in printed


def test_a_method_refuses_nan_itself(folder):
    with pytest.raises(HyperparameterError, match="damping: found nan"):
        check_options(SIGNATURES["sparsegpt"], {"damping": float("nan")}, folder / "tiny")
