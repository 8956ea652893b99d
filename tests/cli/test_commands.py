"""Every command of the catalog, as a user runs it: defaults, a model folder in, a folder out that loads again."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file
from typer.testing import CliRunner

from models import write_tiny_llama
from weightsmith import catalog, embedded
from weightsmith.cli.main import app
from weightsmith.core.io import load_model
from weightsmith.core.report.format import GLOSSARY
from weightsmith.core.symmetry import find_symmetry
from weightsmith.signature import read

SIGNATURES = {name: read(catalog.load(m.commands[name].entry)) for name, m in catalog.commands().items()}
OTHER_MODELS = ("blindspot", "classwise", "gaussian", "meta-rescaling", "sae-eval", "weight-aligning")
"""Commands that refuse a language model, or one without a tokenizer that knows nothing."""

TRANSFORMS = {
    name: catalog.find(name).commands[name].verb
    for name, signature in SIGNATURES.items()
    if signature.model is not None and not signature.measures and name not in OTHER_MODELS
}

RESIZING = ("grow", "search")
"""Verbs whose commands change the sizes of a model."""

SMALL = {
    "bone": ["--r", "4"],
    "d2nwg-layers": [
        "--include",
        "*q_proj",
        "--chunk",
        "16",
        "--latent",
        "4",
        "--vae-steps",
        "200",
        "--steps",
        "10",
        "--candidates",
        "1",
    ],
    "expand": ["--depth", "3"],
    "learngene": ["--stages", "1"],
    "phases": ["--batch-size", "4", "--epochs", "1", "--learning-rate", "0.01", "--probes", "2"],
    "spos": ["--candidates", "2"],
    "random-search": ["--candidates", "2"],
}
"""What the tiny model needs in place of a default."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("models"), 16, 12)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_writes_a_model_that_loads_again(folder, tmp_path, name):
    line = [TRANSFORMS[name], name, str(folder / "tiny"), str(tmp_path / "out"), "--json", str(tmp_path / "r.json")]
    signature = SIGNATURES[name]
    for role in signature.data:
        line += [f"--{role.name.replace('_', '-')}", str(folder / "inputs.safetensors")]
    for role in signature.networks:
        line += [f"--{role.name}", str(folder / "tiny")]
    line += SMALL.get(name, [])
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output + str(done.exception)
    before, after = load_model(folder / "tiny").state_dict(), load_model(tmp_path / "out").state_dict()
    if TRANSFORMS[name] not in RESIZING:
        assert before.keys() == after.keys()
    if TRANSFORMS[name] not in RESIZING and name != "modhifi":
        assert all(before[key].shape == after[key].shape for key in before)
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["method"] == name
    assert record["layers"] or record["curves"]
    assert {column for row in record["layers"] for column in row} <= {"layer", *GLOSSARY}
    assert {"parameters", "nonzero", "bytes"} <= set(record["after"])
    assert all((tmp_path / "out" / file).read_text() == text for file, text in record["files"].items())
    beside = {**record, "files": {}}  # its files are not repeated in it
    assert json.loads((tmp_path / "out" / "weightsmith.json").read_text()) == beside


@pytest.mark.parametrize(
    "name", [name for name, signature in SIGNATURES.items() if signature.measures and name not in OTHER_MODELS]
)
def test_a_measure_reads_a_folder_and_changes_nothing(folder, tmp_path, name):
    before = (folder / "tiny" / "model.safetensors").read_bytes()
    networks = [str(folder / "tiny") for _ in SIGNATURES[name].measured]
    networks *= 1 + SIGNATURES[name].measured[0].many
    line = [catalog.find(name).commands[name].verb, name, *networks, "--json", str(tmp_path / "r.json")]
    for role in SIGNATURES[name].data:
        line += [f"--{role.name}", str(folder / "inputs.safetensors")]
    line += SMALL.get(name, [])
    if name == "mode-connectivity":
        line += ["--other", str(folder / "tiny")]
    done = CliRunner().invoke(app, [*line, "--report", str(tmp_path / "r.html")])
    assert done.exit_code == 0, done.output + str(done.exception)
    assert json.loads((tmp_path / "r.json").read_text())["layers"]
    assert (tmp_path / "r.html").is_file()
    assert (folder / "tiny" / "model.safetensors").read_bytes() == before


def test_a_text_classifier_learns_from_labelled_text(tmp_path):
    """A BERT of two layers with MiniLM's tokenizer, and a CSV file of eight mails."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = embedded.load_tokenizer(embedded.folder("minilm"))
    config = transformers.BertConfig(**small, vocab_size=len(tokenizer))
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    rows = [f"mail number {n} says hello,{n % 2}" for n in range(8)]
    (tmp_path / "mails.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    line = ["train", "meta-rescaling", str(tmp_path / "bert"), str(tmp_path / "out"), "--epochs", "2"]
    done = CliRunner().invoke(app, [*line, "--training", str(tmp_path / "mails.csv"), "--training-length", "12"])
    assert done.exit_code == 0, done.output + str(done.exception)
    weights = (tmp_path / "out" / "sample_weights.csv").read_text().splitlines()
    assert weights[0] == "sample,label,weight"
    assert sorted(int(line.split(",")[0]) for line in weights[1:]) == list(range(8))


def test_know_predicts_from_five_checkpoints(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weight, step = torch.randn(2, 4, 3, 3, 3, generator=generator)
    paths = []
    for stage in range(5):
        paths.append(str(tmp_path / f"{stage}.safetensors"))
        save_file({"conv.weight": weight + 0.1 * stage * step}, paths[-1])
    out = tmp_path / "predicted.safetensors"
    done = CliRunner().invoke(app, ["predict", "know", *paths, str(out), "--predictor", "paper", "--steps", "1"])
    assert done.exit_code == 0, done.output + str(done.exception)
    assert out.is_file()
    assert "conv.weight" in done.output


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt", "dsnot", "modhifi"])
def test_streaming_writes_what_loading_does(folder, tmp_path, name):
    line = ["sparsify", name, str(folder / "tiny")]
    data = [] if name == "magnitude" else ["--calibration", str(folder / "inputs.safetensors")]
    for out, extra in (("whole", []), ("streamed", ["--stream"])):
        done = CliRunner().invoke(app, [*line, str(tmp_path / out), *data, *extra])
        assert done.exit_code == 0, done.output + str(done.exception)
    whole, streamed = (load_model(tmp_path / out).state_dict() for out in ("whole", "streamed"))
    assert all(torch.equal(whole[key], value) for key, value in streamed.items())
    configs = [json.loads((tmp_path / out / "config.json").read_text()) for out in ("whole", "streamed")]
    assert configs[0] == configs[1]
    assert json.loads((tmp_path / "streamed" / "weightsmith.json").read_text())["method"] == name
    done = CliRunner().invoke(app, [*line, str(tmp_path / "both"), *data, "--stream", "--compressed"])
    assert done.exit_code == 2
    assert not (tmp_path / "both").exists()


def test_d2nwg_draws_from_a_folder_of_heads(tmp_path):
    (tmp_path / "zoo").mkdir()
    for number in range(8):
        save_file(torch.nn.Linear(3, 2).state_dict(), tmp_path / "zoo" / f"{number}.safetensors")
        save_file({"support": torch.randn(2, 5, 3)}, tmp_path / "zoo" / f"{number}.support.safetensors")
    save_file({"support": torch.randn(2, 5, 3)}, tmp_path / "task.safetensors")
    line = [
        "predict",
        "d2nwg",
        str(tmp_path / "zoo"),
        str(tmp_path / "new"),
        "--support",
        str(tmp_path / "task.safetensors"),
    ]
    small = ["--count", "2", "--latent", "2", "--vae-steps", "100", "--steps", "5", "--batch-size", "8"]
    done = CliRunner().invoke(app, [*line, *small, "--include", "weight", "--report", str(tmp_path / "r.html")])
    assert done.exit_code == 0, done.output + str(done.exception)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        *(f"{n}.safetensors" for n in (0, 1, "mean")),
        "README.md",
        "weightsmith.json",
    }
    assert (tmp_path / "r.html").is_file()


def test_rebasin_finds_the_order_of_a_shuffled_checkpoint(folder, tmp_path):
    model = load_model(folder / "tiny")
    symmetry = find_symmetry(model, {"input_ids": torch.zeros(1, 4, dtype=torch.long)})
    own = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.load_state_dict(symmetry.permute(own, symmetry.random(torch.Generator().manual_seed(0))))
    model.save_pretrained(tmp_path / "shuffled")
    line = ["merge", "rebasin", str(folder / "tiny"), str(tmp_path / "shuffled"), str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*line, "--restarts", "5", "--json", str(tmp_path / "r.json")])
    assert done.exit_code == 0, done.output + str(done.exception)
    assert json.loads((tmp_path / "r.json").read_text())["totals"]["distance_after"] < 1e-4
    for key, tensor in load_model(tmp_path / "out").state_dict().items():
        torch.testing.assert_close(tensor, own[key], rtol=1e-4, atol=1e-5)
