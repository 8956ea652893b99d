"""Words and their offsets, whatever the text is made of."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from weightsmith_phenotype import word_table
from weightsmith_phenotype.kernels import match, scan
from weightsmith_phenotype.tokens import HYPHENS, JOINERS, segments, split, tokenize
from weightsmith_phenotype.word_table import WordTable, character_classes
from weightsmith_phenotype.words import lemma, plain, stem

NASTY = st.lists(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(list("-'’/.,()\t\r\n \u0301\u200d\u00ad😀αé")),
        st.sampled_from(["short", " stature", "\r\n", "epi-\nphyses", "low-set "]),
    )
).map("".join)


@given(NASTY)
def test_words_are_in_order_and_cover_all_that_is_not_space(text):
    words, starts, ends = split(text, lambda word: word in {"epiphyses", "lowset"})
    covered = [False] * len(text)
    last = 0
    for word, start, end in zip(words, starts, ends, strict=True):
        assert 0 <= start <= end <= len(text)
        assert start >= last or not word
        if word:
            last = start
            assert start < end
        for place in range(start, end):
            covered[place] = True
    assert all(covered[place] or text[place].isspace() for place in range(len(text)))


@given(NASTY)
def test_tokens_are_the_text_at_their_place(text):
    for token in tokenize(text):
        assert plain(text[token.start : token.end]) == token.form or "\u0301" in text or "\u200d" in text


def test_hyphens_and_slashes_stand_alone():
    tokens = tokenize("He has short-stature/obesity.")
    assert [(t.start, t.end) for t in tokens if t.form in ("short", "stature", "obesity")] == [
        (7, 12),
        (13, 20),
        (21, 28),
    ]


def test_a_word_across_a_line_break_is_one_if_it_is_a_word():
    text = "cone-shaped epi-\n  physes here"
    words, starts, ends = split(text, lambda word: word == "epiphyses")
    place = words.index("epiphyses")
    assert text[starts[place] : ends[place]] == "epi-\n  physes"
    assert "epiphyses" not in split(text, lambda word: False)[0]


def test_an_accent_of_its_own_belongs_to_its_word():
    text = "Sjo\u0308gren cafe\u0301 au lait"
    assert [t.form for t in tokenize(text)] == ["sjogren", "cafe", "au", "lait"]
    assert [text[t.start : t.end] for t in tokenize(text)][:2] == ["Sjo\u0308gren", "cafe\u0301"]


def test_segments_end_at_sentences_brackets_and_blank_lines():
    runs = segments(tokenize("Short stature. Cleft (palate) here\n\nnew: line-end"))
    assert [" ".join(t.form for t in run) for run in runs] == [
        "short stature",
        "cleft",
        "palate",
        "here",
        "new",
        "line end",
    ]


@pytest.mark.parametrize(
    ("british", "american"),
    [
        ("anaemia", "anemia"),
        ("oedema", "edema"),
        ("haemorrhage", "hemorrhage"),
        ("tumours", "tumors"),
        ("generalised", "generalized"),
        ("ischaemia", "ischemia"),
    ],
)
def test_british_and_american_spelling_are_one(british, american):
    assert plain(british) == plain(american) == american


@pytest.mark.parametrize("word", ["shoe", "aerobic", "four", "precise", "disease", "exercises", "promise", "phoenix"])
def test_words_that_only_look_british_stay_themselves_or_agree_on_both_sides(word):
    assert plain(plain(word)) == plain(word)


@pytest.mark.parametrize("word", ["seizures", "anaemia", "oesophagus", "Generalised", "café", "ﬁstula", "naïve"])
def test_normal_forms_are_stable(word):
    assert plain(plain(word)) == plain(word)
    assert lemma(lemma(plain(word))) == lemma(plain(word))
    assert stem(plain(word))


def assert_same_words(words, text):
    """The kernel splits a text as `split` does; lines end in one word, however they end."""
    starts, ends, rows = (column.tolist() for column in words.read(text))
    known = list(words.numbers)
    flags = words.columns[0]
    expected, *places = split(text, lambda word: bool(flags[words.numbers[word]] & match.NAMED))
    assert [starts, ends] == places
    assert [known[row] for row in rows] == ["\n" if "\n" in word else word for word in expected]


@given(NASTY)
def test_the_kernel_splits_as_the_rules_say(small_tagger, text):
    assert_same_words(WordTable(small_tagger.dictionary), text)
    assert_same_words(small_tagger._matcher.words, text)


@pytest.mark.parametrize(
    "text",
    [
        "epi-\n  physes and epi-physes, short-stature, low-set",
        "Sjo\u0308gren cafe\u0301 a\u0301-\nb\u0301-\nc",
        "Line one is short\n- item\n(1) item\n12. item\nLabel here: x\n\nNext",
        "A line that is much longer than any line of a list is, so it\nwas wrapped.\r\n\r\nNew\tcell",
        "x\ud800y \U0010ffff 1\u0661 \u2167 \xb2",
    ],
)
def test_the_kernel_splits_these(small_tagger, text):
    words = WordTable(small_tagger.dictionary)
    assert_same_words(words, text)
    assert_same_words(words, text)


def test_a_text_of_new_words_is_read_whole(small_tagger):
    text = " ".join(f"word{n} new{n}-part{n}" for n in range(3000))
    words = WordTable(small_tagger.dictionary)
    assert_same_words(words, text)
    assert len(words.read(text)[0]) == 4 * 3000


def test_the_table_of_words_starts_anew_when_it_is_full(small_tagger, monkeypatch):
    monkeypatch.setattr(word_table, "MOST_WORDS", 20)
    words = WordTable(small_tagger.dictionary)
    for turn in range(5):
        words.read(" ".join(f"word{turn}x{n}" for n in range(10)))
        assert len(words.numbers) <= 20
    assert len(words.read(" ".join(f"w{n}" for n in range(100)))[0]) == 100


def test_what_characters_are_is_what_the_rules_say():
    classes = character_classes()
    for kind, pattern in ((scan.WORD, r"[^\W_]"), (scan.SPACE, r"\s"), (scan.DIGIT, r"\d")):
        expected = re.compile(pattern)
        assert all(bool(classes[n] & kind) == bool(expected.match(chr(n))) for n in range(0, len(classes), 7))
    assert all(bool(classes[n] & scan.LETTER) == chr(n).isalpha() for n in range(0, len(classes), 7))
    assert {chr(n) for n in (classes & scan.HYPHEN).nonzero()[0]} == HYPHENS
    assert {chr(n) for n in (classes & scan.JOINER).nonzero()[0]} == JOINERS
