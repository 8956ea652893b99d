"""D2NWG on large models: layers drawn anew, and descriptions of tasks as text."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from weightsmith.core.errors import (
    CalibrationError,
    HyperparameterError,
    LayerNotFoundError,
    NonFiniteError,
    ShapeError,
)
from weightsmith.core.models import find_layers
from weightsmith.embedded import load
from weightsmith.predict import (
    OrderedEncoder,
    WeightDiffusion,
    WeightVAE,
    WeightZoo,
    d2nwg_layers,
    describe,
    draw_layer,
)

SMALL = {"chunk": 32, "candidates": 1, "latent": 8, "vae_steps": 50, "steps": 5, "batch_size": 16, "sampler_steps": 3}
IDS = {"input_ids": torch.randint(50, (2, 8), generator=torch.Generator().manual_seed(0))}
LABELLED = {**IDS, "labels": torch.tensor([0, 1])}


def llama():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=True, **sizes))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16))


def bert():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=50, **sizes))


def perceptron():
    return nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))


def images():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 3))


MODELS = [
    (llama, IDS),
    (gpt2, IDS),
    (bert, LABELLED),
    (perceptron, (torch.randn(8, 12), torch.randint(3, (8,)))),
    (images, (torch.randn(4, 1, 8, 8), torch.randint(3, (4,)))),
]


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(autouse=True, scope="module")
def quick_collections():
    """Accelerate collects garbage after every training: not all of what transformers has imported, each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(("build", "batch"), MODELS, ids=[build.__name__ for build, _ in MODELS])
def test_only_chosen_layers_change_and_only_for_the_better(build, batch):
    torch.manual_seed(0)
    model = build()
    before, losses = weights(model), iter([9.0, *(loss for rise in range(20) for loss in (8.0 - 0.1 * rise, 99.0))])
    result = d2nwg_layers(model, [batch], share=0.25, evaluate=lambda _: next(losses), **SMALL)
    after = weights(model)
    rows = result.layers
    assert [row["kept"] for row in rows] == [number % 2 == 0 for number in range(len(rows))]
    assert all(row["after"] < row["before"] if row["kept"] else row["after"] == row["before"] for row in rows)
    assert result.totals["kept"] == (len(rows) + 1) // 2
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{row['layer']}.weight" for row in rows if row["kept"]}


@pytest.mark.parametrize("build", [llama, gpt2])
def test_bfloat16_and_the_models_own_loss(build):
    torch.manual_seed(0)
    model = build().bfloat16().eval()
    result = d2nwg_layers(model, [IDS], share=0.01, include=("*attn*", "*down_proj"), **SMALL)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
    assert result.totals["loss_after"] <= result.totals["loss_before"]
    own = model(**IDS, labels=IDS["input_ids"]).loss.item()
    assert own == pytest.approx(result.totals["loss_after"], rel=1e-3)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_an_error_gives_all_weights_back():
    torch.manual_seed(0)
    model = perceptron()
    before, calls = weights(model), iter([9.0, 8.0, 7.0])

    with pytest.raises(StopIteration):
        d2nwg_layers(model, [MODELS[3][1]], share=1.0, evaluate=lambda _: next(calls), **SMALL)
    assert same(before, weights(model))


def test_share_takes_the_highest_ratios_of_a_kind():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(4)])
    with torch.no_grad():
        model[2].weight += 3 * torch.randn(16, 1) @ torch.randn(1, 16)
    result = d2nwg_layers(model, [torch.randn(2, 16)], share=0.25, evaluate=lambda _: 0.0, **SMALL)
    assert [row["layer"] for row in result.layers] == ["2"]
    result = d2nwg_layers(model, [torch.randn(2, 16)], share=0.6, evaluate=lambda _: 0.0, **SMALL)
    ratios = [row["signal_to_noise"] for row in result.layers]
    assert len(ratios) == 3
    assert ratios == sorted(ratios, reverse=True)


@pytest.mark.slow
def test_processes_and_seeds_draw_the_same():
    torch.manual_seed(0)
    models = [perceptron()]
    models += [copy.deepcopy(models[0]) for _ in range(2)]
    for model, workers, seed in zip(models, (1, 2, 1), (3, 3, 4), strict=True):
        falling = iter(range(100, 0, -1))
        generator = torch.Generator().manual_seed(seed)
        options = {"share": 1.0, "workers": workers, "generator": generator}
        d2nwg_layers(model, [MODELS[3][1]], evaluate=lambda _, left=falling: next(left), **options, **SMALL)
    first, second, third = (model[0].weight for model in models)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(first, third)


def test_chunks_are_drawn_for_their_place():
    scale = torch.arange(1.0, 9.0).repeat_interleave(4)[:, None] * torch.tensor([1.0, -1.0] * 8)
    matrix = scale + 0.05 * torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    draws = draw_layer(matrix[None], chunk=16, latent=4, vae_steps=200, steps=300, batch_size=32, candidates=2)
    assert draws.error < 0.05
    spread = (matrix - matrix.mean(0)).norm()
    assert (draws.decoded_OI - matrix).norm() < 0.25 * spread
    for drawn in draws.drawn_KOI:
        assert (drawn - matrix).norm() < 0.6 * spread
    assert not torch.equal(*draws.drawn_KOI)


def test_padding_is_ignored_and_checkpoints_are_members():
    draws = draw_layer(torch.randn(3, 5, 7), chunk=8, latent=4, vae_steps=100, steps=5, candidates=1)
    assert draws.drawn_KOI.shape == (1, 5, 7)
    assert draws.decoded_OI.shape == (5, 7)


def test_bad_input_changes_nothing():
    torch.manual_seed(0)
    model, batch = perceptron(), MODELS[3][1]
    before = weights(model)
    for change in ({"share": 0.0}, {"share": 1.5}, {"candidates": 0}, {"chunk": 0}):
        with pytest.raises(HyperparameterError):
            d2nwg_layers(model, [batch], **{**SMALL, **change})
    with pytest.raises(CalibrationError):
        d2nwg_layers(model, [], **SMALL)
    with pytest.raises(CalibrationError, match="training batch"):
        d2nwg_layers(model, [torch.randn(2, 12)], **SMALL)
    with pytest.raises(LayerNotFoundError, match="more than 999 weights"):
        d2nwg_layers(model, [batch], **{**SMALL, "chunk": 999})
    with pytest.raises(ShapeError, match="checkpoint 0: found none"):
        d2nwg_layers(model, [batch], states=[{}], **SMALL)
    with pytest.raises(NonFiniteError, match="loss"):
        d2nwg_layers(model, [batch], evaluate=lambda _: float("nan"), **SMALL)
    assert same(before, weights(model))
    find_layers(model)[0].weight_OI[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="layer '0'"):
        d2nwg_layers(model, [batch], **SMALL)


def test_each_task_gets_its_own_draw():
    generator = torch.Generator().manual_seed(0)
    zoo = WeightZoo.from_state_dicts(
        [{"w": torch.randn(4, generator=generator)} for _ in range(16)], support_NCSF=torch.randn(16, 1, 1, 3)
    )
    model = WeightDiffusion(zoo, OrderedEncoder(3, 1), vae=WeightVAE(4, latent=2), shots=1)
    model.latent_scale.fill_(1)
    support = torch.randn(3, 1, 1, 3)
    together = model.sample_rows(support, steps=5, generator=torch.Generator().manual_seed(1))
    alone = model.sample_rows(support[:1], steps=5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)
    with pytest.raises(HyperparameterError):
        model.sample_rows(support, steps=0)
    with pytest.raises(ShapeError):
        WeightDiffusion(zoo).sample_rows(support)


def test_descriptions_tell_tasks_apart():
    model, tokenizer = load("minilm")
    before = weights(model)
    texts = ["Classify photographs of dogs by breed.", "Which kind of dog is in the image?", "Translate into French."]
    found = describe(texts, model, tokenizer)
    assert found.shape == (3, 1, 1, 384)
    assert same(before, weights(model))
    torch.testing.assert_close(found, describe(texts, model, tokenizer, batch_size=1), atol=1e-4, rtol=1e-4)
    one, two, three = found.flatten(1)
    near = torch.cosine_similarity(one, two, dim=0)
    assert near > torch.cosine_similarity(one, three, dim=0) + 0.2
    zoo = WeightZoo.from_state_dicts([{"w": torch.randn(4)} for _ in texts], support_NCSF=found)
    diffusion = WeightDiffusion(zoo, OrderedEncoder(384, 1), vae=WeightVAE(4, latent=2), shots=1)
    diffusion.latent_scale.fill_(1)
    drawn = diffusion.sample(found[0], steps=3)
    assert drawn[0]["w"].shape == (4,)
    for wrong in ([], ["dogs", " "]):
        with pytest.raises(CalibrationError):
            describe(wrong, model, tokenizer)
