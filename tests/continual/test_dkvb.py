"""The key-value bottleneck: the numbered checks of its specification, encoders of every kind, and what is refused."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from processes import two_processes
from weightsmith.continual import BottleneckClassifier, DiscreteKeyValueBottleneck
from weightsmith.continual._dkvb import bottleneck as module
from weightsmith.core.errors import (
    CalibrationError,
    CheckpointError,
    HyperparameterError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.embedded import digits
from weightsmith.testing import tiny


def chunks(keys, classes=2, **options):
    """A bottleneck that cuts its features, with these keys."""
    keys = torch.as_tensor(keys)
    codebooks, pairs, key_dim = keys.shape
    sizes = {"codebooks": codebooks, "pairs": pairs, "key_dim": key_dim}
    made = DiscreteKeyValueBottleneck(codebooks * key_dim, classes, splitter="chunk", **sizes, **options)
    made.keys.copy_(keys)
    made.averages.copy_(keys)
    return made


def trained(seed=0, codebooks=8, pairs=16, classes=3, count=200):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    y = torch.randint(classes, (count,), generator=generator)
    made = DiscreteKeyValueBottleneck(6, classes, codebooks=codebooks, pairs=pairs, key_dim=3, generator=generator)
    made.init_keys(x, generator=generator)
    made.partial_fit(x, y, epochs=3, generator=generator)
    return made, x, y


def test_1_moving_averages_by_hand():
    made = chunks([[[0.0], [1.0]]], dead_factor=0.0)
    made.update_keys(torch.tensor([[0.1], [0.2], [0.9]]))
    assert torch.allclose(made.sizes, torch.tensor([[0.10, 0.05]]))
    assert torch.allclose(made.averages.flatten(), torch.tensor([0.015, 0.995]))
    assert torch.allclose(made.keys.flatten(), torch.tensor([0.15000500, 19.898672]), rtol=1e-6)


def test_2_a_key_moves_to_constant_data():
    made = chunks([[[0.0], [100.0]]], dead_factor=0.0)
    for _ in range(400):
        made.update_keys(torch.full((8, 1), 3.0))
    assert made.keys[0, 0, 0].item() == pytest.approx(3.0, abs=1e-4)


def test_3_golden():
    made = chunks((torch.arange(12.0) / 10).view(2, 3, 2), dead_factor=0.0)
    features = torch.tensor([[0.05, 0.12, 0.70, 0.90], [0.33, 0.28, 1.20, 0.95]])
    codes = module.nearest(features.view(2, 2, 2), made.keys)
    assert codes.tolist() == [[0, 1], [1, 2]]
    made.update_keys(features)
    expected = [
        [[0.0500050, 2.0202019], [4.1304126, 5.9805980], [38011.402, 47514.254]],
        [[57017.102, 66519.953], [15.901590, 18.001799], [20.202019, 21.852184]],
    ]
    assert torch.allclose(made.keys, torch.tensor(expected), rtol=1e-5)
    assert torch.allclose(made.sizes, torch.tensor([[0.05, 0.05, 0.0], [0.0, 0.05, 0.05]]))


def test_4_gradient_of_the_values():
    made = chunks(torch.zeros(4, 3, 1))
    codes = torch.tensor([[0, 1, 2, 0]])
    loss = functional.cross_entropy(made.look_up(codes), torch.tensor([1]))
    loss.backward()
    gradient = made.values.grad.view(4, 3, 2)
    for codebook, code in enumerate(codes[0].tolist()):
        assert gradient[codebook, code].tolist() == [0.125, -0.125]
    assert gradient.count_nonzero() == 8
    assert gradient.norm().item() == pytest.approx(0.3535534, abs=1e-7)
    before = made.values.detach().clone()
    made.fit_codes(codes, torch.tensor([1]), learning_rate=0.1, label_smoothing=0.0)  # the rate of the mean is 0.4
    assert torch.allclose(made.values.detach() - before, -0.4 * made.values.grad)


def test_training_in_closed_form_is_sgd_on_an_embedding_bag():
    made, x, y = trained()
    other = copy.deepcopy(made)
    codes = made.train().encode(x)
    made.fit_codes(codes, y, epochs=2, batch_size=32, learning_rate=0.05, generator=torch.Generator().manual_seed(1))
    bag = nn.EmbeddingBag.from_pretrained(other.values.detach().clone(), mode="mean", freeze=False, sparse=True)
    optimizer = torch.optim.SGD(bag.parameters(), lr=0.05 * 8)
    rows, generator = codes.long() + torch.arange(8) * 16, torch.Generator().manual_seed(1)
    for _ in range(2):
        for part in torch.randperm(len(y), generator=generator).split(32):
            optimizer.zero_grad()
            functional.cross_entropy(bag(rows[part]), y[part], label_smoothing=0.1).backward()
            optimizer.step()
    assert torch.allclose(made.values, bag.weight, atol=1e-6)


def test_5_and_11_look_up_is_a_mean_and_one_pair_ignores_the_input():
    made, x, _ = trained()
    codes = made.encode(x).long()
    gathered = made.values.view(8, 16, 3)[torch.arange(8), codes].mean(1)
    assert torch.allclose(made(x), gathered, atol=1e-6)
    made, x, _ = trained(pairs=1)
    assert torch.equal(made(x), made(x[:1]).expand(len(x), -1))
    x, y = torch.randn(40, 5), torch.randint(4, (40,))
    nearest = chunks(x[None], classes=4)
    nearest.placed.fill_(True)
    nearest.partial_fit(x, y, learning_rate=100.0, batch_size=40)
    queries = torch.randn(60, 5)
    assert torch.equal(nearest.predict(queries), y[torch.cdist(queries, x).argmin(1)])


def test_6_samples_with_other_codes_leave_logits_alone_to_the_bit():
    made, _, _ = trained(codebooks=4)
    codes = torch.randint(8, (50, 4))
    mine = codes[:1] + 8
    before = made.look_up(mine).clone()
    made.fit_codes(codes, torch.randint(3, (50,)), epochs=5)
    assert torch.equal(made.look_up(mine), before)


def test_7_values_of_zero_are_uniform():
    made, x, y = trained()
    made.init_keys(x)
    assert not made.counts.any()
    assert functional.cross_entropy(made(x), y).item() == pytest.approx(math.log(3), abs=1e-6)
    assert made.counts.sum() == x.shape[0] * 8


def test_8_pairs_and_codebooks_may_be_permuted():
    made, x, _ = trained()
    expected = made.eval()(x)
    other = copy.deepcopy(made)
    order = torch.randperm(16)
    other.keys.copy_(made.keys[:, order])
    other.counts.copy_(made.counts[:, order])
    other.values.data = made.values.view(8, 16, 3)[:, order].flatten(0, 1)
    assert torch.allclose(other(x), expected, atol=1e-6)
    order = torch.randperm(8)
    other.keys.copy_(made.keys[order])
    other.counts.copy_(made.counts[order])
    other.values.data = made.values.view(8, 16, 3)[order].flatten(0, 1)
    other.projection.copy_(made.projection.view(6, 8, 3)[:, order].flatten(1))
    assert torch.allclose(other(x), expected, atol=1e-6)


def test_9_projections_have_length_one_and_a_state_dict_has_everything():
    made, x, _ = trained()
    assert torch.allclose(made.projection.norm(dim=0), torch.ones(24))
    other = DiscreteKeyValueBottleneck(6, 3, codebooks=8, pairs=16, key_dim=3)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.encode(x), made.encode(x))
    assert torch.equal(other.eval()(x), made.eval()(x))
    assert [name for name, _ in other.named_parameters()] == ["values"]


def test_10_pairs_that_were_not_trained_are_never_returned():
    made, x, y = trained()
    made.init_keys(x)
    made.partial_fit(x[:6], y[:6])
    assert made.unused > 0.5
    codes = made.eval().encode(torch.randn(500, 6)).long()
    assert (made.counts[torch.arange(8), codes] > 0).all()
    assert not torch.equal(codes, made.train().encode(torch.randn(500, 6)).long())
    made.counts.fill_(1)
    assert torch.equal(made.eval().encode(x), made.train().encode(x))
    made.counts[3:] = 0  # these codebooks do not vote
    rest = made.values.view(8, 16, 3)[torch.arange(3), made.eval().encode(x).long()[:, :3]].mean(1)
    assert torch.allclose(made(x), rest, atol=1e-6)
    made.counts.zero_()
    with pytest.warns(UserWarning, match="no pair has been trained"):
        assert not made(x).any()


def test_blocks_of_keys_give_the_codes_of_all_at_once_and_ties_the_first(monkeypatch):
    made, x, _ = trained()
    heads = made._heads(x)
    distances = (heads[:, :, None] - made.keys).square().sum(3)
    assert torch.equal(made.train().encode(x).long(), distances.argmin(2))
    for block, rows in ((3, 7), (16 * 20, 1000), (16 * 200 * 3, 150)):
        monkeypatch.setattr(module, "BLOCK", block)
        monkeypatch.setattr(module, "ROWS", rows)
        assert torch.equal(made.encode(x).long(), distances.argmin(2))
    made.keys.zero_()
    assert not made.encode(x).long().any()
    assert made.encode(x).dtype == torch.uint16


@pytest.mark.parametrize("start", ["samples", "kmeans", "normal"])
def test_keys_end_among_the_data(start):
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[10.0, 10.0], [12.0, 8.0], [8.0, 9.0], [11.0, 12.0]])
    x = centers.repeat(64, 1) + 0.05 * torch.randn(256, 2, generator=generator)
    made = DiscreteKeyValueBottleneck(2, 2, codebooks=1, pairs=4, key_dim=2, splitter="chunk", generator=generator)
    made.init_keys(x, passes=60, batch_size=64, start=start, generator=generator)
    gaps = torch.cdist(made.keys[0], centers)
    assert gaps.amin(1).max() < 0.3  # every key is at a center, none near the origin
    one_pass = copy.deepcopy(made)
    one_pass.init_keys(x, passes=1, batch_size=64, start="kmeans", generator=generator)
    assert one_pass.keys.norm(dim=2).min() > 10  # the reference shrinks them to a twentieth


def test_frozen_keys_do_not_move():
    made, x, _ = trained()
    before = {name: value.clone() for name, value in made.state_dict().items() if name not in ("counts", "values")}
    made.train()
    for _ in range(100):
        made(x).sum().backward()
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in before.items())
    with pytest.raises(CalibrationError, match="frozen"):
        made.update_keys(x)


def test_new_classes_leave_old_logits_alone():
    made, x, _ = trained()
    before = made.eval()(x)
    made.add_classes(2)
    assert torch.equal(made(x)[:, :3], before)
    assert not made(x)[:, 3:].any()
    made.partial_fit(x[:50], torch.full((50,), 4), epochs=20)
    assert (made.predict(x[:50]) == 4).float().mean() > 0.9


def test_classes_in_turn_end_where_all_at_once_do():
    images, labels = digits()
    x = ((images.flatten(1) - 0.3) / 0.37)[:700]
    train, test = slice(0, 500), slice(500, 700)
    made = DiscreteKeyValueBottleneck(
        64, 10, codebooks=32, pairs=64, key_dim=8, generator=torch.Generator().manual_seed(0)
    )
    made.init_keys(x[train], batch_size=32, generator=torch.Generator().manual_seed(0))
    both = copy.deepcopy(made)
    for first in range(0, 10, 2):
        mine = (labels[train] // 2 == first // 2).nonzero().flatten()
        made.partial_fit(x[mine], labels[mine], epochs=30, batch_size=32)
    both.partial_fit(x[train], labels[train], epochs=30, batch_size=32)
    accuracy = [(each.predict(x[test]) == labels[test]).float().mean().item() for each in (made, both)]
    assert accuracy[0] > 0.85
    assert abs(accuracy[0] - accuracy[1]) < 0.04


def test_two_processes_place_the_keys_of_one_and_count_the_pairs_of_both(tmp_path):
    script = """
    import sys, torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from weightsmith.continual import DiscreteKeyValueBottleneck
    dist.init_process_group("gloo")
    rank, folder = dist.get_rank(), sys.argv[1]
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    own = torch.Generator().manual_seed(0 if rank == 0 else 99)
    for start, dead_factor in (("normal", 0.0), ("samples", 0.1), ("kmeans", 0.1)):
        made = DiscreteKeyValueBottleneck(
            6, 2, codebooks=4, pairs=8, key_dim=3, dead_factor=dead_factor, generator=own
        )
        made.init_keys(x[rank::2], start=start, passes=5, batch_size=32, generator=own)
        torch.save(made.state_dict(), f"{folder}/{start}-{rank}.pt")
    model = DistributedDataParallel(made)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for part in x[rank::2].split(8):
        torch.nn.functional.cross_entropy(model(part), torch.full((8,), rank)).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(made.state_dict(), f"{folder}/trained-{rank}.pt")
    """
    two_processes(script, tmp_path, tmp_path)
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    for name in ("normal", "samples", "kmeans", "trained"):
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1))
        for key in first:
            assert torch.equal(first[key], second[key]), (name, key)
        assert first["sizes"].sum(1).tolist() == pytest.approx([64.0] * 4, rel=1e-5 if name != "normal" else 1.0)
    generator = torch.Generator().manual_seed(0)
    one = DiscreteKeyValueBottleneck(6, 2, codebooks=4, pairs=8, key_dim=3, dead_factor=0.0, generator=generator)
    one.init_keys(x, start="normal", passes=5, batch_size=64, generator=generator)
    there = torch.load(tmp_path / "normal-0.pt")
    torch.testing.assert_close(there["keys"], one.keys, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(there["sizes"], one.sizes)
    trained = torch.load(tmp_path / "trained-0.pt")
    assert trained["counts"].sum(1).tolist() == [64] * 4
    assert (trained["values"].any(1) <= trained["counts"].flatten().bool()).all()


def test_placing_keys_anew_says_that_it_erases():
    made, x, _ = trained()
    with pytest.warns(UserWarning, match="erased"):
        made.init_keys(x)
    assert not made.counts.any()


def test_half_precision_features_are_compared_in_float32():
    made, x, _ = trained()
    half = x.bfloat16()
    assert torch.equal(made.encode(half), made.encode(half.float()))
    assert made.bfloat16()(half).dtype == torch.bfloat16


SIZES = {"codebooks": 4, "pairs": 8, "key_dim": 2}


@pytest.mark.parametrize("name", ["bert", "vit", "cnn", "mlp"])
def test_12_encoders_stay_as_they_are(name, tmp_path):
    model, batch = tiny(name)
    model = model.train()  # as a user may have left it
    encoder = getattr(model, "bert", getattr(model, "vit", model))
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    layer = {"cnn": "5", "mlp": "2"}.get(name)
    classifier = BottleneckClassifier(encoder, 2, layer=layer, **SIZES).train()
    classifier.init_keys([batch, batch], passes=3)
    rows = [{key: value[n] for key, value in batch.items()} for n in range(8)] if isinstance(batch, dict) else None
    data = [row | {"labels": torch.tensor(n % 2)} for n, row in enumerate(rows)] if rows else None
    classifier.partial_fit(data or [(batch[n], n % 2) for n in range(8)], epochs=50)
    logits = classifier.eval()(**batch) if rows else classifier.eval()(batch)
    assert (logits[:8].argmax(1) == torch.arange(8) % 2).all()
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert not any(each.training for each in classifier.train().encoder.modules())
    classifier.eval().save(tmp_path / "out")
    again = BottleneckClassifier.load(tmp_path / "out", encoder)
    assert torch.equal(again(**batch) if rows else again(batch), logits)
    with pytest.raises(CheckpointError, match="has no name"):
        BottleneckClassifier.load(tmp_path / "out")


@pytest.mark.filterwarnings("ignore:.*distinct samples")
def test_padding_does_not_count():
    model, batch = tiny("bert")
    padded = {
        "input_ids": functional.pad(batch["input_ids"], (0, 24), value=5),
        "attention_mask": functional.pad(batch["attention_mask"], (0, 24)),
    }
    first, second = (
        BottleneckClassifier(model.bert, 2, generator=torch.Generator().manual_seed(0), **SIZES) for _ in range(2)
    )
    assert torch.allclose(first.features(batch), second.features(padded), atol=1e-5)
    for each, given in ((first, batch), (second, padded)):
        each.init_keys([given], passes=3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first.encode([batch]), second.encode([padded]))
    assert torch.allclose(first.bottleneck.keys, second.bottleneck.keys, atol=1e-5)


def test_embedded_minilm_learns_topics_in_turn(tmp_path):
    topics = [
        ["the cat sleeps", "a dog barks at night", "horses eat hay", "the bird builds a nest"],
        ["stocks fell on Monday", "the bank raised its rates", "profits of the company grew", "a new tax on trade"],
        ["boil the pasta", "add salt to the soup", "bake the bread for an hour", "fry two eggs in butter"],
    ]
    classifier = BottleneckClassifier("embedded:minilm", 2, codebooks=32, pairs=12, key_dim=8)
    classifier.init_keys([classifier.prepare([text for topic in topics for text in topic])], passes=3)

    def samples(label):
        tokens = classifier.prepare(topics[label])
        return [{key: value[n] for key, value in tokens.items()} | {"labels": torch.tensor(label)} for n in range(4)]

    for label in range(3):
        if label == 2:
            classifier.add_classes(1)
        classifier.partial_fit(samples(label), epochs=30)
    found = classifier.eval()(**classifier.prepare([topic[number] for topic in topics for number in range(4)]))
    assert found.argmax(1).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    classifier.save(tmp_path / "out")
    again = BottleneckClassifier.load(tmp_path / "out")
    assert torch.equal(again(**again.prepare(["my dog"])), classifier(**classifier.prepare(["my dog"])))


def test_embedded_efficientnet_features():
    from PIL import Image

    classifier = BottleneckClassifier("embedded:efficientnet-lite0", 2, layer="_fc", **SIZES)
    pixels = classifier.prepare([Image.new("RGB", (32, 32), color) for color in ("red", "blue")])["pixel_values"]
    assert classifier.features(pixels).shape == (2, 1280)
    with pytest.warns(UserWarning, match="2 distinct samples for 8 keys"):
        classifier.init_keys([pixels], passes=1)
    classifier.partial_fit([(pixels[0], 0), (pixels[1], 1)], epochs=20)
    assert classifier.eval()(pixels).argmax(1).tolist() == [0, 1]


def test_bad_options_are_refused():
    for name, value in (("codebooks", 0), ("pairs", -1), ("key_dim", 0), ("in_features", 0), ("num_classes", 0)):
        with pytest.raises(HyperparameterError, match=name):
            DiscreteKeyValueBottleneck(**({"in_features": 4, "num_classes": 2} | {name: value}))
    for options in ({"decay": 1.0}, {"decay": math.nan}, {"eps": -1.0}, {"dead_factor": -0.1}):
        with pytest.raises(HyperparameterError, match=next(iter(options))):
            DiscreteKeyValueBottleneck(4, 2, **options)
    with pytest.raises(ShapeError, match=r"4 features for 3 codebooks of 2, expected 6 features"):
        DiscreteKeyValueBottleneck(4, 2, codebooks=3, key_dim=2, splitter="chunk")
    made, x, y = trained()
    for options in ({"epochs": -1}, {"batch_size": 0}, {"learning_rate": 0.0}, {"label_smoothing": 1.0}):
        with pytest.raises(HyperparameterError, match=next(iter(options))):
            made.partial_fit(x, y, **options)
    with pytest.raises(HyperparameterError, match="count"):
        made.add_classes(0)
    for options in ({"passes": -1}, {"batch_size": 0}):
        with pytest.raises(HyperparameterError, match=next(iter(options))):
            made.init_keys(x, **options)


@pytest.mark.filterwarnings("ignore:.*distinct samples")
def test_bad_data_are_refused_with_nothing_changed():
    made, x, y = trained()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    broken = x.clone()
    broken[7, 2] = math.nan
    with pytest.raises(NonFiniteError, match="first in row 7"):
        made.init_keys(broken)
    with pytest.raises(NonFiniteError, match="first in row 7"):
        made.partial_fit(broken, y)
    with pytest.raises(HyperparameterError, match=r"labels: found \[3"):
        made.partial_fit(x, y + 1)
    with pytest.raises(ShapeError, match="features"):
        made(x[:, :3])
    with pytest.raises(ShapeError, match="codes"):
        made.fit_codes(made.encode(x)[:, :3], y)
    with pytest.raises(CalibrationError):
        made.init_keys(x[:0])
    with pytest.raises(CalibrationError):
        made.partial_fit(x[:0], y[:0])
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    fresh = DiscreteKeyValueBottleneck(6, 3, codebooks=2, pairs=4, key_dim=3)
    with pytest.raises(CalibrationError, match="keys have not been placed"):
        fresh.partial_fit(x, y)
    model, batch = tiny("mlp")
    classifier = BottleneckClassifier(model, 2, **SIZES)
    with pytest.raises(CalibrationError, match="keys have not been placed"):
        classifier.partial_fit([(batch[0], 0)])
    with pytest.raises(CalibrationError, match="no batches"):
        classifier.init_keys([])
    bad = batch.clone()
    bad[0, 0] = math.inf
    with pytest.raises(NonFiniteError, match="at batch 1"):
        classifier.init_keys([batch, bad])
    with pytest.raises(UnsupportedModelError, match="no tokenizer"):
        classifier.prepare(["text"])
    with pytest.raises(UnsupportedModelError, match="no features"):
        BottleneckClassifier(tiny("bert")[0], 2, **SIZES).init_keys([tiny("bert")[1]])


def test_a_folder_that_is_none_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no bottleneck"):
        BottleneckClassifier.load(tmp_path, nn.Identity())
