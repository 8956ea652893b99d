import pytest

spacy = pytest.importorskip("spacy")

from weightsmith_kitchen import spacy_component  # noqa: E402, F401


@pytest.fixture
def nlp():
    pipeline = spacy.blank("en")
    pipeline.add_pipe("recipe_ingredients")
    return pipeline


def test_lines_of_one_text(nlp):
    doc = nlp("2½ cups rice\n\n400g cooked beans, drained")
    spans = doc.spans["ingredients"]
    found = [(span.text, span.label_) for span in spans]
    assert found[:3] == [("2½", "QUANTITY"), ("cups", "UNIT"), ("rice", "NAME")]
    assert ("beans", "NAME") in found
    assert ("drained", "STATE") in found
    assert len(spans.attrs["confidences"]) == len(spans)
    assert nlp("").spans["ingredients"].attrs["confidences"] == []


def test_many_texts_are_each_as_alone(nlp):
    texts = [f"{n} cups sugar" for n in range(1, 30)]
    for doc, text in zip(nlp.pipe(texts), texts, strict=True):
        alone = nlp(text)
        assert [str(s) for s in doc.spans["ingredients"]] == [str(s) for s in alone.spans["ingredients"]]


def test_pipeline_to_disk_and_back(nlp, tmp_path):
    nlp.to_disk(tmp_path / "p")
    nlp.to_disk(tmp_path / "p")
    loaded = spacy.load(tmp_path / "p")
    text = "1 (14 ounce) can tomatoes"
    one, other = loaded(text), nlp(text)
    assert [(s.text, s.label_) for s in one.spans["ingredients"]] == [
        (s.text, s.label_) for s in other.spans["ingredients"]
    ]
