"""Recipes: what is wrong is said before anything runs; steps run in order, are measured, and resume after a crash."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import textwrap
from pathlib import Path

import pytest
import torch

from models import write_tiny_llama
from weightsmith import recipe as recipe_module
from weightsmith.core.errors import CheckpointError, HyperparameterError, RecipeError
from weightsmith.core.io import load_state_dict
from weightsmith.recipe import load_recipe, run_recipe
from weightsmith.sparsify import magnitude
from weightsmith.sparsify._compressed import load_compressed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("models"), 12, 8)


@pytest.fixture
def write(folder, tmp_path):
    def write(text: str):
        path = tmp_path / "recipe.yaml"
        path.write_text(text.format(folder=folder, out=tmp_path / "out"))
        return path

    return write


GOOD = """
model: {folder}/tiny
out: {out}
data: {{calibration: {{file: {folder}/inputs.safetensors, samples: 12}}}}
steps:
  - magnitude: {{sparsity: 0.25, exclude: lm_head}}
  - wanda: {{sparsity: 2:4, exclude: [lm_head]}}
"""


def test_steps_run_in_order_and_are_measured(write, tmp_path):
    results = run_recipe(load_recipe(write(GOOD)))
    assert [result.title for result in results] == ["1. magnitude", "2. wanda"]
    assert results[0].after == results[1].before
    assert results[0].before["nonzero"] > results[0].after["nonzero"] > results[1].after["nonzero"]
    weights = load_state_dict(tmp_path / "out")["model.layers.1.mlp.up_proj.weight"]
    assert ((weights.reshape(32, -1, 4) != 0).sum(-1) <= 2).all()
    stored = json.loads((tmp_path / "out" / "weightsmith.json").read_text())
    assert [result["method"] for result in stored] == ["magnitude", "wanda"]
    assert "At a glance" in (tmp_path / "out" / "report.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "recipe.yaml"], "the work folder is gone"


def test_it_resumes_at_the_last_finished_step(write, tmp_path, monkeypatch):
    whole = run_recipe(load_recipe(write(GOOD), [f"out={tmp_path}/whole"]))
    recipe = load_recipe(write(GOOD))
    calls = []

    def counted(*args, **kwargs):
        calls.append("magnitude")
        return magnitude(*args, **kwargs)

    def crash(*args, **kwargs):
        raise RuntimeError("power cut")

    replace(recipe, 0, counted)
    replace(recipe, 1, crash)
    with pytest.raises(RuntimeError, match="power cut"):
        run_recipe(recipe)
    assert not (tmp_path / "out").exists()

    recipe = load_recipe(write(GOOD))
    replace(recipe, 0, counted)
    results = run_recipe(recipe)
    assert calls == ["magnitude"], "the first step was not run again"
    assert [result.totals for result in results] == [result.totals for result in whole]
    ours, theirs = load_state_dict(tmp_path / "out"), load_state_dict(tmp_path / "whole")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_it_resumes_after_a_step_whose_measures_are_not_finite(write, tmp_path, monkeypatch):
    measures = {"loss": float("nan"), "perplexity": float("inf"), "accuracy": -float("inf")}
    monkeypatch.setattr(recipe_module.Workbench, "measure", lambda self: dict(measures))
    recipe = load_recipe(write(GOOD))
    replace(recipe, 1, lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe)
    results = run_recipe(load_recipe(write(GOOD)))
    assert [repr(result.after) for result in results] == [repr(measures)] * 2
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_step_that_did_more_than_change_weights_is_run_again(write, tmp_path):
    def with_file(*args, **kwargs):
        result = magnitude(*args, **kwargs)
        result.files["plan.json"] = "{}"
        return result

    recipe = load_recipe(write(GOOD))
    replace(recipe, 0, with_file)
    replace(recipe, 1, lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe)
    recipe = load_recipe(write(GOOD))
    replace(recipe, 0, with_file)
    run_recipe(recipe)
    assert (tmp_path / "out" / "plan.json").read_text() == "{}"


def test_a_changed_recipe_does_not_resume(write, tmp_path):
    recipe = load_recipe(write(GOOD))
    replace(recipe, 1, lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe)
    changed = load_recipe(write(GOOD), ["magnitude.sparsity=0.75"])
    assert run_recipe(changed)[0].totals["sparsity"] == pytest.approx(0.75, abs=0.01)


def replace(recipe, index, function):
    object.__setattr__(recipe.steps[index].signature, "function", function)


def test_same_seed_same_bits(write, tmp_path):
    for name in ("a", "b"):
        run_recipe(load_recipe(write(GOOD), [f"out={tmp_path}/{name}"]))
    a, b = load_state_dict(tmp_path / "a"), load_state_dict(tmp_path / "b")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_sparse_model_can_be_written_small(write, tmp_path):
    dense = run_recipe(load_recipe(write(GOOD), [f"out={tmp_path}/dense"]))[-1]
    run_recipe(load_recipe(write(GOOD), [f"out={tmp_path}/small", "compressed=true"]))
    small = load_compressed(tmp_path / "small").state_dict()
    assert all(torch.equal(small[key], value) for key, value in load_state_dict(tmp_path / "dense").items())
    assert (tmp_path / "small" / "weightsmith.json").is_file()
    assert dense.after["nonzero"] == sum(
        int(p.count_nonzero()) for p in load_compressed(tmp_path / "small").parameters()
    )


PLANS = """
model: {folder}/tiny
out: {out}
data:
  calibration: {{file: {folder}/inputs.safetensors, samples: 12}}
steps:
"""


@pytest.mark.parametrize(
    ("steps", "kept", "left"),
    [
        (["gptq: {{weight_bits: 4}}", "wina"], {"quantization.json", "wina.json"}, None),
        (["wina", "wise-ft: {{checkpoints: [{folder}/tiny, $model]}}"], set(), "wina.json"),
        (["gptq: {{weight_bits: 4}}", "magnitude: {{sparsity: 0.5}}"], set(), "quantization.json"),
        (["gptq: {{weight_bits: 4}}", "round-to-nearest: {{weight_bits: 3}}"], {"quantization.json"}, None),
    ],
)
def test_a_plan_is_written_while_it_is_true_of_the_weights(write, tmp_path, steps, kept, left):
    results = run_recipe(load_recipe(write(PLANS + "".join(f"  - {step}\n" for step in steps))))
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written & {"quantization.json", "wina.json"} == kept
    said = f"Left out, as the weights that it describes have changed: {left}."
    assert (said in results[-1].notes) == (left is not None)


def test_the_output_may_not_hold_what_is_read(write, tmp_path, folder):
    recipe = write(GOOD.replace("{out}", str(tmp_path)))
    with pytest.raises(HyperparameterError, match=r"out: found .*, which holds .*recipe.yaml, which is read"):
        load_recipe(recipe)
    (tmp_path / "out").mkdir()
    shutil.copy(folder / "inputs.safetensors", tmp_path / "out")
    recipe = load_recipe(write(GOOD.replace("{folder}/inputs", "{out}/inputs")))
    with pytest.raises(HyperparameterError, match=r"which holds .*inputs.safetensors, which is read"):
        run_recipe(recipe, overwrite=True)
    assert (tmp_path / "out" / "inputs.safetensors").is_file()


def test_a_device_that_is_not_there_is_told(write):
    with pytest.raises(HyperparameterError, match="device: found cuda:99, expected cpu"):
        run_recipe(load_recipe(write(GOOD), ["device=cuda:99"]))


def test_a_recipe_names_the_element_type_and_the_revision_of_its_model(write, tmp_path, monkeypatch):
    opened = recipe_module.open_model
    asked = []

    def watched(ref, **options):
        asked.append(options)
        return opened(ref, **options)

    monkeypatch.setattr(recipe_module, "open_model", watched)
    run_recipe(load_recipe(write(GOOD), ["dtype=bfloat16", "revision=main"]))
    assert asked == [{"dtype": torch.bfloat16, "revision": "main"}]
    weights = load_state_dict(tmp_path / "out").values()
    assert {weight.dtype for weight in weights if weight.is_floating_point()} == {torch.bfloat16}
    with pytest.raises(RecipeError, match="dtype: input should be 'float16', 'bfloat16'"):
        load_recipe(write(GOOD), ["dtype=int8"])


def test_an_existing_output_is_refused_before_any_work(write, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    monkeypatch.setattr(recipe_module, "open_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(CheckpointError, match="out exists"):
        run_recipe(load_recipe(write(GOOD)))
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("seed=7", ("seed",), 7),
        ("data.calibration.samples=3", ("data", "calibration", "samples"), 3),
        ("evaluation.tokens=99", ("evaluation", "tokens"), 99),
        ("wanda.sparsity=4:8", ("steps", 1, "values", "sparsity"), "4:8"),
        ("steps.1.magnitude.sparsity=0.1", ("steps", 0, "values", "sparsity"), 0.1),
        ("magnitude.include=[a, b]", ("steps", 0, "values", "include"), ["a", "b"]),
    ],
)
def test_settings(write, setting, path, value):
    place = load_recipe(write(GOOD), [setting])
    for key in path:
        place = place[key] if isinstance(key, int) or isinstance(place, dict) else getattr(place, key)
    assert place == value


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("wanda:", "wnda:", r"step 2: no method 'wnda'. Did you mean 'wanda'\?"),
        ("sparsity: 0.2", "sparcity: 0.2", r"step 1 .*: unknown field 'sparcity'. Did you mean 'sparsity'\?"),
        ("sparsity: 0.25", "sparsity: [1]", r"step 1 \(magnitude\): sparsity: found \[1\], expected "),
        ("samples: 12", "samples: many", "data.calibration.samples: input should be a valid integer"),
        ("samples: 12", "samples: 0", "data.calibration.samples: input should be greater than or equal to 1"),
        ("samples: 12", "sample: 12", r"data.calibration: unknown field 'sample'. Did you mean 'samples'\?"),
        ("out: ", "output: ", r"recipe: unknown field 'output'. Did you mean 'out'\?"),
        ("out: ", "seed: 3 # ", "out: field required"),
        ("steps:", "evaluation:", "steps: expected a list of methods"),
        ("  - wanda: {{sparsity: 2:4, exclude: [lm_head]}}", "  - wanda: 3", r"step 2 \(wanda\): found 3"),
        ("  - wanda: {{sparsity: 2:4, exclude: [lm_head]}}", "  - 3", "step 2: found 3, expected one method"),
        ("  - wanda: {{sparsity: 2:4, exclude: [lm_head]}}", "  - know", r"step 2 .*: .checkpoints. is missing"),
        ("model:", "[model", "is not YAML"),
        ("steps:", "seed: 1\nseed: 2\nsteps:", "'seed' occurs twice"),
        ("steps:", "seed: 4294967296\nsteps:", "seed: input should be less than 4294967296"),
        ("steps:", "seed: -1\nsteps:", "seed: input should be greater than or equal to 0"),
        ("out: ", "out: # ", "out: field required"),
        ("out: ", "out: '' # ", "out: found .*expected the folder to write"),
        ("sparsity: 0.25", "1: 2", r"step 1 \(magnitude\): found {1: 2, .*expected a mapping of fields"),
        ("  - wanda: {{sparsity: 2:4, exclude: [lm_head]}}", "  - lift: {{epochs: 0}}", "step 2 .*: epochs: found 0"),
        ("  - wanda: {{sparsity: 2:4, exclude: [lm_head]}}", "  - lift: {{warmup: 3}}", "warmup: found 3.0, expected"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_runs(write, old, new, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(GOOD.replace(old, new)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scale-adapter", "'scale-adapter' writes an adapter, not a model"),
        ("d2nwg", "'d2nwg' writes a folder of networks, not a model"),
        ("topk-sae", "'topk-sae' writes a sparse autoencoder, not a model"),
        ("phases", "'models' is missing: expected list of texts"),
    ],
)
def test_a_step_that_cannot_work_is_refused(write, name, message):
    with pytest.raises(RecipeError, match=f"step 3.*{message}"):
        load_recipe(write(GOOD + f"  - {name}\n"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed", "expected key=value"),
        ("nothing.here=1", "0 steps named 'nothing'"),
        ("steps.9.wanda.sparsity=1", "leads nowhere"),
        ("steps.0.wanda.sparsity=1", "leads nowhere"),
        ("steps.-1.wanda.sparsity=1", "leads nowhere"),
        ("seed=[", "is not YAML"),
    ],
)
def test_a_wrong_setting_is_told(write, setting, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(GOOD), [setting])


def test_a_missing_file_and_a_list_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot read recipe"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(RecipeError, match="found list, expected a mapping"):
        load_recipe(tmp_path / "list.yaml")


@pytest.mark.parametrize("source", ["docs/recipes.md", "src/weightsmith/recipe.py"])
def test_the_documented_recipe_is_sound(source, tmp_path):
    text = (Path(__file__).parents[1] / source).read_text("utf-8")
    example = re.search(r"^ *model: embedded.*?(?=\n```|\n\nEvery step)", text, re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "recipe.yaml").write_text(textwrap.dedent(example))
    assert [step.command for step in load_recipe(tmp_path / "recipe.yaml").steps] == ["wanda", "wina"]


COMPARE = """
model: {folder}/tiny
out: {out}
steps:
  - magnitude: {{sparsity: 0.25, exclude: lm_head}}
compare:
  gentle: [magnitude: {{sparsity: 0.5, exclude: lm_head}}]
  harsh in two: [magnitude: {{sparsity: 0.5, exclude: lm_head}}, magnitude: {{sparsity: 0.75, exclude: lm_head}}]
"""


def test_alternatives_start_from_the_same_model(write, tmp_path):
    results = run_recipe(load_recipe(write(COMPARE)))
    titles = ["1. magnitude", "gentle", "harsh in two: 1. magnitude", "harsh in two: 2. magnitude"]
    assert [result.title for result in results] == titles
    assert results[1].before == results[2].before == results[0].after
    assert results[1].after == results[2].after == results[3].before
    for name, nonzero in (("gentle", 16), ("harsh in two", 8)):
        weights = load_state_dict(tmp_path / "out" / name)["model.layers.0.self_attn.o_proj.weight"]
        assert (weights != 0).sum() == weights.numel() * nonzero // 32
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "gentle", "harsh in two", "report.html", "weightsmith.json"
    ]  # fmt: skip
    assert not (tmp_path / "out" / "gentle" / recipe_module.FINISHED).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "recipe.yaml"], "the work folder is gone"


def test_finished_alternatives_are_not_run_again(write, tmp_path):
    calls = []

    def counted(*args, **kwargs):
        calls.append(kwargs["sparsity"])
        return magnitude(*args, **kwargs)

    def crash(*args, **kwargs):
        raise RuntimeError("power cut")

    recipe = load_recipe(write(COMPARE))
    for steps, at, function in ((recipe.compare["gentle"], 0, counted), (recipe.compare["harsh in two"], 1, crash)):
        steps[at] = dataclasses.replace(
            steps[at], signature=dataclasses.replace(steps[at].signature, function=function)
        )
    with pytest.raises(RuntimeError, match="power cut"):
        run_recipe(recipe)
    recipe = load_recipe(write(COMPARE))
    for steps in (recipe.steps, *recipe.compare.values()):
        for at, step in enumerate(steps):
            steps[at] = dataclasses.replace(step, signature=dataclasses.replace(step.signature, function=counted))
    results = run_recipe(recipe)
    assert calls == [0.5, 0.5, 0.75], "gentle once, before the crash; harsh from its start"
    assert [result.after["nonzero"] for result in results] == sorted(
        (result.after["nonzero"] for result in results), reverse=True
    )


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        ("[wanda]", "compare: found .*, expected a mapping from a name to a list of steps"),
        ("{{../up: [wanda]}}", "compare: found .*, expected a mapping from a name"),
        ("{{report.html: [wanda]}}", "compare: found .*, expected a mapping from a name"),
        ("{{a: wanda}}", "compare.a: found wanda, expected a list of methods"),
        ("{{a: [wandaa: {{}}]}}", "a, step 1: no method 'wandaa'. Did you mean 'wanda'"),
    ],
)
def test_bad_alternatives_are_told(write, compare, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(f"model: {{folder}}/tiny\nout: {{out}}\ncompare: {compare}\n"))


def test_a_setting_reaches_an_alternative(write):
    recipe = load_recipe(write(COMPARE), ["compare.gentle.1.magnitude.sparsity=0.4"])
    assert recipe.compare["gentle"][0].values["sparsity"] == 0.4


BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a0: &a0 [x, x]\n" + BOMB, "is not YAML: found more than 10000 values, aliases counted"),
        ("steps: &a [*a]", "is not YAML: found more than 10000 values"),
        ("steps: " + "[" * 3000, "is not YAML: found more than 20 levels"),
        ("steps:\n" + "".join(" " * n + "- a:\n" for n in range(1, 500, 2)), "is not YAML: found more than 20 levels"),
        ("seed: !!int x", "is not YAML: found invalid literal"),
        ("seed: " + "1" * 5000, "is not YAML: found Exceeds the limit"),
        ("seed: [" + "x, " * 3000 + "]\nout: x\nsteps: [wanda]\nmodel: x", r"seed: .* \.\.\. \(15,000 characters\)"),
        ("!!python/object/apply:os.getcwd []", "is not YAML: found could not determine a constructor"),
        ("\0", "is not YAML: found unacceptable character"),
    ],
)
def test_a_few_lines_do_not_fill_the_memory(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert len(str(caught.value)) < 1000


def test_a_recipe_without_an_end_is_not_read_to_it():
    with pytest.raises(RecipeError, match="too long: found no end, expected at most 1,048,576 bytes"):
        load_recipe("/dev/zero")


@pytest.mark.parametrize("setting", ["out=~/new", "report=~me/r.html"])
def test_a_path_that_only_a_shell_expands_is_refused(write, setting):
    """A folder of the name ~ was made where the recipe ran."""
    with pytest.raises(RecipeError, match=r"found ~.*, expected a path. Write the path without ~"):
        load_recipe(write(GOOD), [setting])


def test_a_recipe_that_is_too_long_is_refused_with_its_size(write):
    path = write(GOOD)
    path.write_text(path.read_text() + "# " + "x" * 2**20)
    with pytest.raises(RecipeError, match=f"too long: found {path.stat().st_size:,} bytes"):
        load_recipe(path)


def test_aliases_are_allowed(tmp_path):
    text = "model: m\nout: o\nsteps:\n  - wanda: &same {sparsity: 0.5}\n  - magnitude: {<<: *same, include: [a]}"
    (tmp_path / "recipe.yaml").write_text(text)
    assert load_recipe(tmp_path / "recipe.yaml").steps[1].values == {"sparsity": 0.5, "include": ["a"]}


def interrupted(recipe, calls):
    """Run a recipe whose second step fails, after its first."""

    def counted(*args, **kwargs):
        calls.append("first")
        return magnitude(*args, **kwargs)

    replace(recipe, 0, counted)
    return recipe


@pytest.mark.parametrize("changed", ["nothing", "model", "inputs.safetensors", "evaluation"])
def test_it_does_not_go_on_from_a_model_of_other_files(folder, tmp_path, changed):
    for name in ("tiny", "inputs.safetensors"):
        copy = shutil.copytree if name == "tiny" else shutil.copy2
        copy(folder / name, tmp_path / name)
    (tmp_path / "evaluation.safetensors").write_bytes((tmp_path / "inputs.safetensors").read_bytes())
    text = GOOD.format(folder=tmp_path, out=tmp_path / "out")
    (tmp_path / "recipe.yaml").write_text(f"{text}evaluation: {{file: {tmp_path}/evaluation.safetensors}}")
    calls = []
    recipe = interrupted(load_recipe(tmp_path / "recipe.yaml"), calls)
    replace(recipe, 1, lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe)
    weights = {"model": tmp_path / "tiny" / "model.safetensors", "evaluation": tmp_path / "evaluation.safetensors"}
    file = weights.get(changed, tmp_path / changed)
    if changed != "nothing":
        times, data = (file.stat().st_atime, file.stat().st_mtime), file.read_bytes()
        file.write_bytes(data[:-8] + bytes([data[-8] ^ 1]) + data[-7:])
        os.utime(file, times)  # neither its name nor its size nor its time tells
    run_recipe(interrupted(load_recipe(tmp_path / "recipe.yaml"), calls))
    assert len(calls) == (1 if changed == "nothing" else 2)


@pytest.mark.parametrize("note", ["", "[]", "3", "{}", '{"steps": 1}', '{"steps": "x", "fingerprint": 1}', "\0"])
def test_a_damaged_note_starts_from_the_beginning(write, tmp_path, note):
    calls = []
    recipe = interrupted(load_recipe(write(GOOD)), calls)
    replace(recipe, 1, lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe)
    (tmp_path / ".out.steps" / "steps" / recipe_module.FINISHED).write_text(note)
    run_recipe(interrupted(load_recipe(write(GOOD)), calls))
    assert calls == ["first", "first"]


def test_an_unwritable_report_is_told_before_any_work(write, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe_module, "open_model", lambda *_: pytest.fail("the model was loaded"))
    for report, message in ((tmp_path, "found a folder"), (tmp_path / "recipe.yaml" / "r.html", "is not a folder")):
        with pytest.raises(CheckpointError, match=message):
            run_recipe(load_recipe(write(GOOD), [f"report={report}"]))


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("{tmp}/out/model.safetensors", "may be a file of the model"),
        ("{tmp}/out/weightsmith.json", "may be a file of the model"),
        ("{tmp}/out/tokenizer.json/r.html", "may be a file of the model"),
        ("{tmp}/out/gentle", "may be a file of the model"),
        ("{tmp}/out", "the output"),
        ("{tmp}/recipe.yaml", "which is read"),
        ("{tmp}/tiny/config.json", "a file of .*tiny, which is read"),
        ("{tmp}/link/config.json", "a file of .*tiny, which is read"),
        ("{tmp}/inputs.safetensors", "which is read"),
    ],
)
def test_a_report_takes_the_place_of_nothing_that_is_read_or_written(folder, tmp_path, report, message):
    shutil.copytree(folder / "tiny", tmp_path / "tiny")
    shutil.copy2(folder / "inputs.safetensors", tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "tiny")
    text = COMPARE.format(folder=tmp_path, out=tmp_path / "out")
    (tmp_path / "recipe.yaml").write_text(f"{text}evaluation: {{file: {tmp_path}/inputs.safetensors}}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(HyperparameterError, match=message):
        run_recipe(load_recipe(tmp_path / "recipe.yaml", [f"report={report.format(tmp=tmp_path)}"]))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("report", ["{tmp}/elsewhere/r.html", "{out}/deep/r.html"])
def test_the_report_may_be_anywhere(write, tmp_path, report):
    place = report.format(tmp=tmp_path, out=tmp_path / "out")
    run_recipe(load_recipe(write(GOOD), [f"report={place}"]))
    assert "At a glance" in Path(place).read_text()
    assert not (tmp_path / "out" / "report.html").exists()
