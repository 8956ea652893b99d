"""Merging state dicts and checkpoints: both give the same, in pieces, all or nothing."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file

from models import tiny
from processes import apart
from weightsmith.core.errors import (
    CheckpointError,
    HyperparameterError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.io import _map_checkpoints, load_model, load_state_dict, save_model
from weightsmith.merge import (
    add_tasks,
    average,
    dare,
    fisher,
    fisher_average,
    interpolate,
    slerp,
    slerp_average,
    soup,
    task_arithmetic,
    ties,
    wise_ft,
)
from weightsmith.merge._shared.merging import merge_state_dicts


def draw(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed": (40, 16), "norm": (16,), "fc.weight": (8, 16), "empty": (0, 4), "scale": ()}
    state = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return {**state, "steps": torch.tensor(seed)}


@pytest.fixture
def small_chunks(monkeypatch):
    """Tensors of the tests span several chunks."""
    monkeypatch.setattr(_map_checkpoints, "CHUNK", 400)


def save(folder, states):
    paths = [folder / f"{index}.safetensors" for index in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        save_file(state, path)
    return paths


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_folders_and_state_dicts_give_the_same(tmp_path, small_chunks, dtype):
    states = [draw(seed, dtype) for seed in range(3)]
    fishers = [{name: x.abs().float() for name, x in draw(seed).items() if x.ndim} for seed in (5, 6)]
    paths, scales = save(tmp_path, states), [tmp_path / f"f{index}.safetensors" for index in range(2)]
    for path, state in zip(scales, fishers, strict=True):
        save_file(state, path)
    cases = {
        "wise": (wise_ft(paths[:2], tmp_path / "wise", alpha=0.3), interpolate(*states[:2], 0.3)),
        "soup": (soup(paths, tmp_path / "soup"), average(states)),
        "tasks": (
            task_arithmetic(paths, tmp_path / "tasks", scale=(0.3, -0.2)),
            add_tasks(states[0], states[1:], (0.3, -0.2)),
        ),
        "slerp": (slerp(paths[:2], tmp_path / "slerp", alpha=0.3), slerp_average(*states[:2], 0.3)),
        "fisher": (fisher(paths[:2], tmp_path / "fisher", fishers=scales), fisher_average(*states[:2], *fishers)),
    }
    for name, (result, expected) in cases.items():
        written = load_state_dict(tmp_path / name)
        assert written.keys() == expected.keys()
        for key, value in written.items():
            assert value.dtype == expected[key].dtype
            # the order of sums over chunks may change the last bit of a slerp's weights
            torch.testing.assert_close(
                value.double(), expected[key].double(), rtol=1e-6 if dtype.itemsize > 2 else 0.13, atol=1e-7
            )
            if name != "slerp":
                assert torch.equal(value.double(), expected[key].double())
        assert result.totals == {"tensors": 5, "weights": 40 * 16 + 16 + 8 * 16 + 1, "kept_tensors": 1}


@settings(max_examples=25)
@given(st.integers(0, 100), st.floats(-1, 2))
def test_rules_against_their_formulas(seed, t):
    a, b, c = (draw(seed + 1000 * index, torch.float64) for index in range(3))
    w = {key: value for key, value in a.items() if value.is_floating_point()}
    plain, weighted, added = average([a, b, c]), average([a, b, c], (0.5, t, -1.0)), add_tasks(a, [b, c], t)
    for key in w:
        x, y, z = a[key], b[key], c[key]
        torch.testing.assert_close(plain[key], (x + y + z) / 3)
        torch.testing.assert_close(weighted[key], 0.5 * x + t * y - z)
        torch.testing.assert_close(added[key], x + t * (y - x) + t * (z - x))
    flat = [state["embed"].flatten() for state in (a, b)]
    angle = torch.arccos(flat[0] @ flat[1] / flat[0].norm() / flat[1].norm())
    arc = (torch.sin((1 - t) * angle) * flat[0] + torch.sin(t * angle) * flat[1]) / torch.sin(angle)
    torch.testing.assert_close(slerp_average(a, b, t)["embed"].flatten(), arc)


def test_slerp_keeps_the_length_and_is_a_line_where_there_is_no_arc():
    unit = torch.nn.functional.normalize(torch.randn(2, 50, generator=torch.Generator().manual_seed(0)), dim=1)
    assert slerp_average({"w": unit[0]}, {"w": unit[1]}, 0.3)["w"].norm().item() == pytest.approx(1, abs=1e-6)
    for first, last in ((unit[0], 2 * unit[0]), (unit[0], -unit[0]), (torch.zeros(50), unit[0])):
        torch.testing.assert_close(slerp_average({"w": first}, {"w": last}, 0.25)["w"], 0.75 * first + 0.25 * last)


def test_models_that_share_weights_and_shards(tmp_path):
    base, batch = tiny("gpt2")
    base.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    tuned = tiny("gpt2")[0]
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.01)
    tuned.save_pretrained(tmp_path / "tuned", max_shard_size="30KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    wise_ft([tmp_path / "base", tmp_path / "tuned"], tmp_path / "out")
    merged = load_model(tmp_path / "out")
    assert merged.lm_head.weight is merged.transformer.wte.weight
    expected = tiny("gpt2")[0]
    expected.load_state_dict(interpolate(base.state_dict(), tuned.state_dict()))
    with torch.no_grad():
        assert torch.equal(merged(**batch).logits, expected(**batch).logits)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "gpt2"


@pytest.mark.parametrize("older", [[0], [1], [0, 1]])
def test_buffers_that_models_compute_may_be_in_one_checkpoint_only(tmp_path, older):
    """Releases of transformers before the fourth stored the frequencies of every layer."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    for number in range(2):
        model = tiny("llama")[0]
        state = {key: value + number for key, value in model.state_dict().items()}
        save_model(model, tmp_path / str(number))
        frequencies = {name: torch.arange(4.0)} if number in older else {}
        save_file(state | frequencies, tmp_path / str(number) / "model.safetensors", metadata={"format": "pt"})
    result = wise_ft([tmp_path / "0", tmp_path / "1"], tmp_path / "out")
    assert (name in load_state_dict(tmp_path / "out")) == (1 in older)
    assert result.totals["kept_tensors"] == (1 in older)
    expected = {key: value + 0.5 for key, value in model.state_dict().items()}
    merged = load_model(tmp_path / "out").state_dict()
    assert all(torch.allclose(value, merged[key]) for key, value in expected.items())


def test_tied_tensors_are_merged_once():
    shared = [torch.ones(4) * value for value in (1.0, 3.0)]
    states = [{"a": x, "b": x} for x in shared]
    merged = interpolate(*states, 0.5)
    assert merged["a"].data_ptr() == merged["b"].data_ptr()
    assert torch.equal(merged["a"], torch.full((4,), 2.0))


def test_torch_files_can_be_merged(tmp_path, small_chunks):
    states = [draw(seed) for seed in range(2)]
    for index, state in enumerate(states):
        torch.save(state, tmp_path / f"{index}.pt")
    wise_ft([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "out.safetensors", alpha=0.2)
    expected = interpolate(*states, 0.2)
    assert all(torch.equal(value, expected[key]) for key, value in load_file(tmp_path / "out.safetensors").items())


def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path, small_chunks):
    good = draw(0)
    bad = {
        "names": {**{key: value for key, value in good.items() if key != "norm"}, "extra": torch.zeros(2)},
        "shapes": {**good, "embed": torch.zeros(41, 16)},
        "nan": {**good, "fc.weight": good["fc.weight"].index_fill(0, torch.tensor([7]), torch.nan)},
        "inf": {**good, "norm": torch.full((16,), torch.inf)},
    }
    expected = {
        "names": (ShapeError, r"differ in 2 names: found \['extra', 'norm'\]"),
        "shapes": (ShapeError, r"'embed'.*41, 16.*40, 16"),
        "nan": (NonFiniteError, r"'fc.weight' of .*nan"),
        "inf": (NonFiniteError, r"'norm' of .*inf"),
    }
    save_file(good, tmp_path / "good.safetensors")
    for name, state in bad.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(state, path)
        kind, words = expected[name]
        with pytest.raises(kind, match=words):
            wise_ft([path, tmp_path / "good.safetensors"], tmp_path / "out")
        with pytest.raises(kind):
            merge_state_dicts(
                [state, good], lambda name, chunks: lambda parts, out: out.copy_((parts[0] + parts[1]) / 2)
            )
        assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{n}.safetensors" for n in [*bad, "good"])
    quantised = [{"q": torch.ones(4, 4, dtype=torch.uint8), "scale": torch.ones(4)}] * 2
    with pytest.raises(UnsupportedModelError, match="quantized"):
        average(quantised)
    with pytest.raises(HyperparameterError, match="two"):
        wise_ft([tmp_path / "good.safetensors"] * 3, tmp_path / "out")
    with pytest.raises(HyperparameterError, match="at least two"):
        average([good])
    with pytest.raises(HyperparameterError, match="weights"):
        average([good, good], weights=(1.0,))
    with pytest.raises(HyperparameterError, match="scale"):
        add_tasks(good, [good], scale=(1.0, 2.0))
    with pytest.raises(HyperparameterError, match="finite"):
        slerp_average(good, good, float("inf"))
    with pytest.raises(CheckpointError, match="exists"):
        wise_ft([tmp_path / "good.safetensors"] * 2, tmp_path / "nan.safetensors")


def test_a_checkpoint_may_be_replaced_by_the_average_and_threads_stay_as_they_were(tmp_path, small_chunks):
    states = [draw(seed) for seed in range(2)]
    paths, threads = save(tmp_path, states), torch.get_num_threads()
    with pytest.raises(CheckpointError, match="exists"):
        wise_ft(paths, paths[0])
    wise_ft(paths, paths[0], overwrite=True)
    assert torch.equal(load_file(paths[0])["embed"], interpolate(*states)["embed"])
    assert torch.get_num_threads() == threads
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["0.safetensors", "1.safetensors"]


def test_a_truncated_checkpoint_is_refused(tmp_path):
    (path,) = save(tmp_path, [draw(0)])
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="truncated"):
        wise_ft([path, path], tmp_path / "out")


def test_memory_does_not_depend_on_the_size(tmp_path):
    """Two checkpoints of 200 MB, each of one tensor, in a process that may grow by 60 MB."""
    script = """
        import json, resource, struct, sys
        from pathlib import Path
        from weightsmith.core.io._checkpoint import CheckpointReader
        from weightsmith.merge._wise_ft import wise_ft

        folder, size = Path(sys.argv[1]), 200 * 2**20
        header = json.dumps({"w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
        for name in ("a", "b"):
            with open(folder / f"{name}.safetensors", "wb") as file:
                file.write(struct.pack("<Q", len(header)) + header)
                for part in range(200):
                    file.write(struct.pack("<H", 0x3F80 if name == "a" else 0x4040) * 2**19)  # 1.0 and 3.0

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

        before = peak()
        wise_ft([folder / "a.safetensors", folder / "b.safetensors"], folder / "out.safetensors")
        grown = peak() - before
        out = CheckpointReader(folder / "out.safetensors").tensor("w")
        print(grown, bool((out == 2.0).all()))
    """
    grown, right = apart(script, tmp_path, tmp_path).split()
    assert int(grown) < 60
    assert right == "True"


def test_tensors_that_only_one_network_ties_are_refused():
    shared = torch.tensor([1.0])
    tied, untied = {"e": shared, "h": shared}, {"e": torch.tensor([0.0]), "h": torch.tensor([5.0])}
    with pytest.raises(UnsupportedModelError, match="'h' of state dict 0 differ, where state dict 1 ties them"):
        average([untied, tied])
    assert average([tied, untied]) == {"e": torch.tensor([0.5]), "h": torch.tensor([3.0])}
    assert average([{"e": shared, "h": shared.clone()}, tied])["h"].item() == 1


@pytest.mark.parametrize("method", [soup, wise_ft, task_arithmetic, dare, fisher])
def test_complex_tensors_are_merged_like_real_ones(method, tmp_path, small_chunks):
    """Real and imaginary parts give what they give as tensors of their own."""
    generator = torch.Generator().manual_seed(0)
    parts = [[torch.randn(9, generator=generator) for _ in range(2)] for _ in range(2)]
    for number, (real, imaginary) in enumerate(parts):
        tensors = {"w": torch.complex(real, imaginary), "real": real, "imaginary": imaginary}
        save_file(tensors, tmp_path / f"{number}.safetensors")
    if method is fisher:
        save_file({"w": torch.ones(9)}, tmp_path / "fisher.safetensors")
    options = {dare: {"density": 1.0, "alpha": 0.5}, fisher: {"fishers": [tmp_path / "fisher.safetensors"] * 2}}.get(
        method, {}
    )
    result = method([tmp_path / "0.safetensors", tmp_path / "1.safetensors"], tmp_path / "out.safetensors", **options)
    merged = load_file(tmp_path / "out.safetensors")
    assert torch.allclose(merged["w"], torch.complex(merged["real"], merged["imaginary"]), atol=1e-6)
    assert not torch.allclose(merged["w"].real, parts[1][0])
    assert result.totals["kept_tensors"] == 0
    assert all(0 < row["to_result"] < 2 for row in result.inputs)


def test_complex_tensors_are_refused_where_a_method_has_no_meaning_for_them(tmp_path):
    paths = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for number, path in enumerate(paths):
        save_file({"w": torch.full((2,), number, dtype=torch.complex64)}, path)
    for method in (slerp, ties):
        with pytest.raises(UnsupportedModelError, match="tensor 'w' of .*1.safetensors is complex"):
            method(paths, tmp_path / "out.safetensors")
    save_file({"w": torch.ones(2)}, paths[0])
    with pytest.raises(
        UnsupportedModelError, match="'w' of .*0.safetensors: found torch.float32, expected .*complex64"
    ):
        soup(paths, tmp_path / "out.safetensors")
    save_file({"w": torch.tensor([1.0, complex("nan")])}, paths[0])
    with pytest.raises(NonFiniteError, match="'w' of .*0.safetensors"):
        soup(paths, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
