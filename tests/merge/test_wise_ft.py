"""WiSE-FT, its LoRA path, heads, Fisher weights, and the sweep."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

from models import tiny
from weightsmith.core.data import collate
from weightsmith.core.errors import (
    CalibrationError,
    CheckpointError,
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.models import recalibrate_batchnorm
from weightsmith.merge import (
    ZeroShotHead,
    calibration_error,
    diagnose,
    diagonal_fisher,
    fisher,
    fisher_average,
    interpolate,
    scale_adapter,
    sweep,
    wise_ft,
)
from weightsmith.merge._sweep import logits_along_line
from weightsmith.testing import samples


def near(model, size=0.1, seed=1):
    """A state dict near the model's."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + size * torch.randn(value.shape, generator=generator).to(value.dtype)
        if value.is_floating_point()
        else value + 3
        for name, value in model.state_dict().items()
    }


@pytest.mark.parametrize("name", ["bert", "vit", "cnn", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ends_are_the_two_networks_bit_by_bit(name, dtype):
    model = tiny(name)[0].to(dtype)
    start, end = model.state_dict(), near(model)
    for t, expected in ((0.0, start), (1.0, end)):
        merged = interpolate(start, end, t)
        floating = [key for key, value in merged.items() if value.is_floating_point()]
        assert all(torch.equal(merged[key], expected[key]) for key in floating)
        assert all(torch.equal(merged[key], end[key]) for key in merged.keys() - set(floating))
    same = interpolate(start, start, 0.5)
    assert all(torch.equal(same[key], start[key]) for key in same)


def test_the_mean_of_linear_networks_has_the_mean_of_their_logits():
    model, x = nn.Linear(12, 4), torch.rand(20, 12)
    start, end = model.state_dict(), near(model)
    logits = [nn.functional.linear(x, *state.values()) for state in (start, end, interpolate(start, end))]
    torch.testing.assert_close(logits[2], (logits[0] + logits[1]) / 2, atol=1e-6, rtol=0)


def test_the_mean_of_deep_networks_has_other_logits_than_the_mean():
    model, x = tiny("mlp")
    start, end = model.state_dict(), near(model, 0.5)
    logits = logits_along_line(model, start, end, (0.0, 0.5, 1.0), x)
    assert (logits[1] - (logits[0] + logits[2]) / 2).abs().max() > 0.1


def test_counters_are_the_tuned_networks_and_batchnorm_can_be_estimated_again():
    model, x = tiny("cnn")
    start = {name: value.clone() for name, value in model.state_dict().items()}
    merged = interpolate(start, near(model), 0.5)
    assert merged["1.num_batches_tracked"].dtype == torch.int64
    assert merged["1.num_batches_tracked"].item() == start["1.num_batches_tracked"].item() + 3
    model.load_state_dict(merged)
    assert recalibrate_batchnorm(model, [x]) == 1
    torch.testing.assert_close(model[1].running_mean, model[0](x).mean((0, 2, 3)))


def test_outside_of_the_line_there_is_a_warning_and_nonsense_is_refused():
    start, end = {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}
    with pytest.warns(UserWarning, match="extrapolated"):
        assert interpolate(start, end, 1.5)["w"].item() == 4.0
    with pytest.raises(HyperparameterError, match="usually"):
        interpolate(start, end, float("nan"))


def test_a_head_the_start_lacks_or_has_in_another_size_stays_the_tuned_networks(tmp_path):
    config = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    folders = []
    for index, labels in enumerate((2, 5)):
        model = BertForSequenceClassification(BertConfig(**config, vocab_size=32, num_labels=labels))
        folders.append(tmp_path / str(index))
        model.save_pretrained(folders[-1])
    with pytest.raises(ShapeError, match="classifier.bias.*finetuned"):
        wise_ft(folders, tmp_path / "out")
    result = wise_ft(folders, tmp_path / "out", head="finetuned")
    start, end, out = (load_file(folder / "model.safetensors") for folder in (*folders, tmp_path / "out"))
    assert torch.equal(out["classifier.weight"], end["classifier.weight"])
    key = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(out[key], torch.lerp(start[key], end[key], 0.5))
    assert result.totals["kept_tensors"] == 2
    assert "classifier" in result.notes[0]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"].keys() == {"0", "1", "2", "3", "4"}
    headless = {name: value for name, value in start.items() if "classifier" not in name}
    assert torch.equal(interpolate(headless, end, head="finetuned")["classifier.bias"], end["classifier.bias"])
    with pytest.raises(LayerNotFoundError, match="head_names"):
        interpolate(start, end, head="finetuned", head_names=("top.*",))
    assert torch.equal(interpolate(start, end, skip=("*.dense.*", "classifier.*"))[key], end[key])


def lora(folder, **more):
    torch.manual_seed(0)
    base = tiny("llama")[0]
    model = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **more)
    )
    model.save_pretrained(folder)
    return folder


def test_a_scaled_adapter_is_the_average_of_the_merged_networks(tmp_path):
    folder = lora(tmp_path / "adapter")
    result = scale_adapter([folder], tmp_path / "scaled", alpha=0.3)
    base = tiny("llama")[0].state_dict()
    tuned = PeftModel.from_pretrained(tiny("llama")[0], folder).merge_and_unload().state_dict()
    scaled = PeftModel.from_pretrained(tiny("llama")[0], tmp_path / "scaled").merge_and_unload().state_dict()
    expected = interpolate(base, tuned, 0.3)
    assert any(not torch.equal(base[key], tuned[key]) for key in base)
    for key, value in scaled.items():
        torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=0)
    assert result.totals["tensors"] == 4


def test_adapters_that_scaling_does_not_average_are_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="DoRA"):
        scale_adapter([lora(tmp_path / "dora", use_dora=True)], tmp_path / "out")
    with pytest.raises(UnsupportedModelError, match="not updates.*lm_head"):
        scale_adapter([lora(tmp_path / "whole", modules_to_save=["lm_head"])], tmp_path / "out")
    save_file({"w": torch.zeros(1)}, (tmp_path / "model.safetensors"))
    with pytest.raises(CheckpointError, match="adapter_config"):
        scale_adapter([tmp_path], tmp_path / "out")
    with pytest.raises(HyperparameterError, match="one adapter"):
        scale_adapter([tmp_path, tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora"])
def test_adapters_that_change_the_base_are_refused(start, tmp_path):
    """At alpha 0 the base would lack the initial factors."""
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=start)
    get_peft_model(tiny("llama")[0], config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UnsupportedModelError, match=f"changes the base.*{start}.*wise-ft"):
        scale_adapter([tmp_path / "adapter"], tmp_path / "out", alpha=0.5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("start", [True, "gaussian", "orthogonal"])
def test_other_initializations_leave_the_base_at_alpha_zero(start, tmp_path):
    model = get_peft_model(tiny("llama")[0], LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=start))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.1 * ("lora_B" in name)
    model.save_pretrained(tmp_path / "adapter")
    scale_adapter([tmp_path / "adapter"], tmp_path / "out", alpha=0.0)
    base = tiny("llama")[0].state_dict()
    merged = PeftModel.from_pretrained(tiny("llama")[0], tmp_path / "out").merge_and_unload().state_dict()
    assert all(torch.equal(merged[key], value) for key, value in base.items())


def test_fisher_weights():
    def single(value):
        return {"w": torch.tensor([value], dtype=torch.float64)}

    start, end = single(1.0), single(3.0)
    assert fisher_average(start, end, single(1.0), single(0.0))["w"].item() == pytest.approx(1.00000002, abs=1e-12)
    assert fisher_average(start, end, single(0.7), single(0.7), alpha=0.3)["w"].item() == pytest.approx(1.6)
    assert fisher_average(start, end, {}, {}, alpha=0.3)["w"].item() == pytest.approx(1.6)
    assert fisher_average(start, end, {}, single(3.0))["w"].item() == pytest.approx(2.5)
    with pytest.raises(HyperparameterError, match="alpha"):
        fisher_average(start, end, {}, {}, alpha=2.0)
    with pytest.raises(HyperparameterError, match="fishers"):
        fisher([Path("a"), Path("b")], Path("out"))
    with pytest.raises(HyperparameterError, match="floor"):
        fisher_average(start, end, {}, {}, floor=0.0)


@pytest.mark.parametrize("name", ["bert", "vit", "mlp", "cnn"])
def test_fisher_information_is_that_of_one_backward_a_sample(name):
    model, batch = tiny(name)
    batch = {key: value[:5] for key, value in batch.items()} if isinstance(batch, dict) else batch[:5]
    found = diagonal_fisher(model, [batch], chunk=2, generator=torch.Generator().manual_seed(3))
    draws, logits = torch.Generator().manual_seed(3), _logits(model, batch)
    labels = logits.softmax(-1).multinomial(1, generator=draws)[:, 0]
    total = {key: torch.zeros_like(value) for key, value in model.named_parameters()}
    for row, label in enumerate(labels):
        one = {key: x[row : row + 1] for key, x in batch.items()} if isinstance(batch, dict) else batch[row : row + 1]
        model.zero_grad()
        _logits(model, one)[0].log_softmax(-1)[label].backward()
        for key, value in model.named_parameters():
            total[key] += value.grad.square() / 5 if value.grad is not None else 0.0
    for key, value in found.items():
        torch.testing.assert_close(value, total[key], rtol=1e-3, atol=1e-7)
    with pytest.raises(CalibrationError):
        diagonal_fisher(model, [])


def _logits(model, batch):
    output = model(**batch) if isinstance(batch, dict) else model(batch)
    return output if isinstance(output, torch.Tensor) else output.logits


def test_embeddings_that_have_no_direction_are_refused():
    with pytest.raises(NonFiniteError, match="text"):
        ZeroShotHead(torch.zeros(2, 1, 3))


def test_a_head_of_text_gives_cosines():
    text, x = torch.randn(3, 4, 8), torch.randn(5, 8)
    head = ZeroShotHead(text, logit_scale=2.0)
    means = nn.functional.normalize(nn.functional.normalize(text, dim=-1).mean(1), dim=-1)
    expected = torch.tensor(2.0).exp() * torch.cosine_similarity(x[:, None], means[None], dim=-1)
    torch.testing.assert_close(head(x), expected)
    assert head.bias.requires_grad


def samples_of(x, y):
    return list(zip(x, y, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_head_takes_features_of_other_element_types(dtype):
    text, features = torch.rand(3, 2, 8).to(dtype), torch.rand(5, 8).to(dtype)
    head = ZeroShotHead(text, logit_scale=0.0)
    classes = functional.normalize(functional.normalize(text.double(), dim=-1).mean(1), dim=-1)
    expected = functional.normalize(features.double(), dim=-1) @ classes.T
    torch.testing.assert_close(head(features).double(), expected, atol=1e-6, rtol=1e-6)


def test_the_sweep_measures_each_average_and_leaves_the_model_at_alpha():
    model, x = tiny("mlp")
    tuned = tiny("mlp")[0]
    tuned.load_state_dict(near(model, 0.5))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    y, alphas = torch.randint(4, (300,), generator=torch.Generator().manual_seed(0)), (0.0, 0.25, 1.0)
    result = sweep(model, samples_of(x, y), samples_of(x + 1, y), tuned=tuned, alphas=alphas, alpha=0.25, batch_size=64)
    for name, inputs in (("id", x), ("ood", x + 1)):
        logits = logits_along_line(tiny("mlp")[0], start, tuned.state_dict(), (*alphas, 0.25), inputs)
        for row, each in zip(result.layers[:3], logits[:3], strict=True):
            assert row[f"{name} accuracy"] == pytest.approx((each.argmax(1) == y).double().mean().item())
            assert row[f"{name} calibration error"] == pytest.approx(calibration_error(each, y), abs=1e-6)
        told = diagnose(logits[0], logits[2], logits[3], y)
        for row, kind in zip(result.layers[3:], ("probabilities", "logits"), strict=True):
            assert row["layer"] == f"mean of {kind}"
            assert row[f"{name} accuracy"] == pytest.approx(told[f"accuracy_ensemble_of_{kind}"])
        found = [result.totals[f"{name}_{key}"] for key in ("repaired", "broken", "confidence_ratio")]
        assert found == pytest.approx(
            [told[key] for key in ("repaired_FFT", "broken_TTF", "confidence_ratio")], rel=1e-5
        )
    expected = interpolate(start, tuned.state_dict(), 0.25)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert result.curves["ood accuracy"] == [row["ood accuracy"] for row in result.layers[:3]]


def test_all_averages_in_one_pass_give_the_outputs_of_each():
    for name in ("mlp", "cnn"):
        model, x = tiny(name)
        start, end = model.state_dict(), near(model)
        found = logits_along_line(model, start, end, (0.0, 0.3, 1.0), x)
        other = tiny(name)[0]
        for logits, alpha in zip(found, (0.0, 0.3, 1.0), strict=True):
            other.load_state_dict(interpolate(start, end, alpha))
            torch.testing.assert_close(logits, other(x), rtol=1e-4, atol=1e-5)


def test_labels_that_are_ignored_do_not_count_in_the_sweep():
    model, x = tiny("mlp")
    start, tuned = model.state_dict(), tiny("mlp")[0]
    tuned.load_state_dict(near(model, 0.5))
    y = torch.randint(4, (len(x),), generator=torch.Generator().manual_seed(0))
    some = y.index_fill(0, torch.arange(len(x) // 2), -100)
    half = samples_of(x, y)[len(x) // 2 :]
    results = []
    for data in (half, samples_of(x, some)):
        model = tiny("mlp")[0]
        model.load_state_dict(start)
        results.append(sweep(model, data, data, tuned=tuned, alphas=(0.0, 0.5)))
    for fewer, all_of_them in zip(results[0].layers, results[1].layers, strict=True):
        assert all_of_them == pytest.approx(fewer, abs=1e-6)
    assert results[1].totals == pytest.approx(results[0].totals, rel=1e-5)


def test_the_sweep_tells_of_a_fine_tuned_network_that_is_too_loud():
    model, x = nn.Linear(12, 4), torch.randn(50, 12)
    tuned = nn.Linear(12, 4)
    tuned.load_state_dict({name: 4 * value for name, value in model.state_dict().items()})
    data = samples_of(x, torch.zeros(50, dtype=torch.long))
    result = sweep(model, data, data, tuned=tuned)
    assert result.totals["ood_confidence_ratio"] == pytest.approx(4, rel=1e-5)
    assert "4.0 times" in result.notes[0]


def test_the_sweep_of_a_language_model_measures_loss():
    model, batch = tiny("gpt2")
    tuned = tiny("gpt2")[0]
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.1)
    ids = batch["input_ids"]
    data = [{"input_ids": row, "labels": row} for row in ids]
    with torch.no_grad():
        expected = [net(input_ids=ids, labels=ids).loss.item() for net in (model, tuned)]
    result = sweep(model, data, data, tuned=tuned, alphas=(0.0, 1.0), alpha=1.0, batch_size=4)
    assert result.curves["ood loss"] == pytest.approx(expected, rel=1e-5)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(model.lm_head.weight, tuned.lm_head.weight)


def test_the_sweep_of_a_regression_measures_its_loss():
    """Of one output the largest is always the first: an accuracy would say nothing."""
    model, tuned = (tiny("bert_regression")[0] for _ in range(2))
    with torch.no_grad():
        tuned.classifier.bias += 1.0
    data = samples("bert_regression")
    batch = collate(data)
    expected = []
    for network in (model, tuned):
        with torch.no_grad():
            output = network(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, 0]
        expected.append((output.double() - batch["labels"].double()).square().mean().item())
    rows = sweep(model, data, data, tuned=tuned, alphas=(0.0, 1.0), batch_size=5).layers
    assert [row["id loss"] for row in rows] == pytest.approx(expected, rel=1e-5)
    assert "id accuracy" not in rows[0]
    network = nn.Linear(2, 1)
    pairs = [(torch.rand(2), torch.tensor([0.5]))] * 3
    with pytest.raises(CalibrationError, match="real numbers"):
        sweep(network, pairs, pairs, tuned=copy.deepcopy(network))


def test_the_sweep_refuses_what_it_cannot_measure():
    model = nn.Linear(2, 2)
    data = samples_of(torch.rand(3, 2), torch.zeros(3, dtype=torch.long))
    for bad in ([], [{"x": torch.zeros(2)}]):
        with pytest.raises(CalibrationError):
            sweep(model, data, bad, tuned=nn.Linear(2, 2))
    with pytest.raises(ShapeError):
        sweep(model, data, data, tuned=nn.Linear(2, 3))
    for wrong in ({"batch_size": 0}, {"alphas": ()}, {"alpha": float("nan")}):
        with pytest.raises(HyperparameterError):
            sweep(model, data, data, tuned=nn.Linear(2, 2), **wrong)
