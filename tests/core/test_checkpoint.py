import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings, strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from models import tiny
from weightsmith.core.errors import CheckpointError, HyperparameterError, ShapeError, UnsupportedModelError
from weightsmith.core.io import (
    CheckpointReader,
    CheckpointWriter,
    TemporaryFolder,
    TensorSpec,
    _atomic as atomic,
    atomic_output,
    check_file,
    check_output,
    load_model,
    load_state_dict,
    meta_model,
    save_model,
    write_file,
)
from weightsmith.core.io._header import DTYPES
from weightsmith.merge import wise_ft

FLOAT4 = DTYPES.get("F4")


@pytest.fixture
def folder(tmp_path):
    """A sharded Llama folder with the files that come with a model."""
    model, _ = tiny("llama")
    model.bfloat16().save_pretrained(tmp_path / "model", max_shard_size="20KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "README.md"):
        (tmp_path / "model" / name).write_text('{"from": "the source"}')
    return tmp_path / "model"


def snapshot(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@settings(max_examples=30, deadline=None)
@given(
    dtype=st.sampled_from([d for d in DTYPES.values() if d not in (torch.uint16, torch.uint32, torch.uint64)]),
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=4),
    limit=st.integers(1, 500),
)
def test_streamed_files_are_what_safetensors_reads(tmp_path_factory, dtype, shapes, limit):
    path = tmp_path_factory.mktemp("checkpoint") / "out"
    tensors = (
        {f"t{i}": torch.randint(0, 2, shape).to(dtype) for i, shape in enumerate(shapes)}
        if dtype != FLOAT4
        else {
            f"t{i}": torch.randint(0, 256, shape or [1], dtype=torch.uint8).view(dtype)
            for i, shape in enumerate(shapes)
        }
    )
    specs = {key: TensorSpec.of(value) for key, value in tensors.items()}
    with CheckpointWriter(path, specs, max_shard_bytes=limit) as writer:
        for key in reversed(tensors):
            writer.write(key, tensors[key])
    theirs = {}
    for shard in path.glob("*.safetensors"):
        theirs |= safetensors.torch.load_file(shard)
    ours = load_state_dict(path)
    for key, value in tensors.items():
        assert theirs[key].dtype == ours[key].dtype == dtype
        assert theirs[key].shape == ours[key].shape == value.shape
        raw = value.reshape(-1).view(torch.uint8)  # some types have no equality of their own
        assert torch.equal(theirs[key].reshape(-1).view(torch.uint8), raw)
        assert torch.equal(ours[key].reshape(-1).view(torch.uint8), raw)


def test_reading_in_place_of_any_layout(folder, tmp_path):
    whole = load_state_dict(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    safetensors.torch.save_file(whole, tmp_path / "one.safetensors")
    torch.save(whole, tmp_path / "one.pt")
    for path in (tmp_path / "one.safetensors", tmp_path / "one.pt"):
        other = load_state_dict(path)
        assert other.keys() == whole.keys()
        assert all(torch.equal(other[key], value) for key, value in whole.items())
    reader = CheckpointReader(folder)
    assert reader.nbytes == sum(value.numel() * 2 for value in whole.values())
    assert "lm_head.weight" in reader
    with pytest.raises(CheckpointError, match="no tensor 'nothing'"):
        reader.tensor("nothing")


def test_copy_carries_everything_and_touches_nothing(folder, tmp_path):
    before = snapshot(folder)
    reader = CheckpointReader(folder)
    with CheckpointWriter(tmp_path / "copy", reader.specs, like=folder, max_shard_bytes=30_000) as writer:
        for key in reader:
            writer.write(key, reader.tensor(key))
    assert snapshot(folder) == before
    copied = snapshot(tmp_path / "copy")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"):
        assert copied[name] == before[name]
    model = load_model(tmp_path / "copy")
    assert model.dtype == torch.bfloat16
    assert all(torch.equal(value, reader.tensor(key)) for key, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "vit", "cnn"])
def test_models_round_trip(name, dtype, tmp_path, folder):
    model, _ = tiny(name)
    model = model.to(dtype)
    save_model(model, tmp_path / "saved", files={"plan.json": "{}"}, like=folder)
    assert (tmp_path / "saved" / "plan.json").read_text() == "{}"
    assert (tmp_path / "saved" / "tokenizer.json").exists()
    if name == "cnn":
        loaded = load_state_dict(tmp_path / "saved")
    else:
        assert json.loads((tmp_path / "saved" / "config.json").read_text())["architectures"] == [type(model).__name__]
        loaded = load_model(tmp_path / "saved").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())
    assert all(value.dtype == dtype for value in loaded.values() if value.is_floating_point())


def test_tied_weights_are_written_once_and_tied_again(tmp_path):
    model, _ = tiny("gpt2")
    save_model(model, tmp_path / "tied")
    assert "lm_head.weight" not in CheckpointReader(tmp_path / "tied")
    loaded = load_model(tmp_path / "tied")
    assert loaded.lm_head.weight is loaded.transformer.wte.weight

    plain = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    plain["b"].weight = plain["a"].weight
    save_model(plain, tmp_path / "plain")
    assert len(CheckpointReader(tmp_path / "plain")) == 3


def test_parts_are_read_and_written_by_threads_at_once(tmp_path):
    whole = torch.randn(7, 1001, generator=torch.Generator().manual_seed(0)).bfloat16()
    safetensors.torch.save_file({"w": whole}, tmp_path / "one.safetensors")
    torch.save({"w": whole}, tmp_path / "one.pt")
    for name in ("one.safetensors", "one.pt"):
        reader = CheckpointReader(tmp_path / name)

        def move(begin, reader=reader):
            room = torch.empty(min(500, whole.numel() - begin), dtype=whole.dtype)
            part = reader.read("w", begin, begin + len(room), out=room)
            assert part is room
            writer.write_range("w", begin, part)

        with CheckpointWriter(tmp_path / f"copy of {name}", reader.specs) as writer, ThreadPoolExecutor(4) as pool:
            list(pool.map(move, range(0, whole.numel(), 500)))
        assert torch.equal(load_state_dict(tmp_path / f"copy of {name}")["w"], whole)
        assert reader.read("w", 3, 3).shape == (0,)
        assert torch.equal(reader.read("w", 1000), whole.flatten()[1000:])


def test_parts_that_do_not_fit_are_refused(tmp_path):
    path, whole = tmp_path / "one.safetensors", torch.arange(10.0)
    safetensors.torch.save_file({"w": whole}, path)
    reader = CheckpointReader(path)
    for begin, end in ((-1, 3), (4, 3), (0, 11)):
        with pytest.raises(ShapeError, match="within 0 to 10"):
            reader.read("w", begin, end)
    for room in (torch.empty(4), torch.empty(3, dtype=torch.float64), torch.empty(3, 1)):
        with pytest.raises(ShapeError, match="room for tensor 'w'"):
            reader.read("w", 0, 3, out=room)
    path.write_bytes(path.read_bytes()[:-4])  # after the header was read
    assert torch.equal(reader.read("w", 0, 9), whole[:9])
    with pytest.raises(CheckpointError, match=r"'w' in .* is truncated: found 36 bytes, expected 40 bytes"):
        reader.read("w")
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot read tensor 'w'"):
        reader.read("w")

    def wrong(key, begin, chunk):
        with CheckpointWriter(tmp_path / "out", reader.specs) as writer:
            writer.write_range(key, begin, chunk)

    for key, begin, chunk in (
        ("v", 0, whole),
        ("w", 1, whole),
        ("w", -1, whole[:2]),
        ("w", 0, whole.double()),
        ("w", 0, whole.view(2, 5)),
    ):
        with pytest.raises(ShapeError, match=f"elements of tensor '{key}'"):
            wrong(key, begin, chunk)
    with pytest.raises(CheckpointError, match=r"never written in full: \['w'\]"):
        wrong("w", 0, whole[:9])
    assert list(tmp_path.iterdir()) == []


def damaged(folder, how):
    shard = sorted(folder.glob("*.safetensors"))[1]
    data = shard.read_bytes()
    if how == "truncated":
        shard.write_bytes(data[:-7])
    elif how == "header":
        shard.write_bytes(data[:8] + b"{not json" + data[17:])
    elif how == "length":
        shard.write_bytes((1 << 40).to_bytes(8, "little") + data[8:])
    elif how == "empty":
        shard.write_bytes(b"")
    elif how == "missing":
        shard.unlink()
    elif how == "index":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    elif how == "key":
        tensors = safetensors.torch.load_file(shard)
        tensors.pop(sorted(tensors)[0])
        safetensors.torch.save_file(tensors, shard, metadata={"format": "pt"})
    return shard.name


@pytest.mark.parametrize("how", ["truncated", "header", "length", "empty", "missing", "index", "key"])
def test_damage_is_named(folder, how):
    name = damaged(folder, how)
    with pytest.raises(CheckpointError) as caught:
        CheckpointReader(folder)
    assert ("index.json" if how == "index" else name) in str(caught.value)
    with pytest.raises(CheckpointError):
        load_model(folder)


def test_loading_refuses_incomplete_and_misshapen_weights(folder, tmp_path):
    tensors = load_state_dict(folder)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    lacking = {key: value for key, value in tensors.items() if "layers.1.mlp" not in key}
    safetensors.torch.save_file(lacking, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 3 tensors such as \['model.layers.1.mlp.down_proj.weight'"):
        load_model(folder)
    wrong = tensors | {"model.layers.0.mlp.up_proj.weight": torch.ones(3, 3, dtype=torch.bfloat16)}
    safetensors.torch.save_file(wrong, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"up_proj.weight' in .*found \(3, 3\), expected \(64, 32\)"):
        load_model(folder)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        CheckpointReader(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no weights in"):
        CheckpointReader(tmp_path / "empty")


def test_pickles_with_code_are_refused(tmp_path):
    torch.save({"weight": os.getcwd}, tmp_path / "code.pt")
    with pytest.raises(CheckpointError, match="cannot load .*code.pt safely"):
        CheckpointReader(tmp_path / "code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="is not a state dict"):
        CheckpointReader(tmp_path / "list.pt")


def test_writer_refuses_wrong_and_missing_tensors(tmp_path):
    specs = {"a": TensorSpec(torch.float32, (2, 3)), "b": TensorSpec(torch.float32, (1,))}
    with pytest.raises(ShapeError, match="tensor 'a' for"), CheckpointWriter(tmp_path / "out", specs) as writer:
        writer.write("a", torch.ones(3, 2))
    with pytest.raises(CheckpointError, match=r"1 tensors of .* were never written in full: \['b'\]"):
        with CheckpointWriter(tmp_path / "out", specs) as writer:
            writer.write("a", torch.ones(2, 3))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    model, _ = tiny("llama")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "precious").write_text("here")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match="not enough disk space for .*found 1,000 bytes free"):
        save_model(model, tmp_path / "old", overwrite=True)
    monkeypatch.undo()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(CheckpointError, match="cannot write .*No space left on device"):
        save_model(model, tmp_path / "old", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "precious").read_text() == "here"


def test_overwriting_is_asked_for_and_whole(tmp_path):
    for text in ("first", "second"):
        with atomic_output(tmp_path / "out", overwrite=text == "second") as target:
            (target / f"{text}.txt").write_text(text)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["second.txt"]
    with pytest.raises(CheckpointError, match=r"out exists\. Choose another output"), atomic_output(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_sub_folders_of_a_model_come_along(folder, tmp_path):
    texts = {
        "1_Pooling/config.json": "{}",
        "additional_chat_templates/tool_use.jinja": "{{ messages }}",
        "assets/deep/picture.svg": "<svg/>",
        "modules.json": '[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]',
        "2_Dense/config.json": "{}",
        "2_Dense/model.safetensors": "weights of a module",
        "checkpoint-5/optimizer.pt": "old",
        "checkpoint-5/config.json": "{}",
        "onnx/model.onnx": "old",
        ".git/config": "hidden",
        "optimizer.pt": "old",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "assets" / "loop").symlink_to(folder)
    (folder / "linked").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    reader = CheckpointReader(folder)
    with CheckpointWriter(tmp_path / "copy", reader.specs, like=folder) as writer:
        for key in reader:
            writer.write(key, reader.tensor(key))
    save_model(load_model(folder), tmp_path / "saved", like=folder)
    left_out = ("checkpoint-5", "onnx", ".git", "optimizer.pt")
    for out in (tmp_path / "copy", tmp_path / "saved"):
        assert {name for name in texts if (out / name).is_file()} == {n for n in texts if not n.startswith(left_out)}
        assert not any((out / name).exists() for name in (*left_out, "linked", "pipe", "assets/loop"))


@pytest.mark.parametrize("state", ["optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth", "scaler.pt"])
def test_what_a_trainer_keeps_is_no_state_dict(tmp_path, state):
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    torch.save({"state": {0: {"step": 3}}, "param_groups": []}, tmp_path / state)
    assert CheckpointReader(tmp_path).keys() == ["w"]


def odd_shard(path, how):
    if how == "folder":
        path.mkdir()
    elif how == "loop":
        path.symlink_to(path)
    elif how == "device":
        path.symlink_to("/dev/zero")
    elif how == "pipe":
        os.mkfifo(path)


@pytest.mark.parametrize("how", ["folder", "loop", "device", "pipe"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_shard_is_a_file(tmp_path, name, how):
    (tmp_path / "model").mkdir()
    odd_shard(tmp_path / "model" / name, how)
    with pytest.raises(CheckpointError, match=name):
        CheckpointReader(tmp_path / "model")


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/dev/zero", "", "sub/model.safetensors", 3])
def test_an_index_names_files_of_its_folder(folder, name):
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="index"):
        CheckpointReader(folder)


def test_another_run_on_the_same_output_is_refused(tmp_path):
    with atomic_output(tmp_path / "out") as target:
        (target / "mine").write_text("")
        with pytest.raises(CheckpointError, match="another run is writing .*out. Wait for it"):
            with atomic_output(tmp_path / "out"):
                pass
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["mine"]


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_is_replaced(tmp_path, monkeypatch, linked, exchange):
    """Also where the file system cannot swap two paths at once, and behind a link, which may lead to another disk."""
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    place = tmp_path / "place"
    (place / "deep").mkdir(parents=True)
    (place / "deep" / "old").write_text("")
    if linked:
        (tmp_path / "link").symlink_to(place)
    with atomic_output(tmp_path / "link" if linked else place, overwrite=True) as target:
        (target / "new").write_text("")
    assert os.listdir(place) == ["new"]
    assert sorted(os.listdir(tmp_path)) == (["link", "place"] if linked else ["place"])
    assert (tmp_path / "link").is_symlink() == linked


def test_a_link_to_nothing_gets_what_it_points_to(tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("out", "record.json"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    with atomic_output(tmp_path / "out") as target:
        (target / "new").write_text("")
    write_file(tmp_path / "record.json", "{}")
    assert sorted(os.listdir(tmp_path / "disk")) == ["out", "record.json"]
    assert os.listdir(tmp_path / "out") == ["new"]


def test_a_file_is_no_folder_to_replace(tmp_path):
    """Such as a file of the model that is read."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weights.safetensors").mkdir()
    (tmp_path / "weights.safetensors" / "old").write_text("")
    for name, found in (("config.json", "found a file where"), ("weights.safetensors", "found a folder where")):
        with pytest.raises(CheckpointError, match=f"{name} cannot be replaced: {found}"):
            check_output(tmp_path / name, overwrite=True)


def test_an_output_that_holds_what_is_read_is_not_replaced(tmp_path):
    whole = tmp_path / "models"
    for name in ("base", "tuned"):
        write_file(whole / name / "config.json", "{}")
        safetensors.torch.save_file({"w": torch.ones(2)}, whole / name / "model.safetensors")
    parts = [whole / "base", whole / "tuned"]
    (tmp_path / "link").symlink_to(whole)
    for out in (whole, tmp_path / "link"):
        with pytest.raises(HyperparameterError, match=r"out: found .*models, which holds .*base, which is read"):
            wise_ft(parts, out, overwrite=True)
    assert sorted(path.name for path in whole.iterdir()) == ["base", "tuned"]
    check_output(whole, overwrite=True, inputs=[whole, None, "org/name", tmp_path / "link"])  # itself may be replaced
    wise_ft(parts, whole / "tuned", overwrite=True)
    assert load_state_dict(whole / "tuned")["w"].tolist() == [1, 1]


def test_an_old_output_moved_aside_by_a_killed_run_returns(tmp_path):
    (tmp_path / ".out.part" / "out.old").mkdir(parents=True)
    (tmp_path / ".out.part" / "out.old" / "precious").write_text("")
    with pytest.raises(CheckpointError, match="out exists"), atomic_output(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["precious"]


def test_folders_of_dead_runs_are_removed_and_those_of_living_ones_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "weightsmith-dead").mkdir()
    (tmp_path / "weightsmith-dead" / "model.safetensors").write_text("")
    (tmp_path / "other").mkdir()
    with TemporaryFolder() as one, TemporaryFolder() as two:
        assert {path.name for path in tmp_path.iterdir()} == {"other", Path(one).name, Path(two).name}
    assert os.listdir(tmp_path) == ["other"]


def test_processes_make_and_remove_temporary_folders_at_once(tmp_path):
    script = """
        import tempfile, weightsmith.core.io as io
        for _ in range(300):
            with io.TemporaryFolder() as folder:
                open(folder + "/weights", "w").close()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    runs = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [run.communicate()[1] for run in runs] == ["", "", ""]
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{root}/file/out", "found .*/file is not a folder"),
        ("{root}/file/deep/out", "found .*/file is not a folder"),
        ("{root}/" + 300 * "x", "File name too long"),
        ("{root}/" + 250 * "x", "File name too long"),
        ("{root}/deep/" + 300 * "x" + "/out", "File name too long"),
        ("/", "expected a path with a name"),
        ("{root}/nul\0", "expected a path with a name"),
    ],
)
def test_an_output_that_cannot_be_made_is_refused(tmp_path, place, message):
    (tmp_path / "file").write_text("")
    out = place.format(root=tmp_path)
    with pytest.raises(CheckpointError, match=message):
        check_output(out, overwrite=True)
    with pytest.raises(CheckpointError, match=message):
        check_file(out)
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(CheckpointError, match="cannot write /proc/out"), atomic_output("/proc/out"):
        pass


def test_devices_and_the_current_folder_are_never_replaced(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine").write_text("")
    monkeypatch.chdir(tmp_path / "here")
    for out, found in (
        (".", "the current folder"),
        ("..", "the current folder or one above"),
        ("/dev/null", "a device"),
    ):
        with pytest.raises(CheckpointError, match=f"cannot be replaced: found {found}"):
            check_output(out, overwrite=True)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with atomic_output(".") as target:
        (target / "new").write_text("")
    assert os.listdir(tmp_path / "empty") == ["new"]


def test_text_files_are_written_whole(tmp_path):
    write_file(tmp_path / "deep" / "r.json", "one")
    write_file(tmp_path / "deep" / "r.json", "two")
    assert (tmp_path / "deep" / "r.json").read_text() == "two"
    with pytest.raises(CheckpointError, match="found a folder, expected the path of a file"):
        write_file(tmp_path / "deep", "")
    write_file("/dev/null", "gone")
    assert not Path("/dev/null").is_file()
    with pytest.raises(CheckpointError, match="cannot write /dev/full"):
        write_file("/dev/full", "never")
    assert os.listdir(tmp_path / "deep") == ["r.json"]


def test_a_file_beside_the_weights_is_not_read(tmp_path):
    safetensors.torch.save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    safetensors.torch.save_file({"w": torch.ones(2), "v": torch.ones(1)}, tmp_path / "old.safetensors")
    assert load_state_dict(tmp_path).keys() == {"w"}
    assert not CheckpointReader(tmp_path).tensor("w").any()


def test_a_tensor_in_two_files_is_refused(tmp_path):
    for name in ("a", "b"):
        safetensors.torch.save_file({"w": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor 'w' is in two files .*a\.safetensors and b\.safetensors"):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize("load", [load_model, meta_model])
def test_a_folder_of_an_adapter_alone(load, tmp_path):
    base = tiny("llama")[0]
    base.name_or_path = "org/base"
    get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"holds an adapter and no model: found an adapter of 'org/base'"):
        load(tmp_path)
