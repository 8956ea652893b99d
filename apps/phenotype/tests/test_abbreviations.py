"""Abbreviations that a text defines itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from weightsmith_phenotype import Mention
from weightsmith_phenotype.abbreviations import definitions, expand


def tagged(text, *names, source="dictionary"):
    return [
        Mention(text.index(name), text.index(name) + len(name), name, f"ID:{name}", name.title(), 0.98, source)
        for name in names
    ]


def short_forms(text, *names):
    """Offsets and concepts of the short forms that were added."""
    return [
        (m.start, m.text, m.concept_id[3:]) for m in expand(text, tagged(text, *names)) if m.source == "abbreviation"
    ]


def test_check_9_every_stand_alone_short_form_has_the_id_and_score_of_the_long_form():
    text = "A boy with short stature (SS) was seen. SS was treated; SS-like, SSX and xSS are other words."
    found = expand(text, tagged(text, "short stature"))
    assert [(m.start, m.end, m.text) for m in found] == [(11, 24, "short stature"), (26, 28, "SS"), (40, 42, "SS")]
    added = [m for m in found if m.source == "abbreviation"]
    assert [m.text for m in added] == ["SS", "SS"]
    assert {(m.concept_id, m.score, m.name) for m in added} == {("ID:short stature", 0.98, "Short Stature")}
    assert all(text[m.start : m.end] == m.text for m in found)


@pytest.mark.parametrize(
    "text",
    [
        "He has short stature (Fig. 1). Fig. 1 shows it.",
        "short stature (1), short stature (12), 12",
        "short stature (S). S is one letter.",
        "short stature (Table) Table",
        "short stature (see) see",
        "short stature (n = 12) n",
        "short stature (HP:0004322) HP",
        "short stature (XY) XY",  # not its letters
    ],
)
def test_what_is_no_short_form(text):
    assert short_forms(text, "short stature") == []


@pytest.mark.parametrize(
    "text",
    ["short stature (SS", "short stature SS)", "((short stature (SS", ")(", "(", "[(])", "short stature (SS) (("],
)
def test_unbalanced_brackets_do_not_crash(text):
    mentions = tagged(text, "short stature") if "short stature" in text else []
    assert [m for m in expand(text, mentions) if m.source != "abbreviation"] == mentions


def test_both_orders_and_square_brackets_and_quotes():
    text = "ID (intellectual disability) and short stature ['SS'; mild]: ID, SS"
    assert [(d.short, text[d.start : d.end]) for d in definitions(text)] == [
        ("ID", "intellectual disability"),
        ("SS", "short stature"),
    ]
    assert [name for _, name, _ in short_forms(text, "intellectual disability", "short stature")] == [
        "ID",
        "SS",
        "ID",
        "SS",
    ]


def test_plural_short_forms():
    text = "Basal cell carcinomas (BCC) recurred; two BCCs were removed."
    assert [name for _, name, _ in short_forms(text, "Basal cell carcinomas")] == ["BCC", "BCCs"]
    text = "Basal cell carcinomas (BCCs) recurred; one BCC was removed."
    assert [name for _, name, _ in short_forms(text, "Basal cell carcinomas")] == ["BCCs", "BCC"]


def test_the_nearest_definition_before_counts():
    text = "SS. Short stature (SS). SS. Systemic sclerosis (SS). SS. Sjogren syndrome (SS). SS."
    found = short_forms(text, "Short stature", "Systemic sclerosis")
    assert [concept for _, _, concept in found] == ["Short stature"] * 3 + ["Systemic sclerosis"] * 2
    assert max(start for start, _, _ in found) < text.index("Sjogren")  # defined as something that is no finding


def test_the_long_form_must_be_tagged_exactly():
    text = "severe short stature (SS), SS"
    assert short_forms(text, "severe short stature") == []
    assert len(short_forms(text, "short stature")) == 2


def test_letters_inside_words_and_small_words():
    for text, short, long in [
        ("attention deficit hyperactivity disorder (ADHD)", "ADHD", "attention deficit hyperactivity disorder"),
        ("systemic sclerosis (SS)", "SS", "systemic sclerosis"),
        ("tetralogy of Fallot (TOF)", "TOF", "tetralogy of Fallot"),
        ("Seen: low-set ears (LSE)", "LSE", "low-set ears"),
        ("type 2 diabetes mellitus (T2DM)", "T2DM", "type 2 diabetes mellitus"),
        ("He has X-linked intellectual disability (XLID)", "XLID", "X-linked intellectual disability"),
        ("No ataxia. Short stature (SS)", "SS", "Short stature"),
    ]:
        (definition,) = definitions(text)
        assert (definition.short, text[definition.start : definition.end]) == (short, long)


def test_a_longer_mention_keeps_its_words_and_the_same_span_gives_way():
    text = "short stature (SS), SS syndrome, SS"
    start = text.index("SS syndrome")
    longer = Mention(start, start + 11, "SS syndrome", "ID:other")
    same = Mention(len(text) - 2, len(text), "SS", "ID:wrong", "", 0.96, "classifier")
    found = expand(text, [*tagged(text, "short stature"), longer, same])
    assert [(m.start, m.concept_id) for m in found] == [
        (0, "ID:short stature"),
        (15, "ID:short stature"),
        (start, "ID:other"),
        (len(text) - 2, "ID:short stature"),
    ]


def test_nothing_is_changed_without_definitions():
    text = "short stature, SS"
    assert expand(text, tagged(text, "short stature")) == tagged(text, "short stature")
    assert expand("", []) == []


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(["(", ")", "[", "SS", "short stature", " ", "\n", ";", "S", "ID", "é", "😀", "(SS)"]),
        max_size=40,
    )
)
def test_any_text(pieces):
    text = "".join(pieces)
    mentions = tagged(text, "short stature") if "short stature" in text else []
    found = expand(text, mentions)
    assert [m for m in found if m.source != "abbreviation"] == mentions
    assert all(text[m.start : m.end] == m.text and m.text in ("SS", "SSs") for m in found if m.source == "abbreviation")
    assert found == sorted(found)


@pytest.mark.timeout(60)  # a second or two; quadratic time would be minutes
@pytest.mark.parametrize("piece", ["(", "(AB)", "short stature (SS) ", "(a", "SS ", "A-", "[(", "a ("])
def test_hostile_text_takes_linear_time(piece):
    text = "short stature (SS) " + piece * (300_000 // len(piece))
    mentions = tagged(text, "short stature")
    assert [m for m in expand(text, mentions) if m.source != "abbreviation"] == mentions
