"""Scores of written lists: closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from weightsmith_kitchen import CalorieTable, ModelError
from weightsmith_kitchen.calories import CalorieIndex
from weightsmith_kitchen.vlm import score_lists
from weightsmith_kitchen.vlm.scores import item_f1, ridge, totals


def test_f1_counts_over_all_lists():
    said = ["1 apple of 200 g, 1 egg of 50 g", "1 bun of 80 g", "nothing"]
    wanted = ["1 apple of 100 g", "1 egg of 50 g, 1 bun of 80 g", "1 egg of 50 g"]
    # 2 names are right of 4 that were written ("nothing" is a name) and 4 that are true
    assert item_f1(said, wanted) == pytest.approx(2 * 2 / (4 + 4))
    assert item_f1(["1 egg of 3 g"], ["1 egg of 50 g"]) == 1
    assert item_f1([""], [""]) == 0


@given(st.lists(st.sampled_from(["apple", "egg", "bun", "kiwi"]), min_size=1, max_size=6), st.randoms())
def test_f1_does_not_depend_on_the_order(names, rng):
    wanted = ", ".join(f"1 {name} of 50 g" for name in names)
    shuffled = list(names)
    rng.shuffle(shuffled)
    assert item_f1([", ".join(f"1 {name} of 20 g" for name in shuffled)], [wanted]) == 1


def test_totals_in_grams_and_calories():
    lists = ["1 apple of 200 g, 2 eggs of 50 g", "1 cup of rice", "", "1/0 g of salt"]
    assert totals(lists).tolist()[0] == 300
    assert all(math.isnan(value) for value in totals(lists)[1:])
    index = CalorieIndex(CalorieTable.from_rows([("gram apple", 0.5), ("cup rice", 205)]))
    assert totals(["1 apple of 200 g, 1 cup of rice", "1 kangaroo of 5 g"], index)[0] == 305
    assert math.isnan(totals(["1 kangaroo of 5 g"], index)[0])


def test_ridge_is_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64) * 3 + 1
    y = x @ torch.arange(6.0, dtype=torch.float64) + torch.randn(40, generator=generator, dtype=torch.float64)
    found = torch.from_numpy(ridge(x, y.numpy()).predict(x.numpy()))
    z = (x - x.mean(0)) / x.std(0, correction=0)
    errors = {}
    for strength in np.logspace(-1, 6, 15):
        kept = []
        for left in range(len(y)):
            some = [place for place in range(len(y)) if place != left]
            # leave-one-out with the standardization of all rows, and a mean of the rows that are kept
            zs, ys = z[some] - z[some].mean(0), y[some] - y[some].mean()
            solved = torch.linalg.solve(zs.T @ zs + strength * torch.eye(6, dtype=torch.float64), zs.T @ ys)
            kept.append(float(((z[left] - z[some].mean(0)) @ solved + y[some].mean() - y[left]) ** 2))
        errors[strength] = np.mean(kept)
    best = min(errors, key=errors.get)
    solved = torch.linalg.solve(z.T @ z + best * torch.eye(6, dtype=torch.float64), z.T @ (y - y.mean()))
    assert torch.allclose(found, z @ solved + y.mean(), atol=1e-8)


def test_scores_against_the_constant_and_the_regression():
    known, wanted = ["1 egg of 50 g", "1 egg of 60 g", "1 egg of 100 g"], ["1 egg of 55 g", "1 egg of 90 g"]
    tokens = torch.tensor([[[55.0]], [[90.0]]])
    learned = torch.tensor([[[50.0]], [[60.0]], [[100.0]]])
    found = score_lists(["1 egg of 56 g", "an egg"], wanted, known, tokens=tokens, known_tokens=learned)
    assert found.constant == pytest.approx((5 + 30) / 2)  # the median is 60 g
    assert found.error == pytest.approx((1 + 30) / 2)  # the second list has no total
    assert found.unreadable == 1
    assert found.regression is not None
    assert found.regression < 2
    assert not found.worth_it
    good = score_lists(wanted, wanted, known, tokens=tokens, known_tokens=learned)
    assert good.error == 0
    assert good.f1 == 1
    assert good.worth_it
    assert score_lists(["1 egg"], ["1 egg"], ["1 egg"]).error is None
    with pytest.raises(ModelError, match="as many"):
        score_lists(["1 egg"], [], known)
