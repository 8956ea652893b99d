"""Alignment of labeled strings to tokens, as the training script does it."""

import importlib.util
from pathlib import Path

import pytest

from weightsmith_kitchen.phrases.tokens import tokenize

SCRIPT = Path(__file__).parents[2] / "tools/train_phrases.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_phrases", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def labels(script, text, **fields):
    forms = [token.form for token in tokenize(text)]
    found = script.align(forms, dict.fromkeys(script.FIELDS, "") | fields)
    return None if found is None else script.to_labels(forms, found)


def test_fractions_plurals_and_preparation(script):
    found = labels(
        script,
        "100g/3½oz dried bay leaves, finely chopped, to serve",
        quantity="100 3#1$2",
        unit="g oz",
        name="dried bay leaf",
        preparation="finely chopped",
        purpose="to serve",
    )
    assert " ".join(found) == "QUANTITY UNIT O QUANTITY UNIT DF NAME NAME O STATE STATE O O O"


def test_ranges_sizes_in_units_and_lengths(script):
    found = labels(script, "1 to 2 large bunches mint", quantity="1-2", unit="large bunch", name="mint")
    assert " ".join(found) == "QUANTITY QUANTITY QUANTITY SIZE UNIT NAME"
    found = labels(script, "One 1-inch piece ginger", quantity="1 1", unit="inch piece", name="ginger")
    assert " ".join(found) == "QUANTITY SIZE UNIT NAME"


def test_temperatures(script):
    found = labels(script, "1 cup hot milk", quantity="1", unit="cup", name="hot milk")
    assert " ".join(found) == "QUANTITY UNIT TEMP NAME"
    found = labels(script, "1 tsp hot sauce", quantity="1", unit="tsp", name="hot sauce")
    assert " ".join(found) == "QUANTITY UNIT NAME NAME"
    found = labels(script, "2 eggs, at room temperature", quantity="2", name="eggs", preparation="at room temperature")
    assert " ".join(found) == "QUANTITY NAME O O TEMP TEMP"


def test_fields_that_are_not_in_the_text_drop_it(script):
    assert labels(script, "1 cup milk", quantity="2", unit="cup", name="milk") is None
    assert labels(script, "1 cup milk", quantity="1", unit="cup", name="cream") is None
