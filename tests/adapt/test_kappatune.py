import copy

import pytest
import torch
import transformers as t
from peft import LoraConfig, get_peft_model
from torch import nn

from models import tiny
from weightsmith.adapt import (
    freeze_except,
    highest_targets,
    kappatune,
    match_rank,
    random_targets,
    shape_matched_targets,
    trainable_parameters,
)
from weightsmith.adapt._kappatune import adaptable, train_lora
from weightsmith.analyze import condition_report
from weightsmith.core.errors import CalibrationError, HyperparameterError, LayerNotFoundError, NonFiniteError


def samples_of(name, batch):
    if name in ("bert", "vit"):
        labels = torch.arange(8) % 2
        return [{**{key: value[i] for key, value in batch.items()}, "labels": labels[i]} for i in range(8)]
    return [{"input_ids": ids} for ids in batch["input_ids"]]


def mixtral():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = t.MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=64, num_local_experts=4)
    return t.MixtralForCausalLM(config).eval()


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    return {name.removesuffix(".weight") for name, value in model.state_dict().items() if not value.equal(before[name])}


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bert", "vit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trains_the_selected_matrices_and_nothing_else(name, dtype):
    model, batch = tiny(name)
    model = model.to(dtype)
    if name == "vit":
        batch = {"pixel_values": batch["pixel_values"].to(dtype)}
    model.get_parameter(next(n for n, _ in model.named_parameters())).requires_grad_(False)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    modules = {n: type(m) for n, m in model.named_modules()}
    before = state(model)
    result = kappatune(model, samples_of(name, batch), top_p=0.3, rank=4, learning_rate=1e-2, batch_size=4, epochs=2)
    report = condition_report(model)
    selected = {row["layer"] for row in result.layers}
    assert changed(model, before) == selected
    assert len(selected) == max(1, int(0.3 * len(report.rows)))
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert {n: type(m) for n, m in model.named_modules()} == modules
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert len(result.curves["training loss"]) == 4
    rank, everything = result.totals["matched_rank"], result.totals["trainable_of_all"]
    unit = sum(sum(report.row(layer).shape) for layer in selected)
    assert result.totals["trainable"] == rank * unit == sum(row["trainable"] for row in result.layers)
    assert abs(result.totals["trainable"] - everything) <= unit / 2


def test_selects_the_lowest_scores():
    model, batch = tiny("llama")
    expected = condition_report(model, score="entropy_deficit").select(top_p=0.2)
    result = kappatune(model, samples_of("llama", batch), score="entropy_deficit", rank=1)
    assert [row["layer"] for row in result.layers] == expected


def test_merged_update_is_what_the_adapters_computed():
    """Train in fit, with adapters of our own beside it by the same seed: the merged weights are the same function."""
    model, batch = tiny("llama")
    reference = copy.deepcopy(model)
    report = condition_report(model)
    targets = report.targets(num=3)
    samples = samples_of("llama", batch)
    train_lora(model, samples, targets, rank=4, dropout=0.0, learning_rate=1e-2, batch_size=4, seed=3)
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="|".join(targets["target_modules"]).replace(".", r"\."))
    adapted = get_peft_model(reference, config)
    from weightsmith.core.training import fit

    fit(reference, samples, learning_rate=1e-2, batch_size=4, seed=3)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, adapted(**batch).logits, rtol=1e-4, atol=1e-5)


def test_same_seed_same_weights():
    weights = []
    for seed in (0, 0, 1):
        model, batch = tiny("llama")
        kappatune(
            model,
            samples_of("llama", batch),
            learning_rate=1e-2,
            batch_size=4,
            generator=torch.Generator().manual_seed(seed),
        )
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


def test_fused_experts():
    model = mixtral()
    before = state(model)
    report = condition_report(model)
    ids = torch.randint(64, (4, 12), generator=torch.Generator().manual_seed(0))
    result = kappatune(model, [{"input_ids": row} for row in ids], top_p=0.5, rank=2, learning_rate=1e-2, batch_size=2)
    experts = [row for row in result.layers if "experts" in row["layer"]]
    assert len(experts) == 2
    assert len(result.layers) == 2 + int(0.5 * sum(row.kind == "module" for row in report.rows))
    assert experts[0]["trainable"] == result.totals["matched_rank"] * 4 * sum(report.row(experts[0]["layer"]).shape[1:])
    assert changed(model, before) == {row["layer"] for row in result.layers}
    assert "The adapters had no dropout: fused experts are among the selected." in result.notes


def test_a_rank_above_the_smaller_side_is_named():
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(10)))
    samples = [(torch.rand(8), n % 8) for n in range(4)]
    result = kappatune(model, samples, top_p=0.2, rank=2)
    assert result.totals["matched_rank"] == 10
    assert any(
        note.startswith("Rank 10 is above the smaller side of 2 of the selected, such as ") for note in result.notes
    )


def test_nothing_changes_on_an_exception():
    model, batch = tiny("llama")
    before, modules = state(model), {n: type(m) for n, m in model.named_modules()}

    def stop(step, loss):
        raise KeyboardInterrupt

    targets = condition_report(model).targets(num=2)
    samples = samples_of("llama", batch)
    with pytest.raises(KeyboardInterrupt):
        train_lora(model, samples, targets, rank=2, after_step=stop, learning_rate=1.0)
    assert not changed(model, before)
    with pytest.raises(NonFiniteError):
        train_lora(model, samples, targets, rank=2, learning_rate=1e37, epochs=2)
    assert not changed(model, before)
    assert {n: type(m) for n, m in model.named_modules()} == modules
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"top_p": 0.0}, HyperparameterError),
        ({"top_p": 1.5}, HyperparameterError),
        ({"rank": 0}, HyperparameterError),
        ({"dropout": 1.0}, HyperparameterError),
        ({"epochs": 0}, HyperparameterError),
        ({"include": "nothing"}, LayerNotFoundError),
    ],
)
def test_refused(bad, error):
    model, batch = tiny("llama")
    before = state(model)
    with pytest.raises(error, match=next(iter(bad)) if error is HyperparameterError else "no weight matrix"):
        kappatune(model, samples_of("llama", batch), **bad)
    assert not changed(model, before)
    with pytest.raises(CalibrationError):
        kappatune(model, [])


def test_names_are_exact():
    """PEFT's list would also match ``body.0`` for ``0``."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6)))
    before = state(model)
    data = [(torch.randn(6), torch.tensor(1)) for _ in range(4)]
    train_lora(model, data, {"target_modules": ["0"], "target_parameters": None}, rank=2, learning_rate=0.1)
    assert changed(model, before) == {"0"}


def test_convolutions():
    model, images = tiny("cnn")
    before = state(model)
    report = condition_report(model)
    train_lora(model, [(image, torch.tensor(1)) for image in images], report.targets(), rank=2, learning_rate=1e-2)
    assert changed(model, before) - {"1.running_mean", "1.running_var", "1.num_batches_tracked"} == {"0", "3", "5"}


def test_match_rank():
    shapes = {"v": (192, 576), "up": (1536, 576), "o": (576, 576)}
    model = nn.ModuleDict({f"{n}{i}": nn.Linear(k, m, bias=False) for n, (m, k) in shapes.items() for i in range(3)})
    report = condition_report(model)
    for names in (["v0", "v1", "v2"], ["up1"], ["o0", "v2"], list(model)):
        targets = {"target_modules": names, "target_parameters": None}
        unit = sum(sum(report.row(name).shape) for name in names)
        for rank in (1, 2, 16):
            matched = match_rank(report, targets, rank)
            total = rank * sum(sum(row.shape) for row in report.rows)
            assert abs(trainable_parameters(report, targets, matched) - total) <= max(unit / 2, unit - total)
    real = sum(p.numel() for n, p in lora(model, ["v0", "v1"], 7).named_parameters() if p.requires_grad)
    assert real == trainable_parameters(report, {"target_modules": ["v0", "v1"], "target_parameters": None}, 7)
    with pytest.raises(HyperparameterError, match="rank"):
        match_rank(report, targets, 0)
    with pytest.raises(LayerNotFoundError, match="'x'"):
        match_rank(report, {"target_modules": ["x"], "target_parameters": None}, 1)


def lora(model, names, rank):
    return get_peft_model(copy.deepcopy(model), LoraConfig(r=rank, target_modules=names))


def test_freeze_except_trains_the_named_parameters_bit_for_bit():
    model, batch = tiny("llama")
    names = condition_report(model).select(num=3, kind="tensor")
    optimizer = torch.optim.AdamW(freeze_except(model, names), lr=1e-2)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(names)
    before = state(model)
    for _ in range(5):
        model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert {f"{name}.weight" for name in changed(model, before)} == set(names)


def test_freeze_except_knows_tied_weights():
    model = tiny("gpt2")[0]
    chosen = freeze_except(model, ["lm_head.weight", "transformer.wte.weight"])
    assert len(chosen) == 1
    assert chosen[0] is model.transformer.wte.weight
    assert model.lm_head.weight.requires_grad
    with pytest.raises(LayerNotFoundError, match="'nowhere'"):
        freeze_except(model, ["nowhere", "transformer.wpe.weight"])
    assert not model.transformer.wpe.weight.requires_grad


def test_control_arms():
    model, _ = tiny("llama", layers=6)
    report = condition_report(model, score="kappa")
    like = report.targets(num=9)
    kappas = {row.name: row.kappa for row in report.rows}
    highest = highest_targets(report, like)["target_modules"]
    assert sorted(highest) == sorted(sorted(kappas, key=kappas.get)[-9:])
    generator = torch.Generator().manual_seed(0)
    draws = [random_targets(report, like, generator=generator)["target_modules"] for _ in range(40)]
    assert all(len(set(draw)) == 9 for draw in draws)
    assert {name for draw in draws for name in draw} == set(kappas)
    shapes = sorted(report.row(name).shape for name in like["target_modules"])
    for _ in range(5):
        matched = shape_matched_targets(report, like, generator=generator)["target_modules"]
        assert sorted(report.row(name).shape for name in matched) == shapes
        assert len(set(matched)) == 9
    same = [random_targets(report, like, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert same[0] == same[1]


def test_control_arms_of_fused_experts():
    report = condition_report(mixtral())
    like = report.targets(top_p=0.25)
    for arm in (random_targets(report, like), highest_targets(report, like), shape_matched_targets(report, like)):
        assert {key: len(names or ()) for key, names in arm.items()} == {"target_modules": 2, "target_parameters": 1}
        assert match_rank(report, arm, 4) >= 4
    assert highest_targets(report, like)["target_parameters"] == report.select(kind="parameter")[-1:]


def test_what_lora_cannot_train_alone_is_left_out():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    model["c"] = nn.Linear(8, 4)
    model["b"].weight = model["a"].weight
    report = adaptable(condition_report(model), model)
    assert [row.name for row in report.rows] == ["c"]
    assert report.skipped == {
        "read by nn.MultiheadAttention without being called": ("attention.out_proj",),
        "shares its weight with another module": ("a",),
    }
    del model["c"]
    with pytest.raises(LayerNotFoundError, match="LoRA"):
        adaptable(condition_report(model), model)


def test_in_trainer_with_accumulation_and_bf16(tmp_path):
    model, batch = tiny("llama")
    targets = condition_report(model, score="kappa").targets(top_p=0.2)
    before = state(model)
    adapted = get_peft_model(model, LoraConfig(r=4, **targets))
    samples = [{"input_ids": ids, "labels": ids} for ids in batch["input_ids"]]
    arguments = t.TrainingArguments(
        tmp_path,
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        bf16=True,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    t.Trainer(adapted, arguments, train_dataset=samples).train()
    adapted.merge_and_unload()
    assert changed(model, before) == set(targets["target_modules"])
