import dataclasses
import inspect
import math

import peft
import pytest
import torch
import transformers as t
from hypothesis import given, settings, strategies as st
from peft.helpers import KappaTuneSelector
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from models import PLAIN, TRANSFORMERS, tiny
from weightsmith.analyze import ConditionReport, condition, condition_report
from weightsmith.analyze._shared import spectrum
from weightsmith.core.errors import (
    CheckpointError,
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    UnsupportedModelError,
)
from weightsmith.core.io import save_model
from weightsmith.quantize import round_to_nearest, save_packed
from weightsmith.sparsify import magnitude, save_compressed


def linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    return layer


def kappa(weight):
    return condition_report(linear(weight)).rows[0].kappa


def moe(experts=4):
    config = t.MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=experts,
    )
    torch.manual_seed(0)
    return t.MixtralForCausalLM(config).eval()


def test_diagonal_is_the_ratio_of_its_ends():
    assert kappa(torch.diag(torch.tensor([4.0, 2.0, 1.0]))) == pytest.approx(4, rel=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 12), st.integers(2, 12), st.floats(-3, 3), st.integers(0, 1000))
def test_kappa_knows_neither_scale_nor_rotation_nor_transposition(rows, columns, log_scale, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64))
    p, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64))
    s = torch.linalg.svdvals(weight)
    for same in (weight, 10**log_scale * weight, q @ weight @ p, weight.T):
        assert kappa(same) == pytest.approx((s[0] / s[-1]).item(), rel=1e-8)


def test_orthogonal_is_one_and_singular_infinite():
    q, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert kappa(q) == pytest.approx(1, abs=1e-12)
    rank_one = torch.outer(torch.arange(1.0, 5), torch.arange(1.0, 4))
    row = condition_report(linear(rank_one)).rows[0]
    assert row.kappa == math.inf
    assert row.entropy_deficit == math.inf
    assert not row.reliable


def test_badly_conditioned_matrices_are_not_squared():
    """Squared, 1e9 would drown in float64; the second matrix of the batch must not change."""
    bad, good = torch.diag(torch.tensor([1e9, 3.0, 1.0])), torch.diag(torch.tensor([2.0, 1.0, 1.0]))
    s = spectrum.singular_values(torch.stack([bad, good]).double())
    torch.testing.assert_close(s, torch.tensor([[1e9, 3, 1], [2, 1, 1]], dtype=torch.float64), rtol=1e-6, atol=0)


def test_singular_values_where_the_fast_algorithms_do_not_converge(monkeypatch):
    def fail(*_, **__):
        raise torch.linalg.LinAlgError("did not converge")

    weight = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.linalg.svdvals(weight)
    monkeypatch.setattr(spectrum.np.linalg, "eigvalsh", fail)
    torch.testing.assert_close(spectrum.singular_values(weight), expected)
    monkeypatch.setattr(torch.linalg, "svdvals", fail)
    torch.testing.assert_close(spectrum.singular_values(weight), expected)


def test_entropy_deficit():
    row = condition_report(linear(torch.diag(torch.tensor([2.0, 0.5])))).rows[0]
    assert row.entropy_deficit == pytest.approx(math.log(2.125), rel=1e-9)  # 0.7537718
    assert condition_report(linear(torch.eye(3))).rows[0].entropy_deficit == 0
    assert row.stable_rank == pytest.approx(4.25 / 4)


def test_signal_to_noise():
    """The quartiles are 1 and 3, so the noise ends at 2 * (3 - 1) / 1.349 = 2.97."""
    model = linear(torch.diag(torch.tensor([9.0, 3.0, 2.0, 1.0, 0.5])))
    expected = pytest.approx((9 + 3) / (2 + 1 + 0.5), rel=1e-6)
    assert condition_report(model).rows[0].signal_to_noise == expected
    assert condition(model).layers[0]["signal_to_noise"] == expected


def test_random_matrices_have_the_kappa_of_their_shape():
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((3072, 1024), (768, 256)):
        row = condition_report(linear(torch.randn(rows, columns, generator=generator))).rows[0]
        assert row.reference == pytest.approx(2 + math.sqrt(3), rel=4e-3)
        assert row.kappa_over_mp == pytest.approx(1, abs=0.05)
    square = [kappa(torch.randn(64, 64, generator=generator)) / 64 for _ in range(101)]
    assert sorted(square)[50] == pytest.approx(3.67, rel=0.25)
    assert spectrum.random_kappa(64, 64) / 64 == pytest.approx(4, rel=0.02)


def test_rounding_floor_bounds_what_rounding_does():
    for seed in range(5):
        weight = torch.randn(96, 96, generator=torch.Generator().manual_seed(seed))
        exact, rounded = (torch.linalg.svdvals(w.double()) for w in (weight, weight.bfloat16()))
        floor = spectrum.rounding_floor(rounded.unsqueeze(0), 96, 96, torch.bfloat16).item()
        assert 0 < (exact - rounded).abs().max() < floor
    generator = torch.Generator().manual_seed(0)
    wide, square = torch.randn(64, 192, generator=generator), torch.randn(192, 192, generator=generator)
    left, s, right = torch.linalg.svd(square)
    square = left @ s.index_fill(0, torch.tensor([191]), 1e-3).diag() @ right
    assert condition_report(linear(wide.bfloat16())).rows[0].reliable
    assert condition_report(linear(square)).rows[0].reliable
    assert not condition_report(linear(square.bfloat16())).rows[0].reliable


def test_how_many_are_selected():
    report = condition_report(nn.Sequential(*(nn.Linear(4, 3) for _ in range(7))))
    rows = report.rows * 30
    many = dataclasses.replace(report, rows=rows)
    assert len(many.select(top_p=0.2)) == 42
    assert len(report.select(top_p=0.2)) == 1
    assert len(dataclasses.replace(report, rows=report.rows[:3]).select(top_p=0.2)) == 1
    assert len(report.select(num=5, top_p=0.2)) == 5
    assert len(report.select(num=50)) == 7
    assert report.select() == [row.name for row in report.ranked()]
    middle = report.ranked()[3].score(report.score)
    assert len(report.select(threshold=middle)) == 4
    assert len(report.select(threshold=middle, top_p=1.0)) == 7
    for bad in ({"top_p": 0.0}, {"top_p": 1.1}, {"num": 0}, {"threshold": 0.01}):
        with pytest.raises(HyperparameterError, match=next(iter(bad))):
            report.select(**bad)


def test_ties_go_by_name():
    layers = {name: linear(torch.eye(3)) for name in ("b", "a", "c")}
    assert condition_report(nn.ModuleDict(layers)).select(num=2) == ["a", "b"]


def test_scores_rank_differently():
    """A square matrix a little better than random, against a long one that is much worse than random."""
    generator = torch.Generator().manual_seed(0)
    square = torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q
    square = square @ torch.diag(torch.linspace(1, 0.02, 64))
    long = torch.randn(64, 256, generator=generator)
    model = nn.ModuleDict({"square": linear(square), "long": linear(long)})
    report = condition_report(model, score="kappa")
    assert report.row("square").kappa == pytest.approx(50, rel=1e-3)
    assert report.select(num=1) == ["long"]
    assert condition_report(model, score="kappa_over_mp").select(num=1) == ["square"]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "opt", "bert", "vit", "mlp", "moe"])
def test_agrees_with_peft(name):
    model = moe() if name == "moe" else tiny(name)[0]
    if getattr(model, "config", None) is not None and getattr(model.config, "tie_word_embeddings", False):
        model = model.base_model  # PEFT takes the tied head for a matrix of its own
    torch.manual_seed(1)
    for parameter in model.parameters():  # initialised with 0.02, the smallest values come near PEFT's 1e-8
        if parameter.ndim > 1:
            nn.init.normal_(parameter)
    report = condition_report(model, score="kappa", exclude="*patch_embeddings*")  # PEFT looks at no convolution
    for top_p in (0.1, 0.2, 0.5, 1.0):
        theirs = peft.find_kappa_target_modules(model, top_p=top_p, show_progress=False)
        ours = report.targets(top_p=top_p)
        assert ours["target_modules"] == theirs["target_modules"]
        assert ours["target_parameters"] == theirs["target_parameters"]
    selector = KappaTuneSelector(model, show_progress=False)
    selector._compute_kappas()
    kappas = {**selector._condition_numbers, **selector._parameter_condition_numbers}
    assert {row.name for row in report.rows} == set(kappas)
    assert {row.name for row in report.rows if row.kind == "parameter"} == set(selector._parameter_condition_numbers)
    compared = [row for row in report.rows if row.kappa < 1e4]
    assert len(compared) >= 0.8 * len(kappas)
    for row in compared:
        assert row.kappa == pytest.approx(kappas[row.name], rel=1e-4)


@pytest.mark.parametrize("model_name", [*TRANSFORMERS, *PLAIN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_say_the_same_as_the_model(model_name, dtype, tmp_path):
    model = tiny(model_name)[0].to(dtype)
    save_model(model, tmp_path / "model")
    of_model, of_files = condition_report(model), condition_report(tmp_path / "model")
    files, kappas = [sorted((row.kappa, row.name) for row in report.rows) for report in (of_files, of_model)]
    assert len(files) == len(kappas)
    for (stored, stored_name), (value, name) in zip(files, kappas, strict=True):
        assert stored == pytest.approx(value, rel=1e-9)
        if model_name != "vit":  # transformers stores these under older names
            assert stored_name == name


def test_embedded_model_is_streamed(tmp_path):
    report = condition_report("embedded:smollm2", score="kappa", include="*layers.1[0-2].self_attn*")
    assert len(report.rows) == 12
    lowest = report.row(report.select(num=1)[0])
    assert (lowest.name, lowest.shape) == ("model.layers.10.self_attn.v_proj", (192, 576))
    assert lowest.kappa == pytest.approx(3.949, abs=1e-3)
    assert all(name.endswith("v_proj") for name in report.select(top_p=0.2))
    assert report.skipped["an embedding by its name"] == ("model.embed_tokens",)


def test_fused_experts_are_averaged(tmp_path):
    model = moe()
    report = condition_report(model)
    row = report.row("model.layers.0.mlp.experts.down_proj")
    weights = model.model.layers[0].mlp.experts.down_proj.detach()
    assert row.shape == (4, 32, 48)
    assert row.kappa == pytest.approx(sum(kappa(weight) for weight in weights) / 4, rel=1e-9)
    assert row.sigma_max == pytest.approx(torch.linalg.matrix_norm(weights, 2).max().item(), rel=1e-5)
    single = moe(experts=1)
    weight = single.model.layers[0].mlp.experts.down_proj.detach()[0]
    assert condition_report(single).row(row.name).kappa == pytest.approx(kappa(weight), rel=1e-9)
    ranked = report.select(kind="parameter")
    assert len(ranked) == 4
    assert ranked == sorted(ranked, key=lambda name: report.row(name).kappa_over_mp)
    save_file({row.name: weights.contiguous()}, tmp_path / "experts.safetensors")
    assert condition_report(tmp_path / "experts.safetensors").rows[0] == row
    tensors = report.select(kind="tensor")
    assert row.name in tensors
    assert "model.layers.0.self_attn.q_proj.weight" in tensors


def test_conv1d_and_convolutions():
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    transposed, kernel = Conv1D(5, 7), nn.Conv2d(5, 6, 3)
    transposed.weight.data.copy_(weight.T)
    model = nn.ModuleDict({"transposed": transposed, "linear": linear(weight), "kernel": kernel})
    model["grouped"] = nn.Conv2d(4, 4, 3, groups=2)
    report = condition_report(model)
    assert report.row("transposed").kappa == report.row("linear").kappa
    assert report.row("transposed").shape == (5, 7)
    assert report.row("kernel").shape == (6, 45)
    assert report.row("kernel").kappa == pytest.approx(kappa(kernel.weight.detach().flatten(1)))
    with pytest.raises(LayerNotFoundError, match="grouped"):
        report.row("grouped")


def test_adapters_are_looked_through():
    model = moe()
    expected = {row.name: row.kappa for row in condition_report(model).rows}
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], target_parameters=["experts.down_proj"], init_lora_weights=False
    )
    adapted = peft.get_peft_model(model, config)
    assert {row.name: row.kappa for row in condition_report(model).rows} == expected
    assert {row.name.removeprefix("base_model.model.") for row in condition_report(adapted).rows} == set(expected)


def test_left_out():
    model = tiny("gpt2")[0]
    assert model.lm_head.weight is model.transformer.wte.weight
    report = condition_report(model, exclude=())
    assert report.skipped == {"tied to an embedding": ("lm_head",)}
    assert "lm_head" in condition_report(tiny("llama")[0]).skipped["excluded by name"]
    model = nn.Sequential(nn.Linear(8, 40), nn.Linear(40, 1), nn.Linear(6, 5))
    report = condition_report(model, max_dim=20)
    assert report.skipped == {"longer than 20": ("0",), "a single row or column": ("1",)}
    with pytest.raises(LayerNotFoundError, match="1 excluded by name, 1 a single row or column, 1 longer than 20"):
        condition_report(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1), nn.Linear(8, 40)), exclude="0", max_dim=20)
    with pytest.raises(LayerNotFoundError, match="longer than 20"):
        report.row("0")
    with pytest.raises(LayerNotFoundError, match="without weight matrices"):
        condition_report(nn.ReLU())


def test_refused(tmp_path):
    model = tiny("llama")[0]
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        condition_report(model)
    with torch.device("meta"):
        absent = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(UnsupportedModelError, match="parameters such as .0.weight. are on the meta device"):
        condition_report(absent)
    packed = nn.Sequential(nn.Linear(4, 4))
    packed.append(nn.Module())
    packed[1].register_buffer("qweight", torch.zeros(4, 4, dtype=torch.int32))
    with pytest.raises(UnsupportedModelError, match="Dequantise"):
        condition_report(packed)
    eighth = nn.Linear(4, 4)
    eighth.weight = nn.Parameter(eighth.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match="packed"):
        condition_report(nn.Sequential(eighth))
    save_file({"a.qweight": torch.zeros(4, 4, dtype=torch.int32)}, tmp_path / "packed.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"a\.qweight"):
        condition_report(tmp_path / "packed.safetensors")
    with pytest.raises(CheckpointError, match=r"there is no folder '.*nowhere'"):
        condition_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "save", "how"),
    [
        (round_to_nearest, save_packed, r"are packed\. Unpack them with weightsmith\.quantize\.unpack_checkpoint"),
        (magnitude, save_compressed, r"are compressed\. Make them dense with .*decompress_checkpoint"),
    ],
)
def test_packed_and_compressed_folders_are_refused_as_where_they_are_loaded(tmp_path, change, save, how):
    model, _ = tiny("llama")
    result = change(model)
    save(model, tmp_path / "out", files=result.files)
    with pytest.raises(UnsupportedModelError, match=how):
        condition_report(tmp_path / "out")
    with pytest.raises(UnsupportedModelError, match=r"tensor '.*weight.* is packed: found .*int.*\. Dequantise"):
        condition_report(tmp_path / "out" / "model.safetensors")


def test_words_that_are_no_score_or_kind_are_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(HyperparameterError, match="score: found 'typo'"):
        inspect.unwrap(condition_report)(model, score="typo")
    with pytest.raises(HyperparameterError, match="kind: found 'typo'"):
        inspect.unwrap(ConditionReport.ranked)(condition_report(model), "typo")


def test_quantised_by_bitsandbytes():
    bnb = pytest.importorskip("bitsandbytes")
    source = nn.Linear(64, 96, bias=False)
    for layer, error in (
        (bnb.nn.Linear4bit(64, 96, bias=False, quant_type="nf4"), 0.3),
        (bnb.nn.Linear8bitLt(64, 96, bias=False, has_fp16_weights=False), 0.03),
    ):
        layer.load_state_dict(source.state_dict())
        row = condition_report(nn.Sequential(layer.to("cpu"))).rows[0]
        assert row.shape == (96, 64)
        assert row.kappa == pytest.approx(kappa(source.weight.detach()), rel=error)


def test_sharded_and_replicated_weights(tmp_path):
    """One process stands for all: the weight is a DTensor, which must be gathered."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 4))
    expected = {row.name: row.kappa for row in condition_report(model).rows}
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        replicated = nn.parallel.DistributedDataParallel(model)
        assert {row.name: row.kappa for row in condition_report(replicated).rows} == expected
        sharded = fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
        assert type(sharded[0].weight.data).__name__ == "DTensor"
        assert {row.name: row.kappa for row in condition_report(sharded).rows} == expected
    finally:
        dist.destroy_process_group()


def test_command_reports_every_matrix():
    model = tiny("llama")[0].bfloat16()
    result = condition(model, score="kappa")
    assert result.totals == {"matrices": 14}
    assert [row["rank"] for row in result.layers] == list(range(1, 15))
    assert [row["kappa"] for row in result.layers] == sorted(row["kappa"] for row in result.layers)
    assert result.notes[0] == "1 left out: excluded by name"
    noisy = [row["layer"] for row in result.layers if not row["reliable"]]
    assert "rounding" in result.notes[1]
    assert all(row["shape"] == "32 x 32" for row in result.layers if row["layer"] in noisy)
    assert len(list(result.table().columns)) == 10
    assert condition_report(model).table(rows=5).row_count == 5
