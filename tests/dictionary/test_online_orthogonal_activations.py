"""Dictionaries of activations, and folding them into a model without changing what it computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from models import tiny
from weightsmith.core.errors import HyperparameterError, NonFiniteError, ShapeError, UnsupportedModelError
from weightsmith.core.models import Layer, find_layers, get_module, observe, stream
from weightsmith.core.statistics import Gram
from weightsmith.dictionary import OnlineOrthogonalDictionary
from weightsmith.dictionary._online_orthogonal.activations import InputDictionaries, fold_rotation

ATTENTION = "model.layers.{}.self_attn.{}"


def rotations(groups, n, seed=0):
    return torch.linalg.qr(torch.randn(groups, n, n, generator=torch.Generator().manual_seed(seed)))[0]


def layer(model, block, name):
    path = ATTENTION.format(block, name)
    return Layer(path, get_module(model, path))


def inputs_of(model, module, batch):
    seen = []
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        logits = model(**batch).logits
    handle.remove()
    return logits, seen[0]


@pytest.mark.parametrize("groups", [1, 2])
def test_llama_computes_the_same_in_other_coordinates(groups):
    """Four heads of eight features read two value heads."""
    model, batch = tiny("llama")
    bases = rotations(groups, 8)
    writer, reader = layer(model, 1, "v_proj"), layer(model, 1, "o_proj")
    before, values = inputs_of(model, reader.module, batch)
    old = writer.weight.clone()
    fold_rotation(writer, reader, bases)
    after, codes = inputs_of(model, reader.module, batch)
    assert float((after - before).abs().max()) < 1e-5
    assert not torch.allclose(writer.weight, old, rtol=0, atol=1e-3)
    of_head = bases.repeat_interleave(4 // groups, dim=0)
    expected = torch.einsum("sthn,hnm->sthm", values.unflatten(-1, (4, 8)), of_head).flatten(-2)
    torch.testing.assert_close(codes, expected, atol=1e-6, rtol=1e-4)


def test_learned_while_the_model_runs_then_folded():
    model, batch = tiny("llama")
    reader = layer(model, 0, "o_proj")
    learners = [OnlineOrthogonalDictionary(random_state=0, batch_size=32, init="pca") for _ in range(2)]
    for block in stream(model, [batch] * 3, include="*o_proj"):
        if block.layers[0].name == reader.name:
            block.observe(block.layers, lambda layer: InputDictionaries(layer, learners, width=8))
    tokens = int(batch["attention_mask"].sum())
    assert [learner.n_samples_seen_ for learner in learners] == [3 * 2 * tokens] * 2  # two heads a group, no padding
    _, values = inputs_of(model, reader.module, batch)
    rows = values[batch["attention_mask"].bool()][:, 16:].reshape(-1, 8)
    by_hand = OnlineOrthogonalDictionary(random_state=0, init="pca")
    for _ in range(3):
        for part in rows.split(32):
            by_hand.partial_fit(part)
    np.testing.assert_allclose(learners[1].components_, by_hand.components_, atol=1e-4)
    before = model(**batch).logits
    bases = torch.stack([torch.from_numpy(learner.components_.T) for learner in learners])
    fold_rotation(layer(model, 0, "v_proj"), reader, bases)
    assert float((model(**batch).logits.detach() - before).abs().max()) < 1e-5
    codes = inputs_of(model, reader.module, batch)[1][batch["attention_mask"].bool()][:, 16:].reshape(-1, 8)
    np.testing.assert_allclose(codes, learners[1].transform(rows), atol=1e-5)
    gram = observe(model, [batch], [reader], Gram)[reader.name].gram_II
    energy = gram.diagonal()[16:].reshape(2, 8).sum(0) / len(rows)
    np.testing.assert_allclose(energy, np.square(learners[1].transform(rows)).mean(0), rtol=1e-3)


def test_biases_and_half_precision():
    torch.manual_seed(0)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.bfloat16, 0.05)):
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)).to(dtype)
        x = torch.randn(5, 6, dtype=dtype)
        before = model(x)
        fold_rotation(*find_layers(model), rotations(2, 4).double() if dtype == torch.float64 else rotations(2, 4))
        assert model[0].weight.dtype == model[0].bias.dtype == dtype
        tolerance = max(tolerance, 1e-5 if dtype == torch.float64 else 0)  # the bases are of single precision
        assert float((model(x) - before).abs().max()) < tolerance


def test_refused_before_anything_changes():
    model, _ = tiny("llama")
    writer, reader = layer(model, 0, "v_proj"), layer(model, 0, "o_proj")
    before = [writer.weight.clone(), reader.weight.clone()]
    fine = rotations(1, 8)
    tied = Layer("tied", reader.module, aliases=("other",))
    conv = Layer("conv", nn.Conv2d(3, 8, 3))
    for arguments, kind, message in (
        ((writer, reader, 1.01 * fine), HyperparameterError, "not orthogonal: found an error of 0.02"),
        ((writer, reader, fine[:, :, :7]), ShapeError, "bases"),
        (
            (writer, reader, rotations(1, 5)),
            ShapeError,
            "outputs of layer .*v_proj.*found 16, expected a multiple of 1 x 5",
        ),
        ((writer, reader, rotations(4, 8)), ShapeError, "outputs of layer"),
        ((writer, reader, fine * float("nan")), NonFiniteError, "bases hold NaN"),
        ((writer, tied, fine), UnsupportedModelError, "'tied' shares its weight"),
        ((conv, reader, fine), UnsupportedModelError, "'conv': found Conv2d"),
    ):
        with pytest.raises(kind, match=message):
            fold_rotation(*arguments)
    assert torch.equal(before[0], writer.weight)
    assert torch.equal(before[1], reader.weight)
    with pytest.raises(ShapeError, match="found 32, expected a multiple of 1 x 5"):
        InputDictionaries(reader, [OnlineOrthogonalDictionary()], width=5)
