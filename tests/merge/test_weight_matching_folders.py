"""Weight matching of checkpoints on disk: what it finds in memory, in less of it, all or nothing."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BartConfig, BartForConditionalGeneration

from models import tiny
from permutable import roughen
from processes import apart
from weightsmith.core.errors import (
    CheckpointError,
    HyperparameterError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.io import StoredState, load_model, load_state_dict, meta_model
from weightsmith.core.symmetry import find_symmetry
from weightsmith.merge import match_weights, rebasin
from weightsmith.merge._weight_matching import weight_pair
from weightsmith.merge._weight_matching.many import mean


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """The embeddings of the tests span several pieces."""
    monkeypatch.setattr(weight_pair, "PIECE", 500)


def pair(name, folder, dtype=torch.float32):
    """Two sharded checkpoints, trained apart as it were, and their models."""
    models = [roughen(tiny(name)[0].float(), seed=seed).to(dtype) for seed in (0, 1)]
    for label, model in zip("ab", models, strict=True):
        model.save_pretrained(folder / label, max_shard_size="20KB")
        (folder / label / "tokenizer.json").write_text(label)
    assert len(list((folder / "a").glob("*.safetensors"))) > 2
    return models


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_on_disk_as_in_memory(name, dtype, tmp_path):
    a, b = pair(name, tmp_path, dtype)
    symmetry = find_symmetry(a, tiny(name)[1], verify=False)
    inside = match_weights(a, b, symmetry)
    result = rebasin([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    perms = {key: torch.tensor(perm) for key, perm in json.loads(result.files["permutations.json"]).items()}
    assert perms.keys() == inside.perms.keys()
    assert all(perms[key].equal(perm) for key, perm in inside.perms.items())
    assert result.totals["distance_after"] == pytest.approx(inside.distance_after, rel=1e-5)
    assert result.totals["distance_after"] < result.totals["distance_before"]
    expected = mean([a.state_dict(), symmetry.permute(b.state_dict(), inside.perms)])
    merged = load_model(tmp_path / "out")
    assert merged.dtype == dtype
    for key, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, expected[key])
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "b"
    assert {row["layer"] for row in result.layers} == {key for key in symmetry.axes if len(symmetry.shapes[key]) > 1}
    assert (merged.get_input_embeddings().weight is merged.get_output_embeddings().weight) == (name == "gpt2")


def test_a_planted_permutation_is_undone_bit_by_bit(tmp_path):
    model = pair("llama", tmp_path)[0]
    batch = tiny("llama")[1]
    symmetry = find_symmetry(model, batch, verify=False)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    symmetry.permute_(model, symmetry.random(torch.Generator().manual_seed(3)))
    shutil.rmtree(tmp_path / "b")
    model.save_pretrained(tmp_path / "b", max_shard_size="30KB")
    result = rebasin([tmp_path / "a", tmp_path / "b"], tmp_path / "out", alpha=1.0)
    assert result.totals["distance_after"] == 0
    assert all(torch.equal(tensor, before[key]) for key, tensor in load_state_dict(tmp_path / "out").items())
    again = rebasin([tmp_path / "a", tmp_path / "out"], tmp_path / "again")
    assert any("in one order already" in note for note in again.notes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_with_itself_stays_bit_by_bit(dtype, tmp_path):
    model = pair("llama", tmp_path, dtype)[0]
    result = rebasin([tmp_path / "a", tmp_path / "a"], tmp_path / "out", alpha=0.3)
    stored = load_state_dict(tmp_path / "out")
    assert all(tensor.dtype == dtype and tensor.equal(stored[key]) for key, tensor in model.state_dict().items())
    assert result.totals["sweeps"] == 1
    assert result.totals["distance_before"] == result.totals["distance_after"] == 0
    assert any("Plain averaging gives the same" in note for note in result.notes)


def test_other_networks_with_a_spec_and_a_state_in_memory(tmp_path):
    model, batch = tiny("cnn")
    symmetry = find_symmetry(model, batch)
    state = roughen(model).state_dict()
    shuffled = symmetry.permute(state, symmetry.random(torch.Generator().manual_seed(0)))
    for name, tensors in (("a", state), ("b", shuffled)):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / f"{name}.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in ("a", "b", "out")]
    rebasin(paths[:2], paths[2], symmetry=symmetry, alpha=1.0)
    assert all(torch.equal(tensor, state[key]) for key, tensor in load_file(paths[2]).items())
    mixed = match_weights(state, StoredState(paths[1]), symmetry)
    assert mixed.distance_after == 0


def change(folder, key, tensor):
    """Replace a tensor of a sharded folder, or leave it out."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard = folder / index["weight_map"][key]
    tensors = load_file(shard)
    tensors.pop(key)
    if tensor is None:
        del index["weight_map"][key]
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        tensors[key] = tensor
    save_file(tensors, shard, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("key", "tensor", "kind", "words"),
    [
        ("model.layers.1.mlp.up_proj.weight", None, ShapeError, "differ in 1 names.*layers.1.mlp.up_proj"),
        ("model.layers.1.mlp.up_proj.weight", torch.zeros(3, 3), ShapeError, "differ in 1 shapes.*up_proj"),
        ("model.norm.weight", torch.full((32,), torch.nan), NonFiniteError, "'model.norm.weight' of the second model"),
        (
            "model.norm.weight",
            torch.zeros(4, 8, dtype=torch.uint8),
            UnsupportedModelError,
            "'model.norm.weight'.*quant",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path, key, tensor, kind, words):
    pair("llama", tmp_path)
    change(tmp_path / "b", key, tensor)
    with pytest.raises(kind, match=words):
        rebasin([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_damage_and_wrong_use(tmp_path):
    pair("llama", tmp_path)
    paths = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(HyperparameterError, match="alpha"):
        rebasin(paths, tmp_path / "out", alpha=1.5)
    with pytest.raises(HyperparameterError, match="two"):
        rebasin(paths[:1], tmp_path / "out")
    with pytest.raises(CheckpointError, match="exists"):
        rebasin(paths, tmp_path / "a")
    shard = sorted((tmp_path / "b").glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="truncated"):
        rebasin(paths, tmp_path / "out")
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"cannot load.*config\.json"):
        rebasin(paths, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_tensors_that_cannot_be_permuted_are_checked_while_writing(tmp_path):
    model, batch = tiny("cnn")
    symmetry = find_symmetry(model, batch)
    state = dict(model.state_dict()) | {"spare": torch.tensor([torch.inf])}
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(NonFiniteError, match="'spare'"):
        rebasin([tmp_path / "a.safetensors"] * 2, tmp_path / "out.safetensors", symmetry=symmetry)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_meta_model_has_the_names_ties_and_no_weights(tmp_path):
    pair("gpt2", tmp_path)
    model = meta_model(tmp_path / "a")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.lm_head.weight is model.transformer.wte.weight
    stored = StoredState(tmp_path / "a", model)
    assert stored.keys() >= {name for name, _ in model.named_parameters()}
    assert torch.equal(stored["lm_head.weight"], stored["transformer.wte.weight"])


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS")
@pytest.mark.slow
def test_two_checkpoints_larger_than_the_address_space(tmp_path):
    """A process that may allocate half of one of them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=40,
        num_attention_heads=4,
        vocab_size=8000,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    size = sum(p.numel() * 4 for p in model.parameters())
    model.save_pretrained(tmp_path / "a", max_shard_size="30MB")
    symmetry = find_symmetry(model, {"input_ids": torch.ones(1, 4, dtype=torch.long)}, verify=False)
    symmetry.permute_(model, symmetry.random(torch.Generator().manual_seed(0)))
    model.save_pretrained(tmp_path / "b", max_shard_size="30MB")
    del model
    script = """
        import resource, sys, accelerate, torch, scipy.optimize, transformers.core_model_loading
        torch.set_num_threads(1)
        from pathlib import Path
        from transformers import LlamaConfig, LlamaForCausalLM
        from weightsmith.core.symmetry import find_symmetry
        from weightsmith.merge import rebasin
        from weightsmith.merge._weight_matching import weight_pair

        weight_pair.PIECE = 2**18
        small = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
        with torch.device("meta"):  # so that all code is in memory before the limit
            warm = LlamaForCausalLM(LlamaConfig(**small))
        find_symmetry(warm, {"input_ids": torch.ones(1, 5, dtype=torch.long)})
        a, b, out, size = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + size // 2, used + size // 2))
        try:
            torch.empty(size, dtype=torch.uint8)
            raise SystemExit("the limit does not bind")
        except RuntimeError:
            pass
        print(rebasin([a, b], out).totals["distance_after"])
    """
    assert float(apart(script, tmp_path, tmp_path / "a", tmp_path / "b", tmp_path / "out", size)) == 0


def test_models_with_inputs_of_their_own_are_traced_without_weights(tmp_path):
    config = BartConfig(
        vocab_size=60,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=32,
    )
    for seed in (0, 1):
        torch.manual_seed(seed)
        BartForConditionalGeneration(config).save_pretrained(tmp_path / f"{seed}")
    rebasin([tmp_path / "0", tmp_path / "1"], tmp_path / "out", alpha=1.0)
    second, moved = (BartForConditionalGeneration.from_pretrained(tmp_path / name).eval() for name in ("1", "out"))
    ids = torch.randint(4, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    assert not torch.equal(second.model.encoder.layers[0].fc1.weight, moved.model.encoder.layers[0].fc1.weight)
    assert torch.allclose(second(input_ids=ids).logits, moved(input_ids=ids).logits, atol=1e-5)
