"""BANG: targets, mixup, the loss in a plain loop, in fit and in Trainer, temperatures, schedules; bad input."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments

from models import tiny
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, UnsupportedModelError
from weightsmith.core.training import fit
from weightsmith.merge import (
    MixupCollator,
    _bang as mixing,
    balance_logit_scale,
    bang,
    bang_loss,
    fit_temperature,
    interpolate,
    smooth_targets,
    soft_cross_entropy,
    warmup_cosine,
)


def test_smoothed_targets():
    target = smooth_targets(torch.tensor([3]), 10)
    assert target[0, 3].item() == pytest.approx(0.91)
    assert target[0, 0].item() == pytest.approx(0.01)
    assert torch.special.entr(target).sum().item() == pytest.approx(0.5003, abs=5e-5)
    again = smooth_targets(target, 10, label_smoothing=0.1)
    torch.testing.assert_close(again, 0.9 * target + 0.01)
    assert soft_cross_entropy(target.log(), target).item() == pytest.approx(0.5003, abs=5e-5)


@given(st.floats(0, 0.99))
def test_the_loss_of_a_uniform_prediction_does_not_depend_on_smoothing(eps):
    target = smooth_targets(torch.tensor([0, 7]), 10, label_smoothing=eps)
    assert soft_cross_entropy(torch.zeros(2, 10), target).item() == pytest.approx(math.log(10), abs=1e-6)


@given(st.integers(0, 100), st.floats(0, 1), st.floats(0, 0.5))
def test_cross_entropy_is_linear_in_mixed_targets_and_is_torchs(seed, share, eps):
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 5, generator=draws)
    y, other = torch.randint(5, (2, 6), generator=draws)
    first, second = (smooth_targets(labels, 5, label_smoothing=eps) for labels in (y, other))
    mixed = soft_cross_entropy(logits, share * first + (1 - share) * second).item()
    parts = [functional.cross_entropy(logits, labels, label_smoothing=eps).item() for labels in (y, other)]
    assert mixed == pytest.approx(share * parts[0] + (1 - share) * parts[1], abs=1e-5)


def test_ignored_rows_and_pixels_do_not_count():
    logits, labels = torch.randn(4, 3, 5, 5), torch.randint(3, (4, 5, 5))
    labels[0] = -100
    expected = functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(soft_cross_entropy(logits, smooth_targets(labels, 3)), expected)
    assert soft_cross_entropy(logits, torch.zeros(4, 3, 5, 5)).item() == 0.0


def test_targets_that_are_no_classes():
    several, numbers = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0.3]])
    for target in (several, numbers):
        assert torch.equal(smooth_targets(target, 3, label_smoothing=0.0), target)
        with pytest.raises(HyperparameterError, match="probabilities"):
            smooth_targets(target, 3)
    with pytest.raises(CalibrationError, match="0 to 2"):
        smooth_targets(torch.tensor([3]), 3)
    with pytest.raises(HyperparameterError, match="label_smoothing"):
        smooth_targets(torch.tensor([1]), 3, label_smoothing=1.0)


def pairs(count, seed=0):
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, generator=draws)
    return [(row, label) for row, label in zip(x, torch.randint(4, (count,), generator=draws), strict=True)]


def test_a_mixed_batch_is_a_mixture_of_its_samples():
    data = pairs(64)
    x, target = MixupCollator(4, label_smoothing=0.0, generator=torch.Generator().manual_seed(1))(data)
    whole = torch.stack([row for row, _ in data])
    onehot = functional.one_hot(torch.stack([label for _, label in data]), 4).float()
    both = torch.cat([x, target], 1)
    own = torch.cat([whole, onehot], 1)
    # each mixed row lies on the segment from its own sample to some other, at one share for all
    shares = set()
    for row, start in zip(both, own, strict=True):
        steps = own - start
        place = ((row - start) * steps).sum(1) / steps.square().sum(1).clamp_min(1e-12)
        distance = (start + place[:, None] * steps - row).abs().amax(1)
        best = distance.argmin()
        assert distance[best] < 1e-5
        if steps[best].abs().max() > 0 and place[best] > 1e-6:
            shares.add(round(place[best].item(), 3))
    assert len(shares) == 1
    assert 0 < shares.pop() < 1


@pytest.mark.parametrize("alpha", [0.0, 1e6])
def test_no_mixup_and_even_mixup(alpha):
    data = pairs(16)
    collate = MixupCollator(4, alpha=alpha, label_smoothing=0.0, generator=torch.Generator().manual_seed(0))
    x, target = collate(data)
    whole = torch.stack([row for row, _ in data])
    if alpha:
        torch.testing.assert_close(x.sum(0), whole.sum(0), rtol=0.01, atol=0)
        assert not torch.allclose(x, whole)
    else:
        assert torch.equal(x, whole)
    torch.testing.assert_close(target.sum(1), torch.ones(16))


def test_a_share_of_one_mixes_nothing(monkeypatch):
    monkeypatch.setattr(mixing, "_draw", lambda alpha, count, generator: (1.0, torch.arange(count).flip(0)))
    data = pairs(8)
    batch = tuple(torch.stack(column) for column in zip(*data, strict=True))
    x, target = MixupCollator(4)(data)
    assert torch.equal(x, batch[0])
    assert torch.equal(target, smooth_targets(batch[1], 4))
    model = nn.Linear(3, 4)
    assert torch.equal(bang_loss()(model, batch), bang_loss(mixup_alpha=0.0)(model, batch))


def test_the_last_odd_batch_and_mappings_and_soft_labels():
    collate = MixupCollator(4, generator=torch.Generator().manual_seed(0))
    sizes = [len(x) for x, _ in DataLoader(pairs(9), batch_size=4, collate_fn=collate)]
    assert sizes == [4, 4, 1]
    sample = {"pixel_values": torch.rand(3, 4, 4), "position": torch.tensor(3), "labels": torch.tensor(1)}
    batch = collate([sample] * 3)
    assert batch["labels"].shape == (3, 4)
    assert torch.equal(batch["position"], torch.full((3,), 3))
    soft = collate([(torch.rand(2), torch.tensor([0.5, 0.5, 0.0, 0.0]))] * 2)[1]
    torch.testing.assert_close(soft, torch.tensor([[0.475, 0.475, 0.025, 0.025]] * 2))


def test_batches_that_cannot_be_mixed_are_refused():
    collate = MixupCollator(4)
    ids = {"input_ids": torch.tensor([1, 2]), "labels": torch.tensor(1)}
    with pytest.raises(CalibrationError, match="bang_loss"):
        collate([ids])
    assert MixupCollator(4, alpha=0.0)([ids])["input_ids"].tolist() == [[1, 2]]
    with pytest.raises(CalibrationError, match="labels"):
        collate([{"x": torch.zeros(1)}])
    with pytest.raises(CalibrationError, match="pairs"):
        collate([torch.zeros(1)])
    for alpha, eps in ((-1.0, 0.1), (float("nan"), 0.1), (0.5, 1.0)):
        with pytest.raises(HyperparameterError):
            MixupCollator(4, alpha=alpha, label_smoothing=eps)
        with pytest.raises(HyperparameterError):
            bang_loss(mixup_alpha=alpha, label_smoothing=eps)


def test_the_loss_is_that_of_the_collator():
    model, data = nn.Linear(3, 4), pairs(10)
    x, target = MixupCollator(4, generator=torch.Generator().manual_seed(5))(data)
    expected = nn.CrossEntropyLoss()(model(x), target)
    batch = [torch.stack(column) for column in zip(*data, strict=True)]
    found = bang_loss(generator=torch.Generator().manual_seed(5))(model, batch)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "llama"])
def test_the_loss_of_transformers_without_mixing_is_their_own(name):
    model, batch = tiny(name)
    labels = batch["input_ids"] if name in ("gpt2", "llama") else torch.arange(8) % 2
    if name in ("gpt2", "llama"):
        labels = labels.masked_fill(batch["attention_mask"] == 0, -100)
    own = model(**batch, labels=labels).loss
    found = bang_loss(mixup_alpha=0.0, label_smoothing=0.0)(model, {**batch, "labels": labels})
    torch.testing.assert_close(found, own)
    mixed = bang_loss(generator=torch.Generator().manual_seed(0))(model, {**batch, "labels": labels})
    mixed.backward()
    assert mixed.isfinite()
    assert all(p.grad is not None for p in [next(model.parameters())])


def test_a_mixture_of_equal_texts_is_the_text():
    model, batch = tiny("bert")
    same = {key: value[:1].expand(4, -1) for key, value in batch.items()} | {"labels": torch.ones(4, dtype=torch.long)}
    plain = bang_loss(mixup_alpha=0.0)(model, same)
    torch.testing.assert_close(bang_loss(generator=torch.Generator().manual_seed(0))(model, same), plain)


def _text_classifier(kind):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    words = {"vocab_size": 64, "num_labels": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "llama":
        return transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**sizes, **words))
    if kind == "gpt2":  # with a position of its own for each token
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, **words, **still)
        return transformers.GPT2ForSequenceClassification(config)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(**sizes, **words, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    )


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_padded_texts_are_read_where_the_classifier_reads_them(kind, padding, monkeypatch):
    """Decoders take the logits of the last token: of embeddings these were those of the padding."""
    model = _text_classifier(kind)
    lengths = torch.tensor([12, 5, 8, 9])
    mask = (torch.arange(12) < lengths[:, None]).long()
    mask = mask.flip(1) if padding == "left" else mask
    ids = torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(0)) * mask
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 2, 0])}
    twice = {key: torch.cat([value, value]) for key, value in batch.items()}
    # every text is mixed with its own copy
    monkeypatch.setattr(mixing, "_draw", lambda alpha, count, generator: (0.3, (torch.arange(count) + 4) % count))
    expected, loss = bang_loss(mixup_alpha=0.0)(model, batch), bang_loss()
    model.train()
    for _ in range(2):
        torch.testing.assert_close(loss(model, twice), expected, atol=1e-5, rtol=1e-5)
    assert model.training


def test_a_classifier_that_reads_tokens_in_another_way_is_refused():
    class ByTokens(transformers.LlamaForSequenceClassification):
        def forward(self, input_ids=None, inputs_embeds=None, **kwargs):
            out = super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)
            out.logits = out.logits + (0 if input_ids is None else input_ids.float().mean(1, keepdim=True))
            return out

    model = _text_classifier("llama")
    model.__class__ = ByTokens
    ids = torch.tensor([[3, 4, 5], [6, 7, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor([0, 1])}
    with pytest.raises(UnsupportedModelError, match="something else of embeddings.*mixup_alpha=0"):
        bang_loss()(model, batch)
    assert bang_loss(mixup_alpha=0.0)(model, batch).isfinite()


def clouds(count=128):
    draws = torch.Generator().manual_seed(0)
    y = torch.randint(2, (count,), generator=draws)
    return torch.randn(count, 4, generator=draws) + 2 * y[:, None], y


def test_it_learns_in_a_plain_loop_and_in_fit_and_is_less_sure():
    x, y = clouds()
    sure = {}
    for name, loss in {"plain": bang_loss(mixup_alpha=0.0, label_smoothing=0.0), "bang": bang_loss()}.items():
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        fit(model, TensorDataset(x, y), loss=loss, epochs=30, learning_rate=0.05, batch_size=16, accumulation_steps=2)
        assert (model(x).argmax(1) == y).float().mean() > 0.95
        sure[name] = model(x).softmax(1).amax(1).mean().item()
    assert sure["bang"] < sure["plain"] - 0.02
    model, loader = nn.Linear(4, 2), DataLoader(TensorDataset(x, y), 16, collate_fn=MixupCollator(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(20):
        for inputs, target in loader:
            nn.CrossEntropyLoss()(model(inputs), target).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert (model(x).argmax(1) == y).float().mean() > 0.95


@pytest.mark.parametrize("accumulated", [1, 2])
def test_it_works_in_trainer(tmp_path, accumulated):
    """The loss of equal probabilities is log 2, however the Trainer counts soft labels."""
    model, batch = tiny("vit")
    nn.init.zeros_(model.classifier.weight)
    data = [{"pixel_values": image, "labels": torch.tensor(i % 2)} for i, image in enumerate(batch["pixel_values"])]
    before = model.classifier.weight.clone()
    losses = []
    for learning_rate in (0.0, 1e-3):
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=2,
            learning_rate=learning_rate,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=accumulated,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            remove_unused_columns=False,
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=data,
            data_collator=MixupCollator(2),
            compute_loss_func=soft_cross_entropy,
        )
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(math.log(2), rel=1e-4)
    assert not torch.equal(model.classifier.weight, before)


@pytest.mark.parametrize(("name", "dtype"), [("bert", torch.float32), ("gpt2", torch.bfloat16), ("cnn", torch.float32)])
def test_the_command_averages_what_it_trained(name, dtype):
    model, batch = tiny(name)
    model = model.to(dtype)
    if name == "cnn":
        data = [{"x": image, "labels": torch.tensor(i % 4)} for i, image in enumerate(batch)]
    else:
        labels = batch["input_ids"] if name == "gpt2" else torch.arange(8) % 2
        data = [{**{key: value[i] for key, value in batch.items()}, "labels": labels[i]} for i in range(8)]
    states = {}
    start = {key: value.clone() for key, value in model.state_dict().items()}
    for alpha in (0.5, 1.0):
        model.load_state_dict(start)
        draws = torch.Generator().manual_seed(4)
        result = bang(model, data, alpha=alpha, epochs=1, batch_size=4, learning_rate=1e-3, generator=draws)
        states[alpha] = {key: value.clone() for key, value in model.state_dict().items()}
    expected = interpolate(start, states[1.0], 0.5)
    for key, value in states[0.5].items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-8)
    assert len(result.curves["training loss"]) == 2
    assert result.totals["trainable"] == sum(parameter.numel() for parameter in model.parameters())
    assert any(row["moved"] > 0 for row in result.layers)
    assert bool(result.notes) == (name == "cnn")


def test_a_failed_run_leaves_the_model_as_it_was():
    model = nn.Linear(3, 4)
    before = model.weight.detach().clone()
    data = [{"x": row, "labels": label} for row, label in pairs(4)]
    data.append({"x": torch.full((3,), torch.nan), "labels": torch.tensor(0)})
    with pytest.raises(NonFiniteError):
        bang(model, data, batch_size=1)
    assert torch.equal(model.weight, before)
    with pytest.raises(CalibrationError, match="labels"):
        bang(model, [{"x": torch.zeros(3)}])


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.rand(6, 1), CalibrationError, r"labels: found real numbers of shape \(6, 1\)"),
        (torch.rand(6), CalibrationError, r"labels: found real numbers of shape \(6,\)"),
        (torch.ones(6, 3), CalibrationError, "for each class a probability, which sum to one"),
        (torch.full((6,), 7), HyperparameterError, r"labels: found \[7, 7.*expected class indices from 0 to 2"),
    ],
)
@pytest.mark.parametrize("mixup_alpha", [0.0, 0.5])
def test_targets_of_a_regression_and_of_several_classes_are_refused(labels, error, message, mixup_alpha):
    outputs = labels.shape[1] if labels.ndim > 1 else 3
    model = nn.Linear(4, outputs)
    before = model.weight.detach().clone()
    with pytest.raises(error, match=message):
        bang(model, [(torch.rand(4), label) for label in labels], mixup_alpha=mixup_alpha, epochs=1)
    assert torch.equal(model.weight, before)
    # probabilities are taken
    soft = torch.full((6, 3), 1 / 3)
    assert bang_loss(mixup_alpha=mixup_alpha)(nn.Linear(4, 3), (torch.rand(6, 4), soft)).isfinite()


def test_temperature():
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 5, generator=draws)
    labels = logits.softmax(1).multinomial(1, generator=draws)[:, 0]
    truth = fit_temperature(logits, labels)
    assert truth == pytest.approx(1, abs=0.1)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3 * truth, rel=1e-4)


def test_balanced_logits_are_the_logits_over_the_temperature():
    model, x = tiny("mlp")
    y = torch.randint(4, (300,), generator=torch.Generator().manual_seed(0))
    before = model(x).detach()
    temperature = balance_logit_scale(model, [(x[:200], y[:200]), (x[200:], y[200:])])
    assert temperature == pytest.approx(fit_temperature(before, y), rel=1e-6)
    torch.testing.assert_close(model(x), before / temperature)


def test_networks_whose_logits_cannot_be_scaled_are_left_alone():
    tied = tiny("gpt2")[0]
    batch = torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    with pytest.raises(UnsupportedModelError, match="tied"):
        balance_logit_scale(tied, [batch])
    normed = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    before = normed[0].weight.detach().clone()
    with pytest.raises(UnsupportedModelError, match="last linear"):
        balance_logit_scale(normed, [(3 * torch.eye(3), torch.tensor([0, 1, 1]))])
    assert torch.equal(normed[0].weight, before)
    with pytest.raises(UnsupportedModelError, match="no linear"):
        balance_logit_scale(nn.Identity(), [(torch.zeros(1, 2), torch.tensor([0]))])
    with pytest.raises(CalibrationError):
        balance_logit_scale(nn.Linear(2, 2), [])


def test_the_schedule_of_wise_ft():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = warmup_cosine(optimizer, 1500)
    rates = []
    for _ in range(1500):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(2.0 / 500)
    assert rates[499] == pytest.approx(2.0)
    assert rates[-1] > 0
    for step in (500, 750, 1499):
        assert rates[step] == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi * (step - 500) / 1000)))
    with pytest.raises(HyperparameterError, match="warmup"):
        warmup_cosine(optimizer, 500)
