"""Train the ingredient tagger that ships: ``python apps/kitchen/tools/train_phrases.py DATA [OUT]``.

DATA is a folder with the labeled sentences of ingredient-parser (github.com/strangetom/ingredient-parser, MIT): CSV
files with the columns input, name, quantity, unit, size, preparation, comment, purpose. Labels are strings, not tokens;
`align` gives every token of the sentence the field that its word stands in, and drops sentences whose fields cannot be
found in them. How the fields become the paper's labels:

- quantity, unit, size, name: QUANTITY, UNIT, SIZE, NAME. Words of size in a unit ("large bunch") are SIZE; manners of
  filling ("heaped") are O; a length with a hyphen ("1-inch piece") is SIZE.
- preparation: STATE, the whole phrase ("finely chopped"). The paper labels its head word only.
- comment, purpose, and all that is in no field: O.
- fresh, freshly, dried and dry in a name, and freshly in a preparation: DF, except dry wines. "A few", "some" and such
  at the start: O. Frozen, lukewarm, "room temperature", and hot, cold, warm before a liquid or butter: TEMP. These are
  rules; the sentences have no such labels.

One sentence in six is learned a second time with capitals.

A tenth of the sentences, chosen by a hash of their lower-cased text, is held out: no text is on both sides.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np

from weightsmith_kitchen.phrases.corpus import MajorityTagger
from weightsmith_kitchen.phrases.spans import SpanScore, span_score
from weightsmith_kitchen.phrases.tagger import SHIPPED, IngredientTagger
from weightsmith_kitchen.phrases.tokens import tokenize_lines

FIELDS = ("quantity", "unit", "size", "name", "preparation", "comment", "purpose")
LABELS = {"quantity": "QUANTITY", "unit": "UNIT", "size": "SIZE", "name": "NAME", "preparation": "STATE"}
SIZES = {"small", "medium", "large", "big", "little", "tiny", "huge", "extra-large", "jumbo", "thin", "thick", "long"}
SIZES |= {"short", "fat", "fine", "very", "medium-sized", "medium-size", "good-sized"}
MANNERS = {"heaped", "heaping", "level", "rounded", "scant", "generous", "packed", "slightly", "good", "overflowing"}
DRY_FRESH, FROZEN = {"fresh", "freshly", "dried", "dry"}, {"frozen", "lukewarm", "tepid"}
WARMTH = {"hot", "cold", "warm", "ice-cold", "iced", "cool"}
WARMED = {"water", "milk", "stock", "broth", "cream", "butter", "coffee", "oil", "tea", "espresso", "bouillon"}
WARMED |= {"buttermilk", "unsalted", "tap"}
WINES = {"white", "red", "wine", "sherry", "vermouth", "cider", "marsala", "madeira", "riesling", "rosé", "champagne"}
VAGUE = {"a", "an", "few", "little", "some", "couple", "of", "more", "additional", "extra", "about"}
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
L2, PRUNED, CAPITALS = 0.3, 0.01, 6
"""Rows of the table whose weights are all below this are left out."""


def rows(folder: Path) -> Iterator[dict[str, str]]:
    """Labeled sentences, each text once."""
    seen = set()
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                text = row["input"].strip()
                if any(row[field] for field in FIELDS) and text.lower() not in seen:
                    seen.add(text.lower())
                    yield row | {"input": text, "source": path.name.split("-")[0]}


def stem(word: str) -> str:
    """Lower-cased singular, roughly: what the fields have where the sentence has a plural."""
    word = word.lower().rstrip(".")
    word = str(NUMBERS.index(word) + 1) if word in NUMBERS else word
    for ending, other in (("ies", "y"), ("ves", "v"), ("oes", "o"), ("shes", "sh"), ("ches", "ch"), ("xes", "x")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + other
    if word.endswith("s") and not word.endswith("ss") and len(word) > 2:
        word = word[:-1]
    for ending in ("ve", "fe", "f"):
        if word.endswith(ending) and len(word) > 3:
            return word.removesuffix(ending) + "v"
    return word


def words_of(text: str) -> list[str]:
    """Words of a field, split as sentences are; ``#1$2`` is one half."""
    parts = [part.replace("#", " ").replace("$", "/").strip() for part in text.split()]
    ranges = [part.replace("- ", "-") if "-" in part else part for part in parts]
    batch = tokenize_lines(ranges)
    return [stem(form) for line in range(len(batch)) for form in batch.forms(line)]


def align(forms: Sequence[str], row: Mapping[str, str]) -> list[str] | None:
    """The field of each token, "" for none; None where a field's words are not in the sentence."""
    left = {field: words_of(row[field]) for field in FIELDS}
    total = sum(map(len, left.values()))
    found, before, place = [""] * len(forms), "", 0
    while place < len(forms):
        word = stem(forms[place])
        span = f"{word}-{stem(forms[place + 2])}" if place + 2 < len(forms) else ""
        if span in left["quantity"] and forms[place + 1].lower() in ("to", "or"):
            left["quantity"].remove(span)
            found[place : place + 3] = ["quantity"] * 3
            before, place = "quantity", place + 3
            continue
        fields = [field for field in FIELDS if word in left[field]]
        pair = word.split("-") if word[:1].isdigit() and "-" in word else []
        if fields:
            # The field whose next word this is, and of those the one that the token before is in.
            chosen = min(fields, key=lambda field: (left[field][0] != word, field != before, FIELDS.index(field)))
            left[chosen].remove(word)
            found[place] = before = chosen
        elif len(pair) == 2:
            for parts in (("quantity", "unit"), *((field, field) for field in FIELDS)):
                if pair[0] in left[parts[0]] and pair[1] in left[parts[1]]:
                    left[parts[0]].remove(pair[0])
                    left[parts[1]].remove(pair[1])
                    found[place] = before = "size" if parts[0] == "quantity" else parts[0]
                    break
        place += 1
    missing = sum(map(len, left.values()))
    bad = missing > 0.2 * total or left["quantity"] or left["unit"] or left["size"] or left["name"]
    return None if bad or not any(found) else found


def to_labels(forms: Sequence[str], fields: Sequence[str]) -> list[str]:
    """The paper's labels of tokens with these fields."""
    labels = []
    for place, (form, field) in enumerate(zip(forms, fields, strict=True)):
        word, label = form.lower(), LABELS.get(field, "O")
        before = forms[place - 1].lower() if place else ""
        after = forms[place + 1].lower() if place + 1 < len(forms) else ""
        if field == "unit" and word in SIZES:
            label = "SIZE"
        elif (field == "unit" and word in MANNERS) or (field == "quantity" and word in ("x", "×", "plus", "+", "&")):
            label = "O"
        elif field in ("name", "preparation"):
            # "patted dry" and "washed and dried" are states.
            if word in DRY_FRESH and (word.startswith("fresh") or field == "name") and after not in WINES:
                label = "DF"
            elif (
                word in FROZEN
                or (word in WARMTH and after in WARMED)
                or (word, after) == ("room", "temperature")
                or (before, word) == ("room", "temperature")
            ):
                label = "TEMP"
            elif word == "at" and after == "room":
                label = "O"
        labels.append(label)
    for place, form in enumerate(forms):
        if form.lower() not in VAGUE:
            break
        labels[place] = "O"
    # A comma or "and" inside a preparation is part of it.
    for place in range(1, len(labels) - 1):
        if labels[place] == "O" and not fields[place] and labels[place - 1] == labels[place + 1] == "STATE":
            labels[place] = "STATE" if forms[place].lower() in ("and", "or", "-") else "O"
    return labels


def held_out(text: str) -> bool:
    """The sentence is one of the tenth that is not trained on."""
    return crc32(text.lower().encode()) % 10 == 0


Phrases = tuple[list[list[str]], list[list[str]]]


def split_data(folder: Path) -> tuple[dict[tuple[str, str], Phrases], int]:
    """Tokens and tags by source and part (train, test), and how many sentences could not be aligned."""
    parts: dict[tuple[str, str], Phrases] = {}
    read = list(rows(folder))
    batch = tokenize_lines([row["input"] for row in read])
    dropped = 0
    for line, row in enumerate(read):
        forms = batch.forms(line)
        fields = align(forms, row)
        if fields is None:
            dropped += 1
            continue
        part = parts.setdefault((row["source"], "test" if held_out(row["input"]) else "train"), ([], []))
        part[0].append(forms)
        part[1].append(to_labels(forms, fields))
    return parts, dropped


def joined(parts: Mapping[tuple[str, str], Phrases], name: str) -> Phrases:
    """One part of all sources."""
    chosen = [phrases for (_, part), phrases in sorted(parts.items()) if part == name]
    return [line for tokens, _ in chosen for line in tokens], [line for _, tags in chosen for line in tags]


def capitalized(phrases: Phrases, *, every: int) -> Phrases:
    """Copies of some phrases with capitals, which the sentences have few of: "1 Can Corn", and in turn "1 CAN CORN"."""
    tokens, tags = [], []
    for place in range(0, len(phrases[0]), every):
        change = str.upper if place // every % 3 == 0 else str.capitalize
        tokens.append([form if form.startswith("-") else change(form) for form in phrases[0][place]])
        tags.append(phrases[1][place])
    return tokens, tags


def summary(score: SpanScore) -> dict[str, object]:
    """F1, in total and per label."""
    return {"f1": round(score.f1, 4), **{name: round(part.f1, 4) for name, part in score.by_label.items()}}


def main() -> None:
    """Train, measure, write."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else SHIPPED
    parts, dropped = split_data(folder)
    sources = sorted({source for source, _ in parts})
    train, test = joined(parts, "train"), joined(parts, "test")
    print(f"{len(train[0])} sentences to train on, {len(test[0])} held out, {dropped} not aligned")
    taggers = {source: IngredientTagger(l2=L2).fit(*parts[source, "train"]) for source in sources}
    extra_train = capitalized(train, every=CAPITALS)
    tagger = taggers["all"] = IngredientTagger(l2=L2).fit(train[0] + extra_train[0], train[1] + extra_train[1])
    tagger.table_[np.abs(tagger.table_).max(1) < PRUNED] = 0
    tagger.table_ = tagger.table_.astype(np.float16).astype(np.float32)
    tests = {source: parts[source, "test"] for source in sources} | {"all": test}
    matrix = {
        trained: {tested: round(one.score(*phrases), 4) for tested, phrases in tests.items()}
        for trained, one in taggers.items()
    }
    measured = {
        "held_out_sentences": len(test[0]),
        "tagger": summary(tagger.evaluate(*test)),
        "tagger, with capitals": summary(tagger.evaluate(*capitalized(test, every=1))),
        "majority_tag": summary(span_score(test[1], MajorityTagger().fit(*train).predict(test[0]))),
    }
    print(json.dumps({"measured": measured, "matrix": matrix}, indent=2))
    made = {"sentences": len(train[0]), "not_aligned": dropped, "files": sorted(p.name for p in folder.glob("*.csv"))}
    extra = {"trained_on": made, "measured": measured, "matrix": matrix}
    tagger.save_pretrained(out, overwrite=True, half=True, extra=extra)


if __name__ == "__main__":
    main()
