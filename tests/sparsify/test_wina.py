"""WINA's and TEAL's selection, thresholds and allocation: closed forms, golden numbers, bad input."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from weightsmith.core.errors import (
    CalibrationError,
    CheckpointError,
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    UnsupportedModelError,
)
from weightsmith.core.models import find_layers
from weightsmith.sparsify import ActivationPlan, apply_plan, calibrate_wina, plan_report, remove_plan, teal, wina
from weightsmith.sparsify._wina.allocation import _effective
from weightsmith.sparsify._wina.histogram import ScoreHistogram, quantile
from weightsmith.sparsify._wina.linear import Prompt, SparseLinear
from weightsmith.sparsify._wina.plan import Projection
from weightsmith.sparsify._wina.selection import (
    column_norms,
    dropped,
    prefix_mask,
    topk_limits,
)

LLAMA = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}


def llama(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**(LLAMA | changes))).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def tokens(count: int = 2, length: int = 16, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(3, 64, (1, length), generator=generator)} for _ in range(count)]


def topk_layer(weight: torch.Tensor, sparsity: float, *, norms: bool, bias: torch.Tensor | None = None) -> SparseLinear:
    layer = nn.Linear(*reversed(weight.shape), bias=bias is not None)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    projection = Projection(sparsity, 0.0, norms)
    return SparseLinear(layer, projection, ActivationPlan(sparsity, "topk", 1.0, {"": projection}), Prompt(1.0))


class TestSelection:
    def test_the_norm_tells_which_input_matters(self):
        weight, x = torch.tensor([[3.0, 0.1], [4.0, 0.0]]), torch.tensor([0.5, 1.0])
        exact = weight @ x
        teal, wina = topk_layer(weight, 0.5, norms=False), topk_layer(weight, 0.5, norms=True)
        assert (teal(x) - exact).norm().item() == pytest.approx(2.5)
        assert (wina(x) - exact).norm().item() == pytest.approx(0.1)

    def test_is_the_best_of_all_subsets_for_orthogonal_columns(self):
        generator = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(8, 6, generator=generator)).Q
        weight = basis * torch.rand(6, generator=generator)
        for x in torch.randn(20, 6, generator=generator):
            score = x.abs() * column_norms(weight)
            drop = dropped(x, topk_limits(x[None], column_norms(weight), 0.5)[0])
            error = (weight @ x.masked_fill(~drop, 0)).square().sum()
            assert error == pytest.approx(score[drop].square().sum().item(), rel=1e-5)
            every = [weight[:, list(c)] @ x[list(c)] for c in itertools.combinations(range(6), 3)]
            assert error == pytest.approx(min(e.square().sum().item() for e in every), rel=1e-5)

    def test_equal_norms_are_teal(self):
        x = torch.randn(5, 40)
        for limits in (topk_limits(x, torch.full((40,), 3.0), 0.3), topk_limits(x, torch.ones(40), 0.3)):
            assert torch.equal(limits, topk_limits(x, torch.full((40,), 0.5), 0.3))

    def test_scaling_inputs_into_the_weight_changes_teal_but_not_wina(self):
        generator = torch.Generator().manual_seed(3)
        weight, x = torch.randn(7, 12, generator=generator), torch.randn(12, generator=generator)
        scale = torch.rand(12, generator=generator) + 0.1
        for norms in (True, False):
            plain = topk_layer(weight, 0.5, norms=norms)(x)
            folded = topk_layer(weight * scale, 0.5, norms=norms)(x / scale)
            assert torch.allclose(plain, folded, atol=1e-5) is norms

    def test_ties_go_to_the_first(self):
        assert dropped(torch.ones(4), topk_limits(torch.ones(1, 4), torch.ones(4), 0.5)[0]).tolist() == [0, 0, 1, 1]

    def test_nothing_kept_leaves_the_bias(self):
        layer = topk_layer(torch.randn(3, 10), 0.96, norms=True, bias=torch.tensor([1.0, 2.0, 3.0]))
        assert torch.equal(layer(torch.randn(10)), torch.tensor([1.0, 2.0, 3.0]))

    @pytest.mark.parametrize("select", ["threshold", "topk"])
    def test_nan_shows_and_zero_columns_do_not(self, select):
        weight = torch.ones(2, 4)
        weight[:, 0] = 0
        layer = nn.Linear(4, 2, bias=False)
        layer.weight.data = weight
        projection = Projection(0.5, 0.5, True)
        sparse = SparseLinear(layer, projection, ActivationPlan(0.5, select, 1.0, {"": projection}), Prompt(1.0))
        assert sparse(torch.tensor([float("inf"), 9.0, 8.0, 0.0])).tolist() == [17.0, 17.0]
        assert sparse(torch.tensor([1.0, float("nan"), 8.0, 0.0])).isnan().all()

    def test_new_weights_get_new_norms(self):
        layer = topk_layer(torch.tensor([[1.0, 2.0]]), 0.5, norms=True)
        assert layer(torch.ones(2)).item() == 2.0
        with torch.no_grad():
            layer.weight[0, 0] = 3.0
        assert layer(torch.ones(2)).item() == 3.0

    def test_the_selection_is_constant_to_gradients(self):
        layer, x = topk_layer(torch.tensor([[1.0, 2.0]]), 0.5, norms=True), torch.ones(2, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad.tolist() == [0.0, 2.0]
        assert layer.weight.grad.tolist() == [[0.0, 1.0]]


class TestPrompt:
    def test_of_a_hundred_tokens_the_first_stays_dense(self):
        marks = prefix_mask(torch.ones(1, 100, dtype=torch.bool), 0.99)[0]
        assert marks.tolist() == [True] + [False] * 99

    def test_padding_does_not_count(self):
        mask = torch.ones(2, 100, dtype=torch.long)
        mask[1, :40] = 0
        prompt = Prompt(0.95)
        prompt.see(nn.Identity(), (), {"input_ids": mask, "attention_mask": mask})
        marks = prompt.dense_rows(torch.zeros(2, 100, 8))
        assert marks[0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
        assert marks[1].nonzero().flatten().tolist() == [*range(43)]
        assert torch.equal(prompt.dense_rows(torch.zeros(200, 8)), marks.flatten())

    def test_a_single_token_is_sparse(self):
        prompt = Prompt(0.5)
        prompt.see(nn.Identity(), (torch.zeros(3, 1, dtype=torch.long),), {})
        assert prompt.dense_rows(torch.zeros(3, 1, 8)) is None

    def test_a_model_masks_all_but_the_first(self):
        model = llama()
        plan = calibrate_wina(model, tokens(), prefill=0.99)
        full = ActivationPlan(0.5, "threshold", 0.99, dict.fromkeys(plan.projections, Projection(1.0, math.inf, False)))
        batch = tokens(1, 100)[0]
        with torch.no_grad():
            dense = model(**batch).logits
            apply_plan(model, full, backend="mask")
            sparse = model(**batch).logits
        nothing = model.lm_head(model.model.norm(model.model.embed_tokens(batch["input_ids"])))
        assert torch.allclose(sparse[0, 0], dense[0, 0], atol=1e-5)
        assert torch.allclose(sparse[0, 1:], nothing[0, 1:], atol=1e-5)

    def test_later_tokens_do_not_change_earlier_ones(self):
        model, batch = llama(), tokens(1, 20)[0]["input_ids"]
        wina(model, tokens(), prefill=0.99, backend="mask")
        other = batch.clone()
        other[0, 12:] = 5
        with torch.no_grad():
            assert torch.equal(model(batch).logits[0, :12], model(other).logits[0, :12])


class TestThresholds:
    def test_quantile_of_1_to_100(self):
        values = torch.arange(1.0, 101.0)
        t = quantile(values, torch.ones(100), 0.5)
        assert t == 50.0
        assert int((values > t).sum()) == 50

    @pytest.mark.parametrize(
        ("part", "name", "expected"),
        [
            ("self_attn", "h1", (0.108317, 0.180606, 0.233418, 0.326127)),
            ("self_attn", "h2", (0.016810, 0.031232, 0.044459, 0.073149)),
            ("mlp", "h1", (0.078525, 0.130768, 0.167918, 0.234356)),
            ("mlp", "h2", (0.009760, 0.019276, 0.027604, 0.044420)),
        ],
    )
    def test_teals_own_histograms_of_llama(self, part, name, expected):
        root = Path(os.environ.get("WEIGHTSMITH_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
        path = root / "teal-histograms" / "llama2-7b-layer15" / part / "histograms.pt"
        if not path.is_file():
            pytest.skip(f"no {path.name} of TEAL (set WEIGHTSMITH_DATA)")
        histograms = torch.load(path, weights_only=True)
        centres, counts = histograms[f"{name}_centers"], histograms[name]
        # TEAL counts signed values, symmetric about zero
        found = [quantile(centres, counts, 0.5 + s / 2) for s in (0.25, 0.4, 0.5, 0.65)]
        assert found == pytest.approx(expected, abs=1e-6)

    def test_effective_sparsity_of_teals_allocation(self):
        widths = {"q": 4096, "k": 4096, "v": 4096, "o": 4096, "gate": 11008, "up": 11008, "down": 11008}
        shares = {"q": 0.5, "k": 0.55, "v": 0.45, "o": 0.5, "gate": 0.5023, "up": 0.4465, "down": 0.5581}
        assert _effective(shares, {name: 4096 * width for name, width in widths.items()}) == pytest.approx(
            0.5016, abs=2e-4
        )

    def test_histogram_is_within_its_bin_of_the_exact_value(self):
        scores = torch.randn(2, 500, 64).exp()
        for norm in (torch.ones(64), torch.rand(64) + 0.1):
            histogram = ScoreHistogram(norm)
            for chunk in scores.chunk(2):
                histogram.update(chunk, None)
            for share in (0.1, 0.5, 0.9):
                exact = (scores * norm).flatten().quantile(share).item()
                assert histogram.threshold(share) == pytest.approx(exact, rel=0.007)
            assert histogram.threshold(1.0) == math.inf

    def test_padding_is_left_out(self):
        histogram = ScoreHistogram(torch.ones(1))
        histogram.update(torch.tensor([[[1.0], [100.0]]]), torch.tensor([[True, False]]))
        assert int(histogram.counts.sum()) == 1

    def test_a_calibrated_model_drops_what_was_asked_for(self):
        model, batches = llama(), tokens(8, 64)
        wina(model, batches, sparsity=0.4, norms="all", prefill=1.0, backend="mask")
        for batch in batches:
            model(**batch)
        rows = {row["layer"]: row["realized"] for row in plan_report(model)["layers"]}
        # the first layers see what they were calibrated on; later ones see what the sparse ones before them make of it
        first = [rows[f"model.layers.0.self_attn.{p}_proj"] for p in "qkv"]
        assert first == pytest.approx([0.4] * 3, abs=0.005)
        assert all(0.2 < value < 0.6 for value in rows.values())

    def test_layers_with_one_input_are_a_group(self):
        plan = calibrate_wina(llama(), tokens())
        assert [len(group) for group in plan.groups] == [3, 1, 2, 1] * 2
        assert plan.groups[0] == tuple(f"model.layers.0.self_attn.{p}_proj" for p in "qkv")

    def test_reference_norms_are_keys_and_gates(self):
        plan = calibrate_wina(llama(), tokens())
        assert {n.rpartition(".")[2] for n, p in plan.projections.items() if p.norms} == {"k_proj", "gate_proj"}


class TestGreedy:
    def test_spares_the_layer_that_matters(self):
        torch.manual_seed(0)
        important, idle = nn.Linear(16, 16), nn.Linear(16, 16)
        idle.weight.data *= 1e-3
        block = nn.Sequential()
        block.add_module("important", important)
        block.add_module("idle", idle)

        class Sum(nn.Module):
            def __init__(self):
                super().__init__()
                self.important, self.idle = important, idle

            def forward(self, x):
                return self.important(x) + self.idle(x)

        model = nn.Sequential(Sum())
        plan = calibrate_wina(model, [torch.randn(1, 32, 16)], norms="none", allocation="greedy", prefill=1.0, step=0.1)
        shares = {name.rpartition(".")[2]: p.sparsity for name, p in plan.projections.items()}
        assert shares == {"important": 0.0, "idle": pytest.approx(1.0)}

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_padding_does_not_count(self, side):
        model = llama(num_hidden_layers=2)
        ids = torch.randint(64, (1, 24), generator=torch.Generator().manual_seed(1))
        pads = torch.zeros(1, 16, dtype=torch.long)
        parts = [ids, pads] if side == "right" else [pads, ids]
        mask = torch.cat([torch.ones_like(part) if part is ids else pads for part in parts], 1)
        hyper = {"norms": "none", "allocation": "greedy", "step": 0.1}
        alone = calibrate_wina(model, [{"input_ids": ids}], **hyper)
        padded = calibrate_wina(model, [{"input_ids": torch.cat(parts, 1), "attention_mask": mask}], **hyper)
        shares = [{name: p.sparsity for name, p in plan.projections.items()} for plan in (alone, padded)]
        assert shares[0] == pytest.approx(shares[1])
        assert len(set(shares[0].values())) > 1

    def test_a_layer_that_stays_dense_skips_nothing(self):
        model = llama(num_hidden_layers=2)
        plan = calibrate_wina(model, tokens(), sparsity=0.1, allocation="greedy", step=0.05)
        assert 0.0 in [p.sparsity for p in plan.projections.values()]
        apply_plan(model, plan, backend="mask")
        with torch.no_grad():
            model(**tokens(1)[0])
        facts = plan_report(model)
        assert {row["realized"] for row in facts["layers"] if row["sparsity"] == 0} == {0.0}
        assert 0 < facts["realized"] < 0.2

    def test_beats_uniform_on_the_blocks_own_error(self):
        model, batches, outputs = llama(num_hidden_layers=1), tokens(2, 32), []
        hyper = {"norms": "none", "prefill": 1.0}
        greedy = calibrate_wina(model, batches, sparsity=0.5, allocation="greedy", step=0.1, **hyper)
        numel = {layer.name: layer.weight_OI.numel() for layer in find_layers(model, exclude="lm_head")}
        reached = _effective({name: p.sparsity for name, p in greedy.projections.items()}, numel)
        assert reached == pytest.approx(0.5, abs=0.02)
        model.model.layers[0].register_forward_hook(lambda m, a, y: outputs.append(y[:, -8:]))

        def run() -> torch.Tensor:
            outputs.clear()
            with torch.no_grad():
                for batch in batches:
                    model(**batch)
            return torch.stack(outputs)

        dense, errors = run(), []
        for plan in (greedy, calibrate_wina(model, batches, sparsity=reached, **hyper)):
            apply_plan(model, plan, backend="mask")
            errors.append((run() - dense).norm(dim=-2).mean().item())
            remove_plan(model)
        assert errors[0] < errors[1]


class TestPlan:
    def test_round_trip(self, tmp_path):
        model = llama()
        result = wina(model, tokens(), sparsity=0.3, backend="mask")
        (tmp_path / "wina.json").write_text(result.files["wina.json"])
        plan = ActivationPlan.load(tmp_path)
        with torch.no_grad():
            first = model(**tokens(1)[0]).logits
            remove_plan(model)
            apply_plan(model, plan, backend="mask")
            assert torch.equal(model(**tokens(1)[0]).logits, first)

    def test_infinite_thresholds_survive(self):
        plan = ActivationPlan(0.9, "threshold", 1.0, {"a": Projection(1.0, math.inf, True)})
        assert ActivationPlan.from_json(plan.to_json()) == plan
        assert "Infinity" not in plan.to_json()

    @pytest.mark.parametrize(
        "text", ["{}", "[]", "no json", '{"version": 99}', '{"version": 2, "projections": {"a": 3}}']
    )
    def test_damaged_plans_are_refused(self, text):
        with pytest.raises(CheckpointError):
            ActivationPlan.from_json(text)

    def test_missing_plan_is_refused(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"wina\.json"):
            ActivationPlan.load(tmp_path)


class TestBadInput:
    @pytest.mark.parametrize(
        ("hyper", "name"),
        [
            ({"sparsity": 1.0}, "sparsity"),
            ({"sparsity": -0.1}, "sparsity"),
            ({"sparsity": math.nan}, "sparsity"),
            ({"prefill": 1.5}, "prefill"),
            ({"step": 0.0}, "step"),
        ],
    )
    def test_out_of_range(self, hyper, name):
        with pytest.raises(HyperparameterError, match=name):
            wina(llama(), tokens(), **hyper)

    def test_no_calibration(self):
        with pytest.raises(CalibrationError):
            wina(llama(), [])

    def test_only_padding(self):
        batch = {"input_ids": torch.ones(1, 4, dtype=torch.long), "attention_mask": torch.zeros(1, 4)}
        model = nn.Sequential(nn.Linear(3, 3))
        with pytest.raises(CalibrationError):
            ScoreHistogram(torch.ones(2)).all_reduce()
        assert batch["attention_mask"].sum() == 0
        with pytest.raises(CalibrationError, match="rejects"):
            wina(model, [batch])

    def test_nan_in_calibration_changes_nothing(self):
        model = nn.Sequential(nn.Linear(3, 3))
        with pytest.raises(NonFiniteError):
            wina(model, [torch.full((2, 3), math.nan)])
        assert type(model[0]) is nn.Linear

    def test_triton_on_the_cpu(self, monkeypatch):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        model = llama()
        with pytest.raises(UnsupportedModelError, match="triton"):
            wina(model, tokens(), backend="triton")
        assert type(model.model.layers[0].mlp.up_proj) is nn.Linear

    def test_a_sparse_model_is_not_made_sparse_again(self):
        model = llama()
        wina(model, tokens(), backend="mask")
        with pytest.raises(UnsupportedModelError):
            wina(model, tokens(), backend="mask")

    def test_a_dense_model_has_no_report(self):
        for function in (plan_report, remove_plan):
            with pytest.raises(LayerNotFoundError, match="no sparse layers"):
                function(nn.Sequential(nn.Linear(2, 2)))

    def test_a_plan_for_another_model(self):
        plan = calibrate_wina(llama(), tokens())
        model = llama(num_hidden_layers=1)
        with pytest.raises(LayerNotFoundError, match=r"model\.layers\.1"):
            apply_plan(model, plan)
        assert type(model.model.layers[0].mlp.up_proj) is nn.Linear

    def test_adapters_are_refused_unless_merged(self):
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"]))
        with pytest.raises(UnsupportedModelError, match="Merge"):
            calibrate_wina(model, tokens())
        plan = calibrate_wina(model.merge_and_unload(), tokens())
        assert len(plan.projections) == 14

    def test_quantised_layers_are_refused(self):
        class Quantised(nn.Linear):
            pass

        with pytest.raises(UnsupportedModelError, match="Quantised"):
            calibrate_wina(nn.Sequential(Quantised(2, 2)), [torch.ones(1, 2)])

    def test_convolutions_only(self):
        with pytest.raises(LayerNotFoundError, match="no linear layer"):
            calibrate_wina(nn.Sequential(nn.Conv2d(1, 1, 1)), [torch.ones(1, 1, 2, 2)])

    def test_a_block_without_tensors_cannot_be_allocated_greedily(self):
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(4, 4)

            def forward(self, x):
                return {"y": self.fc(x)}

        with pytest.raises(UnsupportedModelError, match="uniform"):
            calibrate_wina(nn.Sequential(Odd()), [torch.randn(1, 3, 4)], allocation="greedy")


def test_teal_is_wina_without_norms():
    a, b = llama(), llama()
    teal(a, tokens(), backend="mask", prefill=0.99)
    wina(b, tokens(), backend="mask", norms="none")
    with torch.no_grad():
        assert torch.equal(a(**tokens(1)[0]).logits, b(**tokens(1)[0]).logits)


def test_the_report_counts_every_byte():
    model = llama()
    total = sum(layer.weight_OI.numel() * 4 for layer in find_layers(model))
    wina(model, tokens(), sparsity=0.5, backend="mask")
    facts = plan_report(model)
    head = model.lm_head.weight.numel() * 4
    assert facts["bytes_dense"] == total
    assert facts["bytes_sparse"] == (total - head) / 2 + head
    assert facts["ceiling"] == pytest.approx(total / facts["bytes_sparse"])
    assert math.isnan(facts["realized"])


def test_a_note_says_when_nothing_takes_norms():
    result = wina(nn.Sequential(nn.Linear(8, 8)), [torch.randn(9, 8)], backend="mask")
    assert "as in TEAL" in result.notes[0]
