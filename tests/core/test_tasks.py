"""Tasks of the evaluation harness: numbers that can be computed by hand, on a task of two files."""

from __future__ import annotations

import importlib.util
import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from faults.lines import run
from weightsmith.core.errors import CalibrationError, HyperparameterError, MissingDependencyError
from weightsmith.core.io import save_model
from weightsmith.core.tasks import check_tasks, measure_tasks

harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-eval is an extra that is not installed: pip install 'weightsmith[eval]'",
)
WORDS = ["<s>", "?", "after", "one", "two", "three", "four", "comes", "is"]
CONTEXT = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model of nine words, and a task: which word comes next."""
    folder = tmp_path_factory.mktemp("tasks")
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", bos_token="<s>", eos_token="<s>")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
    )
    save_model(LlamaForCausalLM(config), folder / "model", tokenizer=fast)
    rows = [
        {"text": f"after {a} comes", "options": ["two", "three", "four"], "right": right}
        for a, right in (("one", 0), ("two", 1), ("three", 2), ("one two", 1), ("is " * 30 + "one", 0))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "next_word",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "next_word.yaml").write_text(yaml.safe_dump(task))
    return folder


def opened(folder):
    from weightsmith.embedded import open_model

    return open_model(folder / "model")


def by_hand(model, tokenizer, folder, samples=None):
    """Share of rows whose likeliest option is the right one; of a long text the model reads its end."""
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()][:samples]
    right = 0
    for row in rows:
        ids = tokenizer(row["text"], return_tensors="pt")["input_ids"][:, -CONTEXT:]
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        options = [tokenizer.convert_tokens_to_ids(option) for option in row["options"]]
        right += int(logits[options].argmax()) == row["right"]
    return right / len(rows)


@harness
def test_the_accuracy_is_that_of_a_count_by_hand(folder):
    it = opened(folder)
    it.model.train()
    state = torch.get_rng_state()
    pad = it.tokenizer.pad_token
    task = str(folder / "next_word.yaml")
    for options in ({}, {"batch_size": 2}, {"samples": 3}):
        measures = measure_tasks(it.model, it.tokenizer, [task], **options)
        expected = by_hand(deepcopy(it.model).eval(), it.tokenizer, folder, options.get("samples"))
        assert measures["next_word accuracy"] == pytest.approx(expected)
        count = options.get("samples", 5)
        error = (expected * (1 - expected) / (count - 1)) ** 0.5
        assert measures["next_word accuracy_spread"] == pytest.approx(error)
    assert it.model.training
    assert it.tokenizer.pad_token == pad
    assert torch.equal(torch.get_rng_state(), state)


def another(folder, place, **changes):
    """The task in another file, with changes."""
    task = yaml.safe_load((folder / "next_word.yaml").read_text()) | changes
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(yaml.safe_dump(task))
    return str(place)


def one_row(tmp_path, right):
    """Data of one row, so that an accuracy tells which data were read."""
    row = {"text": "after one comes", "options": ["two", "three", "four"], "right": right}
    (tmp_path / f"right{right}.jsonl").write_text(json.dumps(row) + "\n")
    return {"data_files": {"test": str(tmp_path / f"right{right}.jsonl")}}


@harness
def test_a_file_is_measured_whatever_other_file_has_its_name(folder, tmp_path):
    """The harness knew the first file of a folder only, and measured that one under the other's name."""
    it = opened(folder)
    found = {
        right: measure_tasks(
            it.model,
            it.tokenizer,
            [another(folder, tmp_path / name, dataset_kwargs=one_row(tmp_path, right))],
        )["next_word accuracy"]
        for right, name in enumerate(("a.yaml", "b.yaml", "c.yml"))
    }
    assert sorted(found.values()) == [0, 0, 1]
    answers = it.tokenizer.convert_tokens_to_ids(["two", "three", "four"])
    ids = it.tokenizer("after one comes", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert found[int(it.model(ids).logits[0, -1, answers].argmax())] == 1


@harness
def test_two_tasks_of_one_name_are_refused(folder, tmp_path):
    """Of both there was one row, of the last one."""
    it = opened(folder)
    files = [another(folder, tmp_path / name / "task.yaml") for name in ("a", "b")]
    with pytest.raises(CalibrationError, match=r"two tasks named 'next_word': found .*a.task\.yaml and .*b.task\.yaml"):
        measure_tasks(it.model, it.tokenizer, files)
    assert "next_word accuracy" in measure_tasks(it.model, it.tokenizer, [files[0], files[0]])


@harness
def test_measuring_leaves_the_generator_of_numpy(folder):
    it = opened(folder)
    np.random.seed(1)  # noqa: NPY002 - whose state is the caller's
    expected = np.random.get_state()[1].tolist()  # noqa: NPY002
    measure_tasks(it.model, it.tokenizer, [str(folder / "next_word.yaml")])
    assert np.random.get_state()[1].tolist() == expected  # noqa: NPY002


@harness
@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"doc_to_text": "{{nothing}}"}, "'nothing' is undefined"),
        ({"test_split": "train"}, "KeyError: 'train'"),
        ({"output_type": "essay"}, "Got invalid output_type 'essay'"),
        ({"dataset_kwargs": {"data_files": {"test": "nothing.jsonl"}}}, "Unable to find"),
    ],
)
def test_a_task_that_the_harness_cannot_measure_is_named(folder, tmp_path, changes, found):
    it = opened(folder)
    file = another(folder, tmp_path / "odd.yaml", task="odd", **changes)
    with pytest.raises(CalibrationError, match=rf"the harness cannot measure .*odd\.yaml: found .*{found}"):
        measure_tasks(it.model, it.tokenizer, [file])


@harness
def test_quiet_silences_the_bars_of_the_harness(folder):
    words = ["measure", str(folder / "model"), "--tasks", str(folder / "next_word.yaml"), "--evaluation"]
    code, printed = run([*words, str(folder / "rows.jsonl"), "--quiet"])
    assert code == 0, printed
    assert "next word accuracy" in printed
    assert "Running" not in printed


@harness
def test_the_command_writes_table_json_and_report(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["measure", str(folder / "model"), "--tasks", str(folder / "next_word.yaml"), "--batch-size", "2"]
    code, printed = run([*words, "--json", "m.json", "--report", "m.html", "--evaluation", str(folder / "rows.jsonl")])
    assert code == 0, printed
    record = json.loads(Path("m.json").read_text())
    it = opened(folder)
    assert record["after"]["next_word accuracy"] == pytest.approx(by_hand(it.model, it.tokenizer, folder))
    assert record["after"]["parameters"] == sum(p.numel() for p in it.model.parameters())
    assert record["after"]["perplexity"] > 1
    assert record["reading"]
    assert record["hyper"]["tasks"] == [str(folder / "next_word.yaml")]
    assert "next word accuracy" in printed
    assert "next word accuracy" in Path("m.html").read_text()


@harness
def test_a_recipe_measures_tasks_before_and_after_each_step(folder, tmp_path):
    recipe = {
        "model": str(folder / "model"),
        "out": str(tmp_path / "out"),
        "evaluation": {"tasks": [str(folder / "next_word.yaml")], "file": str(folder / "rows.jsonl"), "samples": 4},
        "steps": [{"magnitude": {"sparsity": 0.5}}, {"magnitude": {"sparsity": 0.9}}],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    code, printed = run(["run", str(tmp_path / "recipe.yaml")])
    assert code == 0, printed
    first, second = json.loads((tmp_path / "out" / "weightsmith.json").read_text())
    before = opened(folder)
    assert first["before"]["next_word accuracy"] == by_hand(before.model, before.tokenizer, folder, 4)
    assert first["after"]["next_word accuracy"] == second["before"]["next_word accuracy"]
    from weightsmith.embedded import open_model

    after = open_model(tmp_path / "out")
    assert second["after"]["next_word accuracy"] == by_hand(after.model, after.tokenizer, folder, 4)


@harness
def test_what_cannot_be_measured_is_refused(folder):
    it = opened(folder)
    with pytest.raises(CalibrationError, match="there is no task file nothing.yaml"):
        measure_tasks(it.model, it.tokenizer, ["nothing.yaml"])
    with pytest.raises(CalibrationError, match="found Linear, expected a causal language model"):
        measure_tasks(nn.Linear(2, 2), None, [str(folder / "next_word.yaml")])
    for options in ({"samples": 0}, {"shots": -1}, {"batch_size": 0}):
        with pytest.raises(HyperparameterError, match=f"{next(iter(options))}: found"):
            measure_tasks(it.model, it.tokenizer, [], **options)


@harness
@pytest.mark.slow  # the harness reads thousands of files to know its tasks
def test_a_task_that_the_harness_does_not_know_is_named(folder):
    it = opened(folder)
    with pytest.raises(CalibrationError, match="the harness knows no task 'no_such_task'"):
        measure_tasks(it.model, it.tokenizer, [str(folder / "next_word.yaml"), "no_such_task"])


@harness
def test_a_task_file_without_a_name_is_refused(folder, tmp_path):
    it = opened(folder)
    for text, message in (("- a list", "found task None"), ("task: [", "is not YAML"), ("tag: x", "under 'task'")):
        (tmp_path / "odd.yaml").write_text(text)
        with pytest.raises(CalibrationError, match=message):
            measure_tasks(it.model, it.tokenizer, [str(tmp_path / "odd.yaml")])


def test_a_harness_that_is_not_installed_is_named(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"lm-eval.*weightsmith\[eval\]"):
        check_tasks([str(folder / "next_word.yaml")])
    code, printed = run(["measure", str(folder / "model"), "--tasks", "arc_easy"])
    assert (code, "weightsmith[eval]" in printed) == (1, True)


@pytest.mark.parametrize("given", ["", " , ", "--seed=-1", f"--seed={2**32}"])
def test_options_of_measure_that_stand_for_nothing_are_refused(folder, given):
    words = [given] if given.startswith("--") else ["--tasks", given]
    code, printed = run(["measure", str(folder / "model"), *words])
    assert (code, words[0].partition("=")[0] in printed) == (2, True), printed


def test_a_model_is_measured_without_tasks(folder):
    code, printed = run(["measure", str(folder / "model"), "--evaluation", str(folder / "rows.jsonl")])
    assert code == 0, printed
    assert "perplexity" in printed
    assert run(["measure", "./nothing"])[0] == 1
