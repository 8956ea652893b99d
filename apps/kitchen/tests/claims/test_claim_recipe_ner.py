import numpy as np
import pytest

from weightsmith.core.errors import CalibrationError
from weightsmith_kitchen.claims import recipe_ner

WORDS = ["rice", "flour", "onion", "leek", "sugar", "milk", "beans", "peas"]


def phrases(unit, seed, count=60):
    rng = np.random.default_rng(seed)
    tokens = [[str(rng.integers(1, 9)), unit, "chopped", str(rng.choice(WORDS))] for _ in range(count)]
    return tokens, [["QUANTITY", "UNIT", "STATE", "NAME"] for _ in tokens]


def test_matrix_on_invented_sources():
    """Two sources that differ in their unit only: the shared words are found across, the unit is not."""
    values = recipe_ner.matrix({"AR": phrases("cups", 0, 300), "GK": phrases("grams", 1, 300)}, seed=0)
    assert len([name for name in values if " -> " in name]) == 18
    assert values["CRF AR -> AR"] == values["CRF both -> both"] == 1
    assert values["majority tag AR -> GK"] == pytest.approx(6 / 7)  # three of four spans, none wrong
    assert values[recipe_ner.BOTH] <= values[recipe_ner.BEST]


def test_sampling_on_invented_phrases(monkeypatch):
    monkeypatch.setattr(recipe_ner, "BUDGETS", (10,))
    vectors = np.random.default_rng(0).random((60, 36))
    values = recipe_ner.sampling(phrases("cups", 0), vectors, seed=3)
    assert set(values) == {"clusters, 10 phrases", "random, 10 phrases"}
    assert all(0.5 < value <= 1 for value in values.values())


def test_missing_data_is_named(monkeypatch):
    monkeypatch.delenv("WEIGHTSMITH_DATA", raising=False)
    with pytest.raises(CalibrationError, match="apps/recipe-ner"):
        recipe_ner.run()
