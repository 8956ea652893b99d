import json

import numpy as np
import pytest

from weightsmith.core.errors import CalibrationError
from weightsmith_kitchen.calories import CalorieTable, parse_list
from weightsmith_kitchen.claims import caloraify

TABLE = {
    "pound butter": 3252.0,
    "tablespoon butter": 102.0,
    "cup rice": 205.0,
    "tablespoon wheat flour": 28.0,
    "cup wheat flour": 455.0,
    "cup milk": 149.0,
    "cup sugars": 770.0,
    "teaspoon sugars": 16.0,
}
LISTS = ["1 cup of rice, 2 tablespoon of butter", "12 cup of wheat flour, 1 cup of milk", "3 teaspoon of sugars"]


def test_invented_lists(tmp_path, monkeypatch):
    """Units decide the energy of butter; look-up of the ingredient alone takes the row of the pound."""
    folder = tmp_path / "apps" / "caloraify"
    folder.mkdir(parents=True)
    (folder / "database.json").write_text(json.dumps(TABLE))
    rows = [{"GT": f"The dish is X. They are: {LISTS[place % 3]}.", "pred": LISTS[place % 3]} for place in range(60)]
    (folder / "test_result.json").write_text(json.dumps(rows))
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path))
    noisy, predicted = caloraify.run(seeds=(0, 1, 2))
    means = {arm.name: np.mean(arm.values) for arm in noisy.arms}
    assert means["unit-aware"] < means["ingredient alone"]
    assert means["unit-aware"] < means["exact key only"]
    assert "100 of 100 well-formed items" in noisy.notes[0]
    errors = {arm.name: np.mean(arm.values) for arm in predicted.arms}
    assert errors["unit-aware"] == errors["exact key only"] == 0 < errors["constant median"]
    assert not predicted.holds  # perfect predictions do beat the constant


def test_fuzz_keeps_amounts_and_units():
    items = parse_list("1 1/2 cup of wheat flour, 2 tablespoon of butter, 1-2 teaspoon of sugars")
    rng = np.random.default_rng(0)
    for _ in range(20):
        noisy = parse_list(caloraify.fuzz(items, rng))
        assert sorted((str(item.amount), item.unit) for item in noisy) == sorted(
            (str(item.amount), item.unit) for item in items
        )


def test_share_of_typos():
    rng = np.random.default_rng(0)
    name = "abcdefghij" * 2000
    replaced = caloraify._typos(name, rng)
    # one kind in four drops a letter and one doubles it
    assert abs(len(replaced) - len(name)) < 100
    assert replaced != name


def test_parsed_counts_misses():
    note = caloraify.parsed(
        CalorieTable.from_rows([("cup rice", 205)]), [{"GT": "They are: 1 cup of rice, 1 cup of x."}]
    )
    assert "1 of 2 well-formed" in note


def test_missing_data_of_caloraify_is_named(monkeypatch):
    monkeypatch.delenv("WEIGHTSMITH_DATA", raising=False)
    with pytest.raises(CalibrationError, match="apps/caloraify"):
        caloraify.run()
