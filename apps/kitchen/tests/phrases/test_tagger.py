import json
import os

import numpy as np
import pytest
import torch

from weightsmith_kitchen.errors import ModelError, RecipeError
from weightsmith_kitchen.phrases.corpus import MajorityTagger, read_tagged
from weightsmith_kitchen.phrases.crf import LinearChainCRF
from weightsmith_kitchen.phrases.features import token_features
from weightsmith_kitchen.phrases.kernels.chain import decode, loss_and_gradient, marginals
from weightsmith_kitchen.phrases.spans import span_score, spans_of_tags
from weightsmith_kitchen.phrases.tagger import DIWAN, IngredientTagger
from weightsmith_kitchen.phrases.tokens import TokenBatch

TOKENS = [
    ["2", "cups", "rice"],
    ["1", "small", "onion", ",", "chopped"],
    ["3", "tablespoons", "olive", "oil"],
    ["1", "large", "egg"],
    ["1", "cup", "cooked", "rice"],
    ["4", "onions", ",", "sliced"],
]
TAGS = [
    ["QUANTITY", "UNIT", "NAME"],
    ["QUANTITY", "SIZE", "NAME", "O", "STATE"],
    ["QUANTITY", "UNIT", "NAME", "NAME"],
    ["QUANTITY", "SIZE", "NAME"],
    ["QUANTITY", "UNIT", "STATE", "NAME"],
    ["QUANTITY", "NAME", "O", "STATE"],
]


@pytest.fixture(scope="module")
def tagger():
    return IngredientTagger().fit(TOKENS, TAGS)


@pytest.fixture(scope="module")
def authors():
    from pathlib import Path

    folder = Path(os.environ.get("WEIGHTSMITH_DATA", "")) / "apps/recipe-ner"
    if not (folder / "ar_train.tsv").is_file():
        pytest.skip("WEIGHTSMITH_DATA names no folder with apps/recipe-ner: the paper's phrases")
    return folder


def emissions_of(ids, table):
    rows = np.where(ids[:, :, None] >= 0, table[np.maximum(ids, 0)], 0)
    return torch.from_numpy(rows.sum(1))


def test_kernels_agree_with_the_layer():
    rng = np.random.default_rng(0)
    batch = TokenBatch.from_forms([*TOKENS, []])
    ids = token_features(batch, buckets=64)
    table, moves = rng.normal(size=(64, 4)), rng.normal(size=(4, 4))
    gold = rng.integers(0, 4, len(ids)).astype(np.int8)
    layer = LinearChainCRF(4).double()
    with torch.no_grad():
        layer.transitions.copy_(torch.from_numpy(moves))
    steps = max(map(len, TOKENS))
    emissions = emissions_of(ids, table).requires_grad_()
    padded = torch.zeros(len(batch), steps, 4, dtype=torch.float64)
    tags, mask = torch.zeros(len(batch), steps, dtype=torch.long), torch.zeros(len(batch), steps, dtype=torch.bool)
    for line, (a, b) in enumerate(zip(batch.first, batch.first[1:], strict=False)):
        padded[line, : b - a] = emissions[a:b]
        tags[line, : b - a] = torch.from_numpy(gold[a:b].astype(np.int64))
        mask[line, : b - a] = True
    loss = layer(padded, tags, mask, reduction="sum")
    loss.backward()
    gradient = np.zeros_like(table)
    found, moves_gradient = loss_and_gradient(ids, batch.first, gold, table, moves, gradient)
    assert found == pytest.approx(loss.item())
    np.testing.assert_allclose(moves_gradient, layer.transitions.grad, atol=1e-10)
    expected = np.zeros_like(table)
    for token, row in enumerate(ids):
        for bucket in row[row >= 0]:
            expected[bucket] += emissions.grad[token].numpy()
    np.testing.assert_allclose(gradient, expected, atol=1e-10)
    chosen = decode(ids, batch.first, table.astype(np.float32), moves.astype(np.float32))
    assert chosen[mask.sum().item() - 1] == layer.decode(padded, mask)[-2][-1]
    assert chosen.tolist() == [label for path in layer.decode(padded, mask) for label in path]
    share = marginals(ids, batch.first, table.astype(np.float32), moves.astype(np.float32), chosen)
    expected_share = layer.marginals(padded.detach(), mask)[mask].numpy()[np.arange(len(chosen)), chosen]
    np.testing.assert_allclose(share, expected_share, atol=1e-4)


def test_learns_its_phrases(tagger):
    assert tagger.predict(TOKENS) == TAGS
    assert tagger.score(TOKENS, TAGS) == 1
    line = tagger.tag("2 cups cooked rice")
    assert [(span.label, span.text) for span in line.spans] == [
        ("QUANTITY", "2"),
        ("UNIT", "cups"),
        ("STATE", "cooked"),
        ("NAME", "rice"),
    ]
    assert all(0 < value <= 1 for value in line.confidences)


def test_many_lines_in_parts_are_each_as_alone(tagger):
    texts = [f"{n} cups cooked rice, chopped {n % 7}" for n in range(4500)] + [""]
    lines = tagger.tag_many(texts)
    assert len(lines) == 4501
    assert lines.token_count == 4500 * 7
    for place in (0, 4095, 4096, 4499, -1):
        assert lines[place] == tagger.tag(texts[place])
    assert lines[-1].spans == []
    assert [line.text for line in lines[4094:4098]] == texts[4094:4098]


def test_saved_and_loaded(tagger, tmp_path):
    tagger.save_pretrained(tmp_path / "m", extra={"made_from": "six phrases"})
    loaded = IngredientTagger.from_pretrained(tmp_path / "m")
    np.testing.assert_array_equal(loaded.table_, tagger.table_)
    assert loaded.get_params() == tagger.get_params()
    assert json.loads((tmp_path / "m/config.json").read_text())["made_from"] == "six phrases"
    (tmp_path / "m/model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="not a saved tagger"):
        IngredientTagger.from_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match="not a saved tagger"):
        IngredientTagger.from_pretrained(tmp_path / "absent")


def test_scikit_learn_clones_it(tagger):
    base = pytest.importorskip("sklearn.base")
    copy = base.clone(tagger)
    assert copy.get_params() == tagger.get_params()
    assert not hasattr(copy, "table_")
    with pytest.raises(RecipeError, match="parameter: found depth"):
        copy.set_params(depth=3)


@pytest.mark.parametrize(
    ("tokens", "tags", "message"),
    [
        ([["a", "b"], ["c"]], [["NAME", "O"], []], "tags of phrase 1: found 0, expected 1, one per token"),
        ([["a"]], [["FOOD"]], "tag in phrase 0: found 'FOOD'"),
        ([["a"]], [["NAME"]], "labels in the training phrases"),
        ([["a"]], [], "phrases with tags: found 0, expected 1"),
        (["ab"], [["NAME", "O"]], "tokens of phrase 0: found 'ab'"),
    ],
)
def test_bad_training_data(tokens, tags, message):
    with pytest.raises(ValueError, match=message):
        IngredientTagger().fit(tokens, tags)


def test_bad_settings():
    with pytest.raises(RecipeError, match="tags: found penn"):
        IngredientTagger("penn").fit(TOKENS, TAGS)
    with pytest.raises(RecipeError, match="two or more different labels"):
        IngredientTagger(["O", "O"]).fit(TOKENS, TAGS)
    with pytest.raises(RecipeError, match="power of two"):
        IngredientTagger(buckets=1000).fit(TOKENS, TAGS)
    with pytest.raises(RecipeError, match="was not fitted"):
        IngredientTagger().tag("1 egg")
    with pytest.raises(RecipeError, match="one string"):
        IngredientTagger().tag_many("1 egg")


def test_long_tokens_and_odd_characters(tagger):
    line = tagger.tag("2 cups " + "x" * 5000 + " \ud800 \U0001f9c5 cre\u0301me")
    assert len(line.tags) == len(line.tokens) == 6
    assert line.tokens[2].end - line.tokens[2].start == 5000


def test_spans_and_score():
    assert spans_of_tags([]) == []
    assert spans_of_tags(["NAME", "O", "NAME"]) == [(0, 1, "NAME"), (2, 3, "NAME")]
    score = span_score([["NAME", "NAME", "O", "UNIT"]], [["NAME", "NAME", "UNIT", "UNIT"]])
    assert (score.true_positives, score.false_positives, score.false_negatives) == (1, 1, 1)
    assert score.f1 == score.precision == score.recall == 0.5
    assert score.by_label["NAME"].f1 == 1
    with pytest.raises(RecipeError, match="predicted tags of phrase 0: found 1, expected 2"):
        span_score([["O", "O"]], [["O"]])


def test_reader_names_encoding_and_line(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_bytes("1\u00a01/2\tQUANTITY\r\nkg\tUNIT\r\n\t\r\n\t\r\nsalt\tNAME".encode())
    assert read_tagged(path) == ([["1\u00a01/2", "kg"], ["salt"]], [["QUANTITY", "UNIT"], ["NAME"]])
    path.write_bytes("a\tNAME".encode("utf-16"))
    with pytest.raises(RecipeError, match="encoding: found UTF-16, expected UTF-8"):
        read_tagged(path)
    path.write_text("a\tNAME\nb\n")
    with pytest.raises(RecipeError, match=r"t.tsv, line 2: found 'b'"):
        read_tagged(path)
    with pytest.raises(RecipeError, match="No such file"):
        read_tagged(tmp_path / "absent")


def test_authors_counts(authors):
    tokens, tags = read_tagged(authors / "ar_train.tsv")
    assert (len(tokens), sum(map(len, tokens))) == (1470, 8212)
    flat = [tag for phrase in tags for tag in phrase]
    assert {label: flat.count(label) for label in DIWAN} == {
        "QUANTITY": 1583,
        "UNIT": 1338,
        "NAME": 2501,
        "O": 1662,
        "STATE": 879,
        "DF": 154,
        "SIZE": 64,
        "TEMP": 31,
    }
    _, test = read_tagged(authors / "ar_test.tsv")
    spans = [label for phrase in test for *_, label in spans_of_tags(phrase)]
    assert len(spans) == 1845
    expected = {"DF": 51, "NAME": 499, "QUANTITY": 524, "SIZE": 20, "STATE": 300, "TEMP": 10, "UNIT": 441}
    assert {label: spans.count(label) for label in expected} == expected


def test_authors_f1(authors):
    train, test = read_tagged(authors / "ar_train.tsv"), read_tagged(authors / "ar_test.tsv")
    baseline = MajorityTagger().fit(*train)
    assert round(span_score(test[1], baseline.predict(test[0])).f1, 4) == 0.9376
    assert abs(IngredientTagger().fit(*train).score(*test) - 0.9729) < 0.006
