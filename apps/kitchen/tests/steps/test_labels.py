import json
import os
from pathlib import Path
from zlib import crc32

import pytest

from weightsmith_kitchen.errors import RecipeError
from weightsmith_kitchen.phrases.spans import span_score
from weightsmith_kitchen.steps.labels import (
    InstructionTagger,
    default_instruction_tagger,
    dictionary_classes,
    inflected,
    read_marked,
    techniques,
    utensils,
)

DATA = Path(__file__).parents[1] / "data/steps_test.txt"
PUBLIC = DATA.with_name("steps_public.jsonl")


@pytest.mark.parametrize(
    ("verb", "forms"),
    [
        ("chop", "chop chopped chopping chops"),
        ("season", "season seasoned seasoning seasons"),
        ("knead", "knead kneaded kneading kneads"),
        ("baste", "baste basted bastes basting"),
        ("carry", "carried carries carry carrying"),
        ("spray", "spray sprayed spraying sprays"),
        ("press", "press pressed presses pressing"),
        ("mix", "mix mixed mixes mixing"),
        ("stir", "stir stirred stirring stirs"),
        ("braise", "braise braised braises braising"),
        ("knee", "knee kneed kneeing knees"),
    ],
)
def test_forms_of_verbs(verb, forms):
    assert sorted(inflected(verb)) == forms.split()


def test_dictionaries():
    assert techniques()["fried"] == ("fry", 3)
    assert techniques()["cut"] == ("cut", 1)
    assert techniques()["frying"][0] == "fry"
    assert utensils()["baking", "sheets"] == "baking sheet"
    assert utensils()["knives",] == "knife"
    assert dictionary_classes(["Chopping", "the", "boards", "and", "grills"]) == [2, 0, 0, 0, 6]
    assert dictionary_classes(["a", "chopping", "board"]) == [0, 5, 5]
    assert dictionary_classes([]) == []


def test_score_on_sentences_of_its_own():
    """Sentences that neither the dictionaries nor the tagger were made from; see the training script."""
    tokens, tags = read_marked(DATA.read_text("utf-8").splitlines())
    assert len(tokens) == 100
    tagger = InstructionTagger.default()
    score = tagger.evaluate(tokens, tags)
    assert score.by_label["TECHNIQUE"].f1 >= 0.88
    assert score.by_label["UTENSIL"].f1 >= 0.90
    names = ("O", "TECHNIQUE", "TECHNIQUE", "O", "TECHNIQUE", "UTENSIL", "UTENSIL")
    by_dictionary = [[names[kind] for kind in dictionary_classes(words)] for words in tokens]
    assert score.f1 > span_score(tags, by_dictionary).f1 + 0.05


def test_one_word_in_two_roles():
    tagger = default_instruction_tagger()
    found = [(span.label, span.text) for span in tagger.tag("Whisk the yolks with a whisk.").spans]
    assert found == [("TECHNIQUE", "Whisk"), ("UTENSIL", "whisk")]
    assert tagger.tag("").spans == []


def test_saved_and_loaded(tmp_path):
    tokens, tags = read_marked(["{Stir} with a <spoon>.", "{Bake} in the <oven>."])
    tagger = InstructionTagger().fit(tokens, tags)
    tagger.save_pretrained(tmp_path / "m")
    loaded = InstructionTagger.from_pretrained(tmp_path / "m")
    assert loaded.predict(tokens) == tagger.predict(tokens) == tags


@pytest.mark.parametrize("line", ["{Bake", "Bake}", "<>", "{Ba}ke"])
def test_bad_marks(line):
    with pytest.raises(RecipeError, match="line 1"):
        read_marked([line])


def test_score_on_instructions_of_web_pages():
    """Places in texts that are not ours; see the README beside the data."""
    source = Path(os.environ.get("WEIGHTSMITH_DATA", "")) / "apps/recipes-json/recipes.json"
    if not source.is_file():
        pytest.skip("WEIGHTSMITH_DATA names no folder with apps/recipes-json: the instructions")
    recipes = json.loads(source.read_text("utf-8"))
    tagger = default_instruction_tagger()
    gold, found = [], []
    for row in map(json.loads, PUBLIC.read_text("utf-8").splitlines()):
        text = recipes[row["recipe"]]["instructions_list"][row["step"]]
        assert crc32(text.encode()) == row["crc32"]
        line = tagger.tag(text)
        labels = ["O"] * len(line.tokens)
        for start, end, label in row["spans"]:
            for place, token in enumerate(line.tokens):
                if start <= token.start and token.end <= end:
                    labels[place] = label
        gold.append(labels)
        found.append(line.tags)
    score = span_score(gold, found)
    assert len(gold) == 57
    assert score.by_label["TECHNIQUE"].f1 >= 0.88
    assert score.by_label["UTENSIL"].f1 >= 0.90
