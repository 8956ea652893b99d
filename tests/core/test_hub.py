"""Models of the hub: read by name and revision, kept for later, and uploaded; against a hub on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
import torch
import yaml
from safetensors.torch import load_file, save
from transformers import AutoModelForCausalLM

from faults.lines import run
from hub import serving
from models import write_tiny_llama
from weightsmith.core.errors import CheckpointError
from weightsmith.core.io import checkpoint_folder, downloaded, load_config, load_model, push_to_hub, with_revision
from weightsmith.embedded import open_model
from weightsmith.rehearsal import check_network

TINY = ["--calibration", "{folder}/inputs.safetensors", "--calibration-samples", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_tiny_llama(tmp_path_factory.mktemp("models"), rows=4, tokens=8)
    (folder / "tiny" / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    return folder


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    with serving() as hub:
        hub.add("org/tiny", folder / "tiny")
        monkeypatch.chdir(tmp_path)
        reach(hub.address, tmp_path / "cache", monkeypatch)
        yield hub


def reach(address, cache, monkeypatch):
    """What the environment variables HF_ENDPOINT and HF_HUB_CACHE set in a new process."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_test")


def halved(folder, hub):
    """Another revision of the model: the same with all weights halved."""
    files = dict(hub.repositories["org/tiny"]["main"])
    weights = {key: value / 2 for key, value in load_file(folder / "tiny" / "model.safetensors").items()}
    hub.repositories["org/tiny"]["half"] = files | {"model.safetensors": save(weights, {"format": "pt"})}


def test_a_hub_id_names_a_model_and_a_revision(hub, folder):
    halved(folder, hub)
    whole = load_model(folder / "tiny").state_dict()
    for name, options, factor in (
        ("org/tiny", {}, 1),
        ("org/tiny@half", {}, 0.5),
        ("org/tiny", {"revision": "half"}, 0.5),
        ("org/tiny@half", {"revision": "half"}, 0.5),
    ):
        opened = open_model(name, **options)
        for key, value in opened.model.state_dict().items():
            torch.testing.assert_close(value, whole[key] * factor)
        assert opened.model.name_or_path == "org/tiny"
        assert opened.folder is not None
        assert (opened.folder / "README.md").is_file()
    with pytest.raises(CheckpointError, match=r"two revisions of org/tiny@half: found main2"):
        open_model("org/tiny@half", revision="main2")
    with pytest.raises(CheckpointError, match="hub model org/tiny has no revision v9"):
        load_config("org/tiny@v9")


def test_the_weights_are_not_downloaded_to_look_at_the_configuration(hub):
    check_network("org/tiny")
    assert not any("safetensors" in request for request in hub.requests)
    assert any(request.endswith("/config.json") for request in hub.requests)
    load_model("org/tiny")
    assert any(request.endswith("/model.safetensors") for request in hub.requests)


def test_other_layouts_of_the_weights_and_code_stay_there(hub, folder):
    files = hub.repositories["org/tiny"]["main"]
    files |= {"pytorch_model.bin": b"x", "model.gguf": b"x", "onnx/model.onnx": b"x", "modeling.py": b"raise"}
    found = checkpoint_folder("org/tiny")
    assert {file.name for file in found.rglob("*") if file.is_file()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    del files["model.safetensors"]
    torch.save(load_file(folder / "tiny" / "model.safetensors"), folder / "pytorch_model.bin")
    files["pytorch_model.bin"] = (folder / "pytorch_model.bin").read_bytes()
    assert torch.equal(
        load_model("org/tiny").state_dict()["lm_head.weight"],
        load_model(folder / "tiny").state_dict()["lm_head.weight"],
    )


def test_commands_take_hub_ids_wherever_they_take_folders(hub, folder, tmp_path):
    halved(folder, hub)
    tiny = [word.format(folder=folder) for word in TINY]
    for words, written in (
        (["sparsify", "wanda", "org/tiny@half", "sparse", *tiny], "sparse"),
        (["sparsify", "wanda", "org/tiny", "streamed", "--revision", "half", "--stream", *tiny], "streamed"),
        (["merge", "wise-ft", "org/tiny", "org/tiny@half", "merged", "--alpha", "0.5"], "merged"),
    ):
        code, printed = run([*words, "--dry-run"])
        assert code == 0, printed
        code, printed = run(words)
        assert code == 0, printed
        card = yaml.safe_load((tmp_path / written / "README.md").read_text().split("---")[1])
        assert card.get("license") == "mit", written
        assert set(card["base_model"]) == {"org/tiny"}
    assert "Made from `org/tiny@half`" in (tmp_path / "sparse" / "README.md").read_text()
    commits = [hub.find("org/tiny", each)[0] for each in ("main", "half")]
    merged_from = ", ".join(f"`org/tiny@{commit}`" for commit in commits)
    assert merged_from in (tmp_path / "merged" / "README.md").read_text()
    sparse, streamed, merged = (load_file(tmp_path / each / "model.safetensors") for each in
                                ("sparse", "streamed", "merged"))  # fmt: skip
    whole = load_file(folder / "tiny" / "model.safetensors")
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(sparse[key], streamed[key])
    kept = sparse[key] != 0
    torch.testing.assert_close(sparse[key][kept], whole[key][kept] / 2)
    torch.testing.assert_close(merged[key], whole[key] * 0.75)
    code, printed = run(["analyze", "condition", "org/tiny", "--json", "condition.json"])
    assert code == 0, printed
    assert json.loads(Path("condition.json").read_text())["layers"]


def test_a_recipe_reads_a_revision_of_the_hub(hub, folder, tmp_path):
    halved(folder, hub)
    inputs = str(folder / "inputs.safetensors")
    recipe = {
        "model": "org/tiny",
        "revision": "half",
        "out": "out",
        "steps": [{"wanda": {"calibration": inputs}}, {"wise-ft": {"checkpoints": ["org/tiny", "$model"]}}],
    }
    Path("recipe.yaml").write_text(json.dumps(recipe))
    code, printed = run(["run", "recipe.yaml"])
    assert code == 0, printed
    assert "Made from `org/tiny@half`" in (tmp_path / "out" / "README.md").read_text()
    recipe["steps"][1] = {"wise-ft": {"checkpoints": ["org/none", "$model"]}}
    Path("recipe.yaml").write_text(json.dumps(recipe))
    code, printed = run(["run", "recipe.yaml", "--overwrite"])
    assert (code, "no model 'org/none' on the hub" in printed) == (2, True), printed


@pytest.mark.parametrize("name", ["é" * 120, "a--b/c..d", "x" * 97])
def test_a_name_that_the_hub_never_has_was_not_downloaded(name):
    assert downloaded(name) is None


def test_what_was_downloaded_is_used_where_the_hub_is_not(hub, tmp_path, monkeypatch):
    load_model("org/tiny")
    check_network("org/tiny")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        reach(f"http://127.0.0.1:{nobody.getsockname()[1]}", tmp_path / "cache", monkeypatch)
        assert load_model("org/tiny").name_or_path == "org/tiny"
        waited: list[float] = []
        monkeypatch.setattr(time, "sleep", waited.append)
        with pytest.raises(CheckpointError, match=r"no folder 'org/other'.*the hub cannot be asked for a model"):
            load_model("org/other")
        assert sum(waited) < 5  # retries would wait for 23 s
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_model("org/tiny").name_or_path == "org/tiny"
    with pytest.raises(CheckpointError, match=r"no folder 'org/other', and no hub model.*Without HF_HUB_OFFLINE"):
        load_model("org/other")


def test_a_configuration_alone_is_not_taken_for_a_model(hub, monkeypatch):
    check_network("org/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="no hub model of this name was downloaded"):
        load_model("org/tiny")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./out", "there is no folder './out'"),
        ("/nowhere/out", "there is no folder '/nowhere/out'"),
        ("~/out", "there is no folder '~/out'. Write the path without ~"),
        ("runs/one/out", "there is no folder 'runs/one/out'"),
        ("../out", "there is no folder '../out'"),
        ("my model", "there is no folder 'my model', and it is no hub id: expected org/name"),
        ("org/name@", "and it is no hub id"),
        ("org/none", "there is no folder 'org/none' on this machine, and no model 'org/none' on the hub"),
    ],
)
def test_a_missing_folder_is_named_at_once(hub, name, message):
    asked = len(hub.requests)
    with pytest.raises(CheckpointError) as caught:
        open_model(name)
    assert message in str(caught.value)
    # the library may also ask what program it runs in
    assert len([one for one in hub.requests[asked:] if "/api/models/" in one]) == (name == "org/none")


def test_revisions_belong_to_the_hub(folder):
    with pytest.raises(CheckpointError, match="has no revision v1. A revision belongs to a hub id"):
        load_model(folder / "tiny", revision="v1")
    with pytest.raises(CheckpointError, match="embedded:minilm has no revision v1"):
        with_revision("embedded:minilm", "v1")


def test_a_folder_is_pushed_with_its_card_and_read_back(hub, folder, tmp_path):
    code, printed = run(["sparsify", "magnitude", str(folder / "tiny"), "sparse", "--sparsity", "0.5"])
    assert code == 0, printed
    code, printed = run(["push", "sparse", "me/sparse"])
    assert code == 0, printed
    assert printed.startswith(f"pushed: {hub.address}/me/sparse/commit/")
    card = (tmp_path / "sparse" / "README.md").read_text()
    assert hub.cards[0] == card
    files = hub.repositories["me/sparse"]["main"]
    assert files == {
        str(file.relative_to("sparse")): file.read_bytes() for file in Path("sparse").rglob("*") if file.is_file()
    }
    assert run(["push", "sparse", "me/sparse@v1", "--message", "again", "--private"])[0] == 0
    assert hub.repositories["me/sparse"]["v1"] == files
    again = AutoModelForCausalLM.from_pretrained("me/sparse", revision="v1").state_dict()
    for key, value in load_model("me/sparse@v1").state_dict().items():
        assert torch.equal(value, again[key])
        assert key.endswith("norm.weight") or "embed" in key or "lm_head" in key or (value == 0).float().mean() == 0.5


def test_a_push_replaces_the_older_model_and_keeps_other_files(hub, folder, tmp_path):
    """The old `model.safetensors` stayed beside the new shards, and is what transformers reads first."""
    hub.add("me/model", folder / "tiny")
    plain = {".gitattributes": b"*.safetensors lfs", "logo[1].png": b"png", "old/model.safetensors": b"kept"}
    hub.repositories["me/model"]["main"] |= plain | {
        "wina.json": b"{}",
        "adapter_config.json": b"{}",
        "pytorch_model[1].bin": b"old",
        "pytorch_model1.bin": b"new",
    }
    model = AutoModelForCausalLM.from_pretrained(folder / "tiny")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    new = tmp_path / "sharded"
    model.save_pretrained(new, max_shard_size="3KB")
    (new / "README.md").write_text("# sharded\n")
    (new / "pytorch_model1.bin").write_bytes(b"new")
    assert len(list(new.glob("*.safetensors"))) > 1
    push_to_hub(new, "me/model")
    written = {file.name: file.read_bytes() for file in new.iterdir()}
    assert hub.repositories["me/model"]["main"] == written | plain
    read = AutoModelForCausalLM.from_pretrained("me/model").state_dict()
    assert all(not value.any() for value in read.values())


def test_a_push_without_weights_removes_none(hub, folder, tmp_path):
    """A folder of measures, pushed beside a model, took the model away."""
    hub.add("me/model", folder / "tiny")
    before = dict(hub.repositories["me/model"]["main"])
    measures = tmp_path / "measures"
    measures.mkdir()
    (measures / "README.md").write_text("# measures\n")
    (measures / "measure.json").write_text("{}")
    push_to_hub(measures, "me/model")
    assert hub.repositories["me/model"]["main"] == before | {"README.md": b"# measures\n", "measure.json": b"{}"}


def test_a_push_that_cannot_be_is_refused(hub, folder, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    for words, message in (
        (("nothing", "me/x"), "nothing has no model card README.md: found no folder"),
        (("empty", "me/x"), "found a folder without one. Push the folder that a command or recipe wrote."),
        ((folder / "tiny", "x"), "'x' is not the name of a repository: expected org/name"),
        ((folder / "tiny", "a/b/c"), "no folder 'a/b/c'"),
        ((folder / "tiny", "strangers/x"), "the hub refused strangers/x"),
    ):
        with pytest.raises(CheckpointError, match=message):
            push_to_hub(*words)
    assert [*hub.repositories] == ["org/tiny"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="the hub cannot be asked"):
        push_to_hub(folder / "tiny", "me/x")


def test_the_variables_of_the_hub_reach_a_process(hub, folder, tmp_path):
    variables = {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_TOKEN": "hf_test"}
    script = """
        from weightsmith.core.io import checkpoint_folder, push_to_hub
        push_to_hub(checkpoint_folder("org/tiny"), "me/copy")
    """
    environment = {**os.environ, **variables, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    line = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    copied = hub.repositories["me/copy"]["main"]
    assert copied["model.safetensors"] == (folder / "tiny" / "model.safetensors").read_bytes()
