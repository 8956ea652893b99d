"""Evaluation of sparse autoencoders: the numbered checks of the specification, bad input, the traps of the field."""

import inspect
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from typer.testing import CliRunner

from weightsmith.analyze import (
    AttributeCodes,
    AttributeTask,
    GatedSAE,
    JumpReLUSAE,
    PatchedRuns,
    Prompts,
    Site,
    StandardSAE,
    TopKSAE,
    as_dictionary,
    collect_activations,
    collect_token_activations,
    evaluate_dictionary,
    find_sites,
    ioi_task,
    latent_scores,
    load_sae,
    mean_codes,
    mse_codes,
    sae_eval,
    save_sae,
    sparse_edits,
)
from weightsmith.analyze._sae_eval.dictionaries import load_dictionary
from weightsmith.analyze._sae_eval.edits import feature_weights, guided_edits
from weightsmith.analyze._sae_eval.evaluate import Change, CodesArm
from weightsmith.cli.main import app
from weightsmith.core.errors import (
    CalibrationError,
    CheckpointError,
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.dictionary import OnlineOrthogonalDictionary
from weightsmith.embedded import folder, load, load_tokenizer
from weightsmith.testing import tiny

VALUES = {"io": list("abcdef"), "s": list("abcdef"), "io_pos": ["first", "second"]}
SITE = Site.parse("1.resid@end")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompts(io, s, pos, *, pads=0, padding=0):
    """Rows such as ``7 io s 8 s 9``, of tokens that no tokenizer has written."""
    first, second = torch.where(pos == 0, io, s) + 10, torch.where(pos == 0, s, io) + 10
    seven, eight, nine = (torch.full_like(io, token) for token in (7, 8, 9))
    rows = torch.stack([seven, first, second, eight, s + 10, nine], dim=1)
    ids = torch.cat([torch.full((len(io), pads), padding), rows], dim=1)
    mask = torch.arange(6 + pads).expand(len(io), -1) >= pads
    at = {"io": 1 + pos, "s1": 2 - pos, "s2": torch.full_like(io, 4), "end": torch.full_like(io, 5)}
    answers = torch.stack([io + 10, s + 10], dim=1)
    return Prompts(ids, mask, {k: v + pads for k, v in at.items()}, {"io": io, "s": s, "io_pos": pos}, answers)


def toy_task(train=60, evaluation=24, seed=0, pads=0):
    draw = torch.Generator().manual_seed(seed)

    def parts(count):
        io = torch.randint(6, (count,), generator=draw)
        s = (io + torch.randint(1, 6, (count,), generator=draw)) % 6
        return io, s, torch.randint(2, (count,), generator=draw)

    io, s, pos = parts(evaluation)
    new = (s + 1 + (io - s - 1 + 1) % 5) % 6
    new = torch.where(new == io, (new + 1) % 6, new)
    changed = {"io": prompts(new, s, pos, pads=pads), "io_pos": prompts(io, s, 1 - pos, pads=pads)}
    return AttributeTask(prompts(*parts(train), pads=pads), prompts(io, s, pos, pads=pads), changed, VALUES)


def lively(name="llama"):
    """A tiny model whose weights are large enough for its predictions to depend on the prompt."""
    model, _ = tiny(name)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return model.eval()


def full_logits(model, given):
    mask = given.attention_mask.long()
    options = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    with torch.no_grad():
        return model(input_ids=given.input_ids, attention_mask=mask, use_cache=False, **options).logits[:, -1]


class Identity(nn.Module):
    """The complete dictionary: features are the activations."""

    def encode(self, x):
        return x

    def decode(self, f):
        return f


# --- supervised dictionaries


def test_codes_of_a_balanced_design_reconstruct_exactly():  # check 1
    a = torch.tensor([[2.0, 0.0], [0.0, 2.0], [3.0, 1.0], [1.0, 3.0]])
    attributes = {"one": torch.tensor([0, 1, 0, 1]), "two": torch.tensor([0, 0, 1, 1])}
    for fit in (mean_codes, mse_codes):
        codes = fit(a, attributes, dict.fromkeys(attributes, ("0", "1")))
        torch.testing.assert_close(codes.bias_D, torch.tensor([1.5, 1.5]))
        torch.testing.assert_close(codes.codes["one"], torch.tensor([[1.0, -1], [-1, 1]]))
        torch.testing.assert_close(codes.codes["two"], torch.tensor([[-0.5, -0.5], [0.5, 0.5]]))
        torch.testing.assert_close(codes.reconstruct(attributes), a)
        torch.testing.assert_close(codes.weights("one", attributes), torch.full((4,), 0.8))
        torch.testing.assert_close(codes.weights("two", attributes), torch.full((4,), 0.2))


def test_confounded_attributes_need_least_squares():  # check 2
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    attributes = {"one": torch.tensor([0, 0, 0, 1]), "two": torch.tensor([0, 0, 1, 1])}
    values = dict.fromkeys(attributes, ("0", "1"))
    means = mean_codes(a, attributes, values).reconstruct(attributes)
    expected = torch.tensor([[1.25, -1 / 6], [1.25, -1 / 6], [0.75, 5 / 6], [-0.25, 1.5]])
    torch.testing.assert_close(means, expected)
    assert (means - a).square().sum().item() == pytest.approx(0.583333, abs=1e-5)
    torch.testing.assert_close(mse_codes(a, attributes, values).reconstruct(attributes), a)


@pytest.mark.parametrize("fit", [mean_codes, mse_codes])
def test_codes_of_an_attribute_sum_to_zero_over_the_prompts(fit):  # check 3
    task, a = toy_task(), drawn(60, 7)
    codes = fit(a, task.train.attributes, VALUES)
    for name, code in codes.codes.items():
        total = torch.bincount(task.train.attributes[name], minlength=len(code)).float() @ code
        torch.testing.assert_close(total, torch.zeros(7), atol=1e-4, rtol=0)


def test_least_squares_is_the_projection_on_the_design():
    task, a = toy_task(), drawn(60, 7)
    attributes = task.train.attributes
    design = torch.cat(
        [torch.ones(60, 1), *(nn.functional.one_hot(attributes[n], len(VALUES[n])).float() for n in VALUES)], dim=1
    ).double()
    expected = design @ (torch.linalg.pinv(design) @ a.double())
    torch.testing.assert_close(
        mse_codes(a, attributes, VALUES).reconstruct(attributes).double(), expected, atol=1e-5, rtol=0
    )


def test_edits_commute_with_rotations():  # check 10
    task, a = toy_task(), drawn(60, 7)
    turn = torch.linalg.qr(drawn(7, 7, seed=1)).Q
    attributes, new = task.train.attributes, (task.train.attributes["io"] + 1) % 6
    for fit in (mean_codes, mse_codes):
        plain, turned = fit(a, attributes, VALUES), fit(a @ turn, attributes, VALUES)
        edited = plain.edit(a, "io", attributes["io"], new) @ turn
        torch.testing.assert_close(turned.edit(a @ turn, "io", attributes["io"], new), edited, atol=1e-5, rtol=0)


def test_an_edit_to_the_same_value_changes_no_bit():  # check 6
    task, a = toy_task(), drawn(60, 7)
    codes = mean_codes(a, task.train.attributes, VALUES)
    assert torch.equal(codes.edit(a, "io", task.train.attributes["io"], task.train.attributes["io"]), a)


def test_values_without_examples_are_refused_when_used():
    codes = mean_codes(torch.eye(2), {"io": torch.tensor([0, 1])}, {"io": ("Ann", "Bea", "Bob")})
    with pytest.raises(CalibrationError, match="the fit saw no example of io='Bob'"):
        codes.of("io", torch.tensor([2]))


def test_an_attribute_with_one_value_has_no_code():
    for fit in (mean_codes, mse_codes):
        codes = fit(drawn(4, 3), {"x": torch.zeros(4, dtype=torch.long)}, {"x": ("only",)})
        torch.testing.assert_close(codes.codes["x"], torch.zeros(1, 3), atol=1e-6, rtol=0)


def test_codes_are_saved_and_loaded(tmp_path):
    task, a = toy_task(), drawn(60, 7)
    codes = mean_codes(a, task.train.attributes, VALUES)
    codes.save(tmp_path / "codes.safetensors")
    again = AttributeCodes.load(tmp_path / "codes.safetensors")
    assert torch.equal(again.reconstruct(task.train.attributes), codes.reconstruct(task.train.attributes))
    assert again.values == VALUES
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds no codes of attributes"):
        AttributeCodes.load(tmp_path / "other.safetensors")


def test_wrong_numbers_of_prompts_are_refused():
    with pytest.raises(ShapeError, match="attribute 'x': found 3 prompts"):
        inspect.unwrap(mean_codes)(drawn(4, 3), {"x": torch.zeros(3, dtype=torch.long)}, {"x": ("only",)})
    with pytest.raises(ShapeError, match="expected 4 prompts, values from 0 to 0"):
        mean_codes(drawn(4, 3), {"x": torch.ones(4, dtype=torch.long)}, {"x": ("only",)})


# --- edits and features


def naive_edits(delta, decoder, target, size):
    current, used = torch.zeros_like(target), torch.zeros_like(delta, dtype=torch.bool)
    for _ in range(size):
        steps = current[:, None] + delta[:, :, None] * decoder - target[:, None]  # batch x hidden x features
        distance = steps.norm(dim=2).masked_fill(used, torch.inf)
        best, chosen = distance.min(1)
        for row in range(len(target)):
            if best[row] < (current[row] - target[row]).norm():
                current[row] += delta[row, chosen[row]] * decoder[chosen[row]]
                used[row, chosen[row]] = True
    return current


def test_greedy_edits_equal_the_naive_search():  # check 11
    delta, decoder, target = drawn(9, 20), drawn(20, 6, seed=1), drawn(9, 6, seed=2)
    edits = sparse_edits(delta, decoder, target, (1, 3, 8))
    for size, edit in edits.items():
        torch.testing.assert_close(edit.change_PD, naive_edits(delta, decoder, target, size), atol=1e-5, rtol=1e-5)
        assert (edit.touched_PJ.sum(1) <= size).all()


def test_edits_come_nearer_and_reach_the_target_with_an_exact_dictionary():  # check 7
    basis = torch.linalg.qr(drawn(6, 6)).Q
    delta = drawn(9, 6, seed=1) * (torch.arange(6) < 4)  # four features change
    target = delta @ basis
    edits = sparse_edits(delta, basis, target, range(1, 7))
    distances = torch.stack([(edit.change_PD - target).norm(dim=1) for edit in edits.values()])
    assert (distances.diff(dim=0) <= 1e-6).all()
    torch.testing.assert_close(edits[4].change_PD, target, atol=1e-5, rtol=0)
    torch.testing.assert_close(edits[6].change_PD, edits[4].change_PD, atol=1e-5, rtol=0)


def test_a_task_that_there_is_not_is_refused():
    with pytest.raises(HyperparameterError, match="task: found 'gender', expected 'ioi'"):
        inspect.unwrap(sae_eval)(nn.Linear(2, 2), task="gender")


@pytest.mark.parametrize("sizes", [(), (0,), (1, 7)])
def test_edit_sizes_out_of_range_are_refused(sizes):
    with pytest.raises(HyperparameterError, match="edit sizes"):
        sparse_edits(drawn(2, 6), drawn(6, 3), drawn(2, 3), sizes)


def test_feature_weights_sum_to_one_at_any_scale():  # check 8
    f, decoder = drawn(5, 8).relu(), drawn(8, 4, seed=1)
    weights = feature_weights(f, decoder)
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    torch.testing.assert_close(feature_weights(7 * f, decoder), weights)
    torch.testing.assert_close(feature_weights(f, 0.1 * decoder), weights)


def test_weights_of_an_empty_reconstruction_are_undefined():
    assert feature_weights(torch.tensor([[0.0, 0.0]]), torch.eye(2)).isnan().all()


def test_f1_of_an_indicator_an_always_active_and_a_dead_feature():  # check 9
    numbers = torch.tensor([0, 0, 1, 1])
    active = torch.stack([numbers == 0, numbers >= 0, numbers < 0], dim=1)
    scores = latent_scores(active, numbers, 2)
    torch.testing.assert_close(scores.f1_VJ[0, :2], torch.tensor([1.0, 2 / 3]))
    assert scores.f1_VJ[:, 2].eq(-math.inf).all()
    torch.testing.assert_close(scores.group_f1_J[:2], torch.tensor([1.0, 1.0]))
    dead = latent_scores(torch.zeros(4, 3, dtype=torch.bool), numbers, 2)
    assert dead.best.tolist() == [0, 0]
    assert dead.occluded_share == 1


def test_a_value_split_over_features_is_told_by_their_union():
    numbers = torch.arange(40) % 2
    split = torch.stack([(numbers == 0) & (torch.arange(40) // 10 == part) for part in range(4)], dim=1)
    scores = latent_scores(split, numbers, 2)
    assert scores.best[0].item() == pytest.approx(2 * 0.25 / 1.25)
    assert scores.union_f1[0].item() == 1
    assert scores.union_size[0].item() == 4


def test_values_that_do_not_occur_are_left_out():
    scores = latent_scores(torch.ones(3, 2, dtype=torch.bool), torch.tensor([0, 2, 2]), 4)
    assert len(scores.best) == 2
    assert scores.f1_VJ.shape == (4, 2)


def test_guided_edits_take_no_inactive_features():
    f1 = torch.tensor([[1.0, 0.9, 0.8], [0.1, 0.2, 0.3]])
    clean, changed = torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    edit = guided_edits(clean, changed, torch.eye(3), f1, torch.tensor([0]), torch.tensor([1]), (1, 4))
    assert list(edit) == [4], "an odd number has no halves"
    assert edit[4].change_PD.tolist() == [[0.0, 0.0, -2.0]]
    assert edit[4].touched_PJ.tolist() == [[False, False, True]]


# --- sites and patched passes

ARCHITECTURES = ("llama", "qwen3", "gemma3", "gpt2", "opt", "mixtral")
SITES = ("0.resid@end", "1.resid@end", "1.z.1@end", "1.q.3@end", "1.k.1@io,1.v.0@s2", "0.z.0@s1,1.resid@end")


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("sites", SITES)
def test_clean_patches_change_no_bit_and_short_passes_equal_whole_ones(name, sites):  # check 12
    model, task = lively(name), toy_task()
    chosen = [Site.parse(site) for site in sites.split(",")]
    runs = PatchedRuns(model, task.evaluation, chosen)
    clean = runs.logits({})
    assert torch.equal(runs.logits(runs.activations), clean)
    torch.testing.assert_close(clean, full_logits(model, task.evaluation), atol=1e-4, rtol=1e-4)
    target = collect_activations(model, task.counterfactuals["io"], chosen)
    patched = runs.logits(target)
    assert torch.equal(runs.logits({}), clean), "a patched pass leaves nothing behind"
    assert (patched - clean).abs().max() > 1e-4
    whole = PatchedRuns(model, task.evaluation, [*chosen, Site.parse("0.z.0@s1"), Site.parse("0.resid@io")])
    torch.testing.assert_close(whole.logits(target), patched, atol=1e-4, rtol=1e-4)
    assert all("forward" not in vars(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_last_block_s_output_decides_everything():
    model, task = lively(), toy_task()
    runs = PatchedRuns(model, task.evaluation, [SITE])
    changed = task.counterfactuals["io"]
    patched = runs.logits(collect_activations(model, changed, [SITE]))
    torch.testing.assert_close(patched, full_logits(model, changed), atol=1e-4, rtol=1e-4)


def test_heads_are_those_of_the_projections():
    given = toy_task().evaluation
    for name, fused in (("llama", False), ("gpt2", True)):
        model = lively(name)
        block = (model.transformer.h if fused else model.model.layers)[1]
        seen = {}
        modules = (
            {"qkv": block.attn.c_attn, "o": block.attn.c_proj}
            if fused
            else {
                "q": block.self_attn.q_proj,
                "k": block.self_attn.k_proj,
                "v": block.self_attn.v_proj,
                "o": block.self_attn.o_proj,
            }
        )
        hooks = [
            m.register_forward_hook(
                lambda _, args, out, key=key, seen=seen: seen.update({key: args[0] if key == "o" else out})
            )
            for key, m in modules.items()
        ]
        full_logits(model, given)
        for hook in hooks:
            hook.remove()
        if fused:
            seen |= dict(zip("qkv", seen["qkv"].chunk(3, dim=-1), strict=True))
        for kind, head in (("q", 3), ("k", 1), ("v", 1), ("z", 3)):
            site = Site(1, kind, "end", head)
            expected = seen["o" if kind == "z" else kind][:, -1, head * 8 : head * 8 + 8]
            torch.testing.assert_close(collect_activations(model, given, [site])[site], expected, atol=1e-5, rtol=1e-5)


def test_heads_of_interleaved_projections():
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model, given, seen = GPTNeoXForCausalLM(config).eval(), toy_task().evaluation, []
    hook = model.gpt_neox.layers[0].attention.query_key_value.register_forward_hook(
        lambda _, args, out: seen.append(out[:, -1].view(-1, 2, 3, 8))
    )
    full_logits(model, given)
    hook.remove()
    for number, kind in enumerate("qkv"):
        site = Site(0, kind, "end", 1)
        found = collect_activations(model, given, [site])[site]
        torch.testing.assert_close(found, seen[0][:, 1, number], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", ["23", "1.resid", "1.resid.2@end", "1.z@end", "1.m.2@end", "-1.resid@end", ""])
def test_names_that_are_no_sites_are_refused(text):
    with pytest.raises(HyperparameterError, match="site"):
        Site.parse(text)


@pytest.mark.parametrize("text", ["9.resid@end", "1.z.4@end", "1.k.2@end"])
def test_sites_that_a_model_does_not_have_are_refused(text):
    with pytest.raises(HyperparameterError, match=rf"site {text}"):
        collect_activations(lively(), toy_task().train, [Site.parse(text)])


def test_unknown_positions_are_refused():
    with pytest.raises(LayerNotFoundError, match="expected one of"):
        collect_activations(lively(), toy_task().train, [Site.parse("1.resid@middle")])


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma3"])
def test_left_padding_changes_nothing(name):
    """The trap: one prompt with 0, 1, 3 and 8 pads on the left has the same logits and activations."""
    model = lively(name)
    plain = PatchedRuns(model, toy_task().evaluation, [SITE])
    target = collect_activations(model, toy_task().counterfactuals["io"], [SITE])
    for pads in (1, 3, 8):
        runs = PatchedRuns(model, toy_task(pads=pads).evaluation, [SITE])
        torch.testing.assert_close(runs.activations[SITE], plain.activations[SITE], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(runs.logits({}), plain.logits({}), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(runs.logits(target), plain.logits(target), atol=1e-4, rtol=1e-4)


def test_recorded_activations_are_copies():
    """The trap: the next operation works in place, as ReLU(inplace=True) does."""
    model, given = lively(), toy_task().train
    expected = collect_activations(model, given, [Site(0, "resid")])[Site(0, "resid")]
    hook = model.model.layers[1].register_forward_pre_hook(
        lambda _, args: args[0].relu_() and None if False else (args[0].relu_(),)
    )
    runs = PatchedRuns(model, given, [Site(0, "resid")])
    hook.remove()
    assert torch.equal(runs.activations[Site(0, "resid")], expected)
    assert (expected < 0).any()


def test_start_tokens_are_left_out_wherever_they_are():
    """The trap: packed texts have start tokens in the middle."""
    model = lively()
    start = model.config.bos_token_id
    ids = torch.tensor([start, 9, 10, start, 11, 12])
    rows = collect_token_activations(model, [{"input_ids": ids}, {"input_ids": ids[:3]}], Site(0, "resid"))
    with torch.no_grad():
        hidden = model(ids[None], output_hidden_states=True).hidden_states[1][0]
    torch.testing.assert_close(rows, torch.cat([hidden[[1, 2, 4, 5]], hidden[[1, 2]]]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_read_in_float32(dtype):
    model = lively().to(dtype)
    runs = PatchedRuns(model, toy_task().evaluation, [SITE])
    assert runs.activations[SITE].dtype == runs.logits({}).dtype == torch.float32
    assert torch.equal(runs.logits(runs.activations), runs.logits({}))


def test_nan_activations_are_refused():
    model = lively()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"activations of site 1\.resid@end"):
        PatchedRuns(model, toy_task().evaluation, [SITE])
    with pytest.raises(NonFiniteError, match="activations of site"):
        evaluate_dictionary(model, {}, toy_task(), [SITE])


# --- the evaluation


def evaluated(dictionaries=None, model=None, task=None, sites=(SITE,), **options):
    model = lively() if model is None else model
    return evaluate_dictionary(model, dictionaries or {}, task or toy_task(), list(sites), **options)


def test_measures_of_the_identity_and_of_the_mean():  # checks 4, 5 and 6
    width = 32
    result = evaluated({"all": Identity()}, edit_sizes=(1, width))
    rows = {row["layer"]: row for row in result.layers}
    clean = rows["io: no edit"]["logit_difference"]
    assert rows["io: all"]["logit_difference"] == clean, "bit-equal"
    assert rows["io: all"]["sufficiency"] == 1
    assert rows["io: all"]["necessity"] == 1
    assert rows["io: all"]["variance_explained"] == 1
    assert rows["io: mean activation"]["sufficiency"] == 0
    assert rows["io: mean activation"]["necessity"] == pytest.approx(0, abs=1e-5)
    assert dict(result.curves["edit accuracy, io: all"])[width] == 1


def test_one_dictionary_per_site_and_all_at_once():
    sites = [Site.parse("1.z.0@end"), Site.parse("1.z.1@end"), Site.parse("1.resid@end")]
    result = evaluated({"all": [Identity(), Identity(), Identity()]}, sites=sites)
    assert next(row for row in result.layers if row["layer"] == "io: all")["sufficiency"] == 1
    with pytest.raises(
        HyperparameterError, match="dictionary 'all': found 1 of them, expected one for each of 3 sites"
    ):
        evaluated({"all": Identity()}, sites=sites)


def test_batches_do_not_change_the_result():
    one, other = (evaluated({"all": Identity()}, batch_size=size) for size in (7, 64))
    for row, same in zip(one.layers, other.layers, strict=True):
        assert row["layer"] == same["layer"]
        for key in ("logit_difference", "sufficiency", "edit_accuracy", "f1"):
            assert row.get(key) == pytest.approx(same.get(key), abs=1e-4)


def test_the_evaluation_changes_nothing():
    model = lively().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluated(model=model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert model.config.use_cache


def test_a_site_without_influence_is_refused():
    model = lively()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    with pytest.raises(CalibrationError, match=r"sites 1\.resid@end do not mediate the task"):
        evaluated(model=model)


def test_an_attribute_that_is_not_mediated_is_not_edited():
    """At the last token before everything else, the answer is not yet there."""
    task = toy_task()
    same = AttributeTask(task.train, task.evaluation, {"io_pos": task.evaluation}, VALUES)
    result = evaluated(task=same)
    assert not result.curves
    assert any("'io_pos' is not edited" in note for note in result.notes)


def test_empty_reconstructions_are_left_out_and_counted():
    dead = StandardSAE(32, 4, {"b_enc": -torch.ones(4), "W_dec": drawn(4, 32)})
    result = evaluated({"dead": dead}, edit_sizes=(1, 2))
    row = next(row for row in result.layers if row["layer"] == "io: dead")
    assert math.isnan(row["weight_removed"])
    assert row["dead_share"] == 1
    assert row["f1"] == 0
    assert any("24 reconstructions have no active feature" in note for note in result.notes)


def test_negative_coefficients_are_edited():
    class Negative(Identity):
        def encode(self, x):
            return -x

        def decode(self, f):
            return -f

    rows = [
        next(row for row in evaluated({"x": each}).layers if row["layer"] == "io: x")
        for each in (Identity(), Negative())
    ]
    assert rows[0]["edit_accuracy"] == rows[1]["edit_accuracy"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sites": ()}, HyperparameterError, "sites: found none"),
        ({"edit_sizes": (0,)}, HyperparameterError, "edit_sizes"),
        ({"edit_sizes": (1, 33)}, HyperparameterError, "expected from 1 to 32 features"),
        ({"batch_size": 0}, HyperparameterError, "batch_size"),
        ({"dictionaries": {"x": StandardSAE(16, 4)}}, ShapeError, "activations of 32 features"),
        ({"dictionaries": {"x": object()}}, HyperparameterError, "expected encode and decode"),
        ({"model": tiny("t5")[0]}, UnsupportedModelError, "expected a causal language model"),
        ({"model": tiny("bert")[0]}, UnsupportedModelError, "expected a causal language model"),
        ({"model": tiny("mlp")[0]}, UnsupportedModelError, "expected a causal language model"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        evaluated(**options)


def test_prompts_that_do_not_belong_together_are_refused():
    task = toy_task()
    with pytest.raises(CalibrationError, match="counterfactuals 'io'"):
        AttributeTask(task.train, task.evaluation[:3], task.counterfactuals, VALUES)
    with pytest.raises(CalibrationError, match="attributes of 'train'"):
        AttributeTask(task.train, task.evaluation, {}, {"io": VALUES["io"]})


# --- prompts


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(folder("smollm2"))


def test_prompts_of_indirect_object_identification(tokenizer):
    task = ioi_task(tokenizer, train_prompts=200, evaluation_prompts=40)
    for given in (task.train, task.evaluation, *task.counterfactuals.values()):
        assert given.attention_mask.all(), "all parts that differ are single tokens"
        rows = torch.arange(len(given))
        io, s = given.answers.T
        for name, token in (("io", io), ("s1", s), ("s2", s)):
            assert torch.equal(given.input_ids[rows, given.positions[name]], token)
        assert (given.positions["s2"] > given.positions["s1"]).all()
        assert torch.equal((given.positions["io"] > given.positions["s1"]).long(), given.attributes["io_pos"])
        assert (io != s).all()
        assert [tokenizer.decode(token) for token in io] == [f" {task.values['io'][n]}" for n in given.attributes["io"]]
    for name, changed in task.counterfactuals.items():
        same = [n for n in VALUES if n != name]
        assert all(torch.equal(changed.attributes[n], task.evaluation.attributes[n]) for n in same)
        assert (changed.attributes[name] != task.evaluation.attributes[name]).all()
    half = len(task.values["io"]) // 2
    assert int(task.evaluation.attributes["io"].max()) < half <= int(task.counterfactuals["io"].attributes["io"].min())
    assert int(task.counterfactuals["io"].attributes["io"].max()) < int(task.counterfactuals["s"].attributes["s"].min())


def test_prompts_of_a_tokenizer_with_a_start_token():
    """One that lower-cases, adds a token before and after, and knows no byte pairs: MiniLM's."""
    tokenizer = load_tokenizer(folder("minilm"))
    task = ioi_task(tokenizer, ["mary", "john", "anna", "peter", "paul", "mark", "david", "tom"], train_prompts=20)
    assert (task.train.input_ids[:, 0] == tokenizer.cls_token_id).all()
    assert (task.train.positions["io"] >= 3).all()


def test_the_same_seed_draws_the_same_prompts(tokenizer):
    first, same, other = (ioi_task(tokenizer, train_prompts=30, seed=seed).train.input_ids for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_names_that_are_several_tokens_are_listed(tokenizer):
    with pytest.raises(CalibrationError, match=r"not single tokens.*'Bartholomew Z'"):
        ioi_task(tokenizer, ["Mary", "John", "Bartholomew Z"])
    with pytest.raises(CalibrationError, match="expected at least 8"):
        ioi_task(tokenizer, ["Mary", "John"])
    with pytest.raises(CalibrationError, match="the model has no tokenizer"):
        ioi_task(None)
    with pytest.raises(HyperparameterError, match="count"):
        ioi_task(tokenizer, count=3)


# --- dictionaries


def sae(cls, d_in=6, d_sae=10, seed=0, **options):
    tensors = {}
    for number, name in enumerate(cls.parameters_of):
        shape = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}.get(name, (d_sae,))
        tensors[name] = 0.5 * drawn(*shape, seed=seed + number)
    made = cls(d_in, d_sae, tensors, **options).requires_grad_(False)
    made.subtracts_bias = seed % 2 == 0
    return made


KINDS = [
    (StandardSAE, {}),
    (JumpReLUSAE, {}),
    (TopKSAE, {"k": 3}),
    (TopKSAE, {"k": 3, "rescaled": True}),
    (GatedSAE, {}),
]


@pytest.mark.parametrize(("cls", "options"), KINDS, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_folded_scale_changes_no_reconstruction(cls, options, seed):
    """The trap: scale, encode, decode, unscale; the decoder's bias is divided as well."""
    made, x = sae(cls, seed=seed, **options), drawn(20, 6, seed=9)
    expected = made(x * 2.5) / 2.5
    active = made.encode(x * 2.5) != 0
    made.fold_scale(2.5)
    torch.testing.assert_close(made(x), expected)
    assert torch.equal(made.encode(x) != 0, active)


@pytest.mark.parametrize(("cls", "options"), KINDS, ids=str)
def test_folding_divides_the_coefficients_only_where_they_have_the_norm_of_their_decoder_row(cls, options):
    made, x = sae(cls, **options), drawn(20, 6, seed=9)
    expected = made.encode(x * 2.5) / (2.5 if options.get("rescaled") else 1.0)
    made.fold_scale(2.5)
    torch.testing.assert_close(made.encode(x), expected)
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(HyperparameterError, match="scale"):
            made.fold_scale(scale)
    torch.testing.assert_close(made.encode(x), expected)


@pytest.mark.parametrize(("cls", "options"), KINDS, ids=str)
def test_autoencoders_are_saved_and_loaded(cls, options, tmp_path):
    made, x = sae(cls, **options), drawn(20, 6, seed=9)
    save_sae(made, tmp_path / "sae", metadata={"model_name": "tiny"})
    again = load_sae(tmp_path / "sae")
    assert type(again) is cls
    torch.testing.assert_close(again(x), made(x), atol=0, rtol=0)
    dictionary = as_dictionary(again, 6)
    torch.testing.assert_close(dictionary.decode(dictionary.encode(x)), made(x), atol=1e-5, rtol=1e-5)


def test_coefficients_are_those_of_the_formulas():
    x = drawn(20, 6, seed=9)
    one = sae(StandardSAE)
    torch.testing.assert_close(one.encode(x), ((x - one.b_dec) @ one.W_enc + one.b_enc).relu())
    jump = sae(JumpReLUSAE)
    pre = (x - jump.b_dec) @ jump.W_enc + jump.b_enc
    torch.testing.assert_close(jump.encode(x), torch.where((pre > jump.threshold) & (pre > 0), pre, 0))
    top = sae(TopKSAE, k=3)
    assert ((top.encode(x) > 0).sum(1) <= 3).all()
    gated = sae(GatedSAE)
    pre = (x - gated.b_dec) @ gated.W_enc
    magnitude = ((x - gated.b_dec) @ (gated.W_enc * gated.r_mag.exp()) + gated.b_mag).relu()
    torch.testing.assert_close(gated.encode(x), magnitude * (pre + gated.b_gate > 0))


OLD = {"d_in": 6, "d_sae": 10, "architecture": "standard", "activation_fn_str": "relu", "hook_name": "blocks.0"}


def written(folder, config, cls=StandardSAE, **options):
    save_sae(sae(cls, **options), folder, overwrite=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def test_configurations_of_both_generations_are_read(tmp_path):
    top = OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}
    assert load_sae(written(tmp_path / "a", OLD)).architecture == "standard"
    assert load_sae(written(tmp_path / "b", top)).k == 4
    new = {"d_in": 6, "d_sae": 10, "architecture": "standard", "metadata": {"sae_lens_version": "6.0"}}
    assert load_sae(written(tmp_path / "c", new)).subtracts_bias, "the default"
    assert not load_sae(written(tmp_path / "d", new | {"apply_b_dec_to_input": False})).subtracts_bias
    assert load_sae(written(tmp_path / "e", {**new, "metadata": {}, "meta": {}})).architecture == "standard"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "topk"}, "k of a TopK autoencoder: expected a whole number"),
        ({"activation_fn_str": "topk"}, "k of a TopK autoencoder: expected a whole number"),
        ({"activation_fn_str": None}, "architecture and activation function"),
        ({"activation_fn_str": "tanh-relu"}, "architecture and activation function"),
        ({"architecture": None, "activation_fn_str": None}, "architecture and activation function"),
        ({"architecture": "matryoshka"}, "architecture and activation function"),
        ({"normalize_activations": "expected_average_only_in"}, "Fold the scale"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations: found layer_norm"),
        ({"d_in": None}, "d_in and d_sae"),
        ({"architecture": "jumprelu"}, r"lacks \['threshold'\]"),
    ],
)
def test_configurations_that_would_be_read_wrongly_are_refused(tmp_path, change, message):
    """The trap: a TopK autoencoder read as ReLU reconstructs badly without an error."""
    with pytest.raises(CheckpointError, match=message):
        load_sae(written(tmp_path / "sae", OLD | change))


def test_damaged_autoencoders_are_refused(tmp_path):
    with pytest.raises(ShapeError, match="W_enc of the autoencoder"):
        load_sae(written(tmp_path / "a", OLD | {"d_sae": 9}))
    with pytest.raises(HyperparameterError, match="k: found 11"):
        load_sae(written(tmp_path / "b", OLD | {"architecture": "topk", "k": 11}))
    with pytest.raises(CheckpointError, match="cannot read"):
        load_sae(tmp_path / "none")
    file = written(tmp_path / "c", OLD) / "sae_weights.safetensors"
    save_file(load_file(file) | {"b_enc": torch.full((10,), math.nan)}, file)
    with pytest.raises(NonFiniteError, match="b_enc of the autoencoder"):
        load_sae(tmp_path / "c")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"weights: found \[\]"):
        load_sae(tmp_path / "c")


def test_estimators_are_dictionaries():
    x = drawn(200, 6).numpy()
    principal = PCA(3).fit(x)
    made = as_dictionary(principal, 6)
    rows = torch.from_numpy(x)
    np.testing.assert_allclose(
        made.decode(made.encode(rows)), principal.inverse_transform(principal.transform(x)), atol=1e-4
    )
    own = OnlineOrthogonalDictionary(random_state=0).fit(x)
    made = as_dictionary(own, 6)
    torch.testing.assert_close(made.decode(made.encode(rows)), rows, atol=1e-3, rtol=1e-3)


def test_components_are_read_from_a_file(tmp_path):
    own = OnlineOrthogonalDictionary(random_state=0).fit(drawn(200, 6).numpy())
    save_file({"components": torch.tensor(own.components_).contiguous()}, tmp_path / "own.safetensors")
    made = load_dictionary(tmp_path / "own.safetensors")
    x = drawn(20, 6, seed=1)
    torch.testing.assert_close(made.encode(x), torch.tensor(own.transform(x.numpy())), atol=1e-4, rtol=1e-4)
    save_file({"atoms": torch.eye(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="components"):
        load_dictionary(tmp_path / "other.safetensors")


def test_decoders_that_are_not_affine_are_refused():
    class Curved(Identity):
        def decode(self, f):
            return f**3

    with pytest.raises(HyperparameterError, match="a decoder that is not affine"):
        as_dictionary(Curved(), 6)

    class Flat(Identity):
        def decode(self, f):
            return f[:, :3]

    with pytest.raises(ShapeError, match="reconstruction"):
        as_dictionary(Flat(), 6)


# --- phenomena on synthetic activations (the claim has the whole of them)


def test_supervised_edits_of_synthetic_activations_are_exact():
    draw = torch.Generator().manual_seed(0)
    u, v, w = (nn.functional.normalize(drawn(n, 64, seed=n), dim=1) for n in (20, 21, 1))
    io, s, pos = (
        torch.randint(20, (5000,), generator=draw),
        torch.randint(20, (5000,), generator=draw),
        torch.randint(2, (5000,), generator=draw),
    )
    x = u[io] + v[:20][s] + w[0] * (2 * pos[:, None] - 1) + 0.05 * torch.randn(5000, 64, generator=draw)
    attributes = {"io": io, "s": s, "io_pos": pos}
    codes = mean_codes(
        x, attributes, {"io": list(map(str, range(20))), "s": list(map(str, range(20))), "io_pos": ["0", "1"]}
    )
    new = (io + 1) % 20
    change = Change("io", attributes, new, x, x - u[io] + u[new])
    edited = x + CodesArm({SITE: codes}).edits(SITE, change, (2,))["swap"][0]
    assert ((edited @ u.T - (edited - u[new]) @ v[:20].T.mean(1)[:, None]).argmax(1) == new).float().mean() > 0.95


# --- the command


@pytest.mark.slow
def test_a_site_of_smollm2_and_its_supervised_dictionary():
    model, tokenizer = load("smollm2")
    task = ioi_task(tokenizer, train_prompts=512, evaluation_prompts=64)
    assert [str(site) for site in find_sites(model, task)] == ["23.resid@end"]
    rows = {row["layer"]: row for row in evaluate_dictionary(model, {}, task, [SITE.parse("23.resid@end")]).layers}
    assert rows["io: supervised, means"]["sufficiency"] > 0.93
    assert rows["io: supervised, means"]["necessity"] > 0.8
    assert rows["io: supervised, means"]["edit_accuracy"] > 0.8
    assert rows["io: no edit"]["edit_accuracy"] <= 0.1
    assert rows["io: principal components"]["edit_accuracy"] <= 0.25


@pytest.mark.slow
def test_the_command_line(tmp_path):
    line = ["analyze", "sae-eval", "embedded:smollm2", "--train-prompts", "128", "--evaluation-prompts", "16"]
    save_sae(sae(TopKSAE, 576, 8, k=2), tmp_path / "sae")
    line += ["--names", "8", "--sites", "23.resid@end", "--dictionary", str(tmp_path / "sae")]
    done = CliRunner().invoke(
        app, [*line, "--json", str(tmp_path / "r.json"), "--report", str(tmp_path / "r.html"), "--seed", "3"]
    )
    assert done.exit_code == 0, done.output
    names = [row["layer"] for row in json.loads((tmp_path / "r.json").read_text())["layers"]]
    assert f"io: {tmp_path / 'sae'}" in names
    assert (tmp_path / "r.html").is_file()


def test_a_model_that_does_not_do_the_task_is_refused(tokenizer):
    model = lively()
    model.resize_token_embeddings(len(tokenizer))
    with pytest.raises(CalibrationError, match="the model does not do the task"):
        sae_eval(model, tokenizer=tokenizer, train_prompts=8, evaluation_prompts=8)
    with pytest.raises(CalibrationError, match="the model has no tokenizer"):
        sae_eval(model)
