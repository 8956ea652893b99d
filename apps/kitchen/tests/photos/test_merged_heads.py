"""How the groceries and the foods of ImageNet become one distribution."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings, strategies as st

from weightsmith_kitchen.errors import ModelError
from weightsmith_kitchen.photos.merged import (
    GROCERIES,
    PHOTOGRAPHED_WITH,
    Evidence,
    Gate,
    food_shares,
    food_table,
    merged_log_probabilities,
)

LABELS = [row.label for row in food_table()]
FOODS = len(LABELS)


def evidence(photos=4, seed=0, **changes):
    g = torch.Generator().manual_seed(seed)
    values = {
        "probe_logits": torch.randn(photos, GROCERIES, generator=g),
        "tuned_logits": torch.randn(photos, GROCERIES, generator=g),
        "image_logits": 3 * torch.randn(photos, 1000, generator=g),
        "like_groceries": torch.rand(photos, generator=g),
        "scenes": 2 * torch.randn(photos, generator=g),
    }
    return Evidence(**{**values, **changes})


def test_the_table():
    rows = food_table()
    assert len({row.label for row in rows}) == len(rows) == 116
    assert all(row.food == row.food.lower().strip() and row.food for row in rows)
    assert [row.label for row in rows[:81] if row.label == "Zucchini"] == ["Zucchini"]
    assert all(row.imagenet is not None for row in rows[81:])
    foods, shares = food_shares()
    assert len(foods) == 46
    assert not set(foods) & set(PHOTOGRAPHED_WITH)
    assert all(0 <= number < 1000 for number in (*foods, *PHOTOGRAPHED_WITH))
    assert shares.sum().item() == 81 - 67 + 35  # 14 groceries are in ImageNet: 10 foods and four colors of one
    known = {row.label: row.imagenet for row in rows}
    assert (known["Granny-Smith"], known["Banana"], known["Lemon"], known["Pineapple"]) == (948, 954, 951, 953)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 0.95), st.floats(0.01, 1), st.floats(-3, 3), st.floats(-3, 3))
def test_probabilities_sum_to_one(seed, tuned, softness, scenes, groceries):
    gate = Gate(1.3, 0.8, tuned, 0.4, softness, scenes, groceries, 0.1)
    found = merged_log_probabilities(evidence(seed=seed), gate).exp()
    assert found.shape == (4, FOODS + 2)
    assert torch.allclose(found.sum(1), torch.ones(4), atol=1e-5)


def test_photos_like_groceries_are_read_by_the_grocery_heads():
    read = evidence(like_groceries=torch.full((4,), 0.9))
    gate = Gate(tuned=0.25, like_groceries=0.4, softness=0.01, offset=50.0)
    found = merged_log_probabilities(read, gate).exp()
    mixed = 0.25 * read.tuned_logits.log_softmax(1) + 0.75 * read.probe_logits.log_softmax(1)
    assert torch.allclose(found[:, :GROCERIES], mixed.softmax(1), atol=1e-5)
    assert found[:, GROCERIES:].max() < 1e-5


def test_other_photos_are_read_by_imagenets_head_and_foods_of_both_add_up():
    image_logits = torch.randn(4, 1000)
    image_logits[:, 945] += 5
    read = evidence(like_groceries=torch.zeros(4), image_logits=image_logits)
    found = merged_log_probabilities(read, Gate(softness=0.01, offset=50.0)).exp()
    image = read.image_logits.softmax(1)
    for label, number in (("Granny-Smith", 948), ("Pizza", 963), ("Banana", 954)):
        assert torch.allclose(found[:, LABELS.index(label)], image[:, number], atol=1e-6)
    assert found[:, LABELS.index("Kiwi")].max() < 1e-6  # ImageNet has none
    foods, _ = food_shares()
    assert torch.allclose(found[:, FOODS], 1 - image[:, list(foods)].sum(1), atol=1e-5)  # other food
    peppers = [LABELS.index(f"{color}-Bell-Pepper") for color in ("Green", "Orange", "Red", "Yellow")]
    assert torch.allclose(found[:, peppers].sum(1), image[:, 945], atol=1e-6)
    mixed = (0.6 * read.tuned_logits.log_softmax(1) + 0.4 * read.probe_logits.log_softmax(1)).softmax(1)[:, peppers]
    shares = found[:, peppers] / found[:, peppers].sum(1, keepdim=True)
    assert torch.allclose(shares, mixed / mixed.sum(1, keepdim=True), atol=1e-3)


def test_without_evidence_of_food_there_is_none():
    read = evidence(scenes=torch.full((4,), -30.0))
    found = merged_log_probabilities(read, Gate()).exp()
    assert found[:, -1].min() > 0.999


def test_gates_that_cannot_be():
    assert Gate.from_dict(Gate().to_dict()) == Gate()
    for values in (None, {}, {**Gate().to_dict(), "offset": "1"}, {**Gate().to_dict(), "softness": 0.0}):
        with pytest.raises(ModelError, match="gate"):
            Gate.from_dict(values)
    assert dataclasses.is_dataclass(Gate)
