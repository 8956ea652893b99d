import json

import pytest
import safetensors.torch
import torch

from models import tiny
from weightsmith.core.errors import CheckpointError, UnsupportedModelError
from weightsmith.core.io import CheckpointReader, load_model, load_state_dict, save_model
from weightsmith.sparsify import magnitude, save_compressed
from weightsmith.sparsify._compressed import compress_checkpoint, decompress_checkpoint, load_compressed


@pytest.fixture
def sparse():
    model, _ = tiny("llama")
    magnitude(model, sparsity=0.5)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_exact_and_small(sparse, dtype, tmp_path):
    sparse = sparse.to(dtype)
    save_compressed(sparse, tmp_path / "small", files={"note.txt": "kept"})
    save_model(sparse, tmp_path / "dense")
    config = json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["sparsity_config"]["format"] == "sparse-bitmask"
    assert 0.3 < config["sparsity_config"]["global_sparsity"] < 0.5
    assert (tmp_path / "small" / "note.txt").read_text() == "kept"
    loaded = load_compressed(tmp_path / "small").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in sparse.state_dict().items())
    decompress_checkpoint(tmp_path / "small", tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "dense" / "config.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "dense", "small"]


def test_layout_of_one_tensor(tmp_path):
    (tmp_path / "in").mkdir()
    weight = torch.tensor([[0.0, 1, 0, 0, 2, 0, 0, 0, 3], [0, 0, 0, 0, 0, 0, 0, 4, 0]])
    dense = torch.ones(4, 4)
    safetensors.torch.save_file({"w.weight": weight, "dense": dense}, tmp_path / "in" / "model.safetensors")
    compress_checkpoint(tmp_path / "in", tmp_path / "out")
    stored = load_state_dict(tmp_path / "out")
    assert stored["w.weight.shape"].tolist() == [2, 9]
    assert stored["w.weight.compressed"].tolist() == [1, 2, 3, 4]
    assert stored["w.weight.bitmask"].tolist() == [[0b10010, 1], [0b10000000, 0]]
    assert stored["w.weight.row_offsets"].tolist() == [0, 3]
    assert torch.equal(stored["dense"], dense)


def test_half_the_weights_take_about_half_the_bytes(tmp_path):
    (tmp_path / "in").mkdir()
    weight = torch.randn(256, 512)
    weight[torch.rand(256, 512) < 0.5] = 0
    safetensors.torch.save_file({"weight": weight}, tmp_path / "in" / "model.safetensors")
    compress_checkpoint(tmp_path / "in", tmp_path / "out")
    ratio = CheckpointReader(tmp_path / "out").nbytes / weight.nbytes
    assert ratio == pytest.approx(0.5 + 1 / 32, abs=0.02)


def test_damaged_parts_are_named(sparse, tmp_path):
    save_compressed(sparse, tmp_path / "small")
    path = tmp_path / "small" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    key = "model.layers.0.mlp.up_proj.weight"
    short = tensors | {f"{key}.compressed": tensors[f"{key}.compressed"][:-1].clone()}
    safetensors.torch.save_file(short, path)
    with pytest.raises(CheckpointError, match=f"compressed tensor '{key}' of .*found 1023 values for 1024 places"):
        load_compressed(tmp_path / "small")
    tensors.pop(f"{key}.bitmask")
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(CheckpointError, match=f"'{key}' of .* lacks .*bitmask"):
        load_compressed(tmp_path / "small")


def test_compressed_weights_are_refused_with_the_way_to_make_them_dense(sparse, tmp_path):
    save_compressed(sparse, tmp_path / "small")
    with pytest.raises(UnsupportedModelError, match=r"are compressed\. Make them dense with .*decompress_checkpoint"):
        load_model(tmp_path / "small")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_zeros_keep_their_sign(dtype, tmp_path):
    (tmp_path / "dense").mkdir()
    weight = torch.tensor([[0.0, -0.0, 1.0, 0.0], [-0.0, 0.0, 0.0, -2.0]], dtype=dtype)
    safetensors.torch.save_file({"w": weight}, tmp_path / "dense" / "model.safetensors")
    compress_checkpoint(tmp_path / "dense", tmp_path / "small")
    decompress_checkpoint(tmp_path / "small", tmp_path / "again")
    again = load_state_dict(tmp_path / "again")["w"]
    assert torch.equal(again.view(torch.uint8), weight.view(torch.uint8))
