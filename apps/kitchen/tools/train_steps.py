"""Train the tagger of techniques and utensils that ships: ``python apps/kitchen/tools/train_steps.py [OUT]``.

It learns from ``data/steps_train.txt``: instructions written for this project and labeled by hand in two passes (the
second read every line again against `GUIDELINE`). What it is tested on, and how that was labeled, is in
``tests/data/README.md``. The test sentences decide nothing here: settings are chosen by cross-validation within the
training sentences.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from weightsmith_kitchen.phrases.spans import SpanScore, span_score
from weightsmith_kitchen.steps.labels import InstructionTagger, dictionary_classes, read_marked

HERE = Path(__file__).parent
FOLDS, PRUNED = 5, 0.01


def read(path: Path) -> tuple[list[list[str]], list[list[str]]]:
    """Labeled sentences of a file."""
    return read_marked(path.read_text("utf-8").splitlines())


def by_dictionary(tokens: list[list[str]]) -> list[list[str]]:
    """The baseline: every word of a dictionary is what the dictionary says, a verb's past form is none."""
    names = ("O", "TECHNIQUE", "TECHNIQUE", "O", "TECHNIQUE", "UTENSIL", "UTENSIL")
    return [[names[kind] for kind in dictionary_classes(words)] for words in tokens]


def cross_validated(tokens: list[list[str]], tags: list[list[str]], **settings: float) -> SpanScore:
    """Score of five folds together."""
    found: list[list[str]] = [[] for _ in tokens]
    for fold in range(FOLDS):
        train = [place for place in range(len(tokens)) if place % FOLDS != fold]
        test = [place for place in range(len(tokens)) if place % FOLDS == fold]
        tagger = InstructionTagger(**settings).fit([tokens[p] for p in train], [tags[p] for p in train])
        for place, names in zip(test, tagger.predict([tokens[p] for p in test]), strict=True):
            found[place] = names
    return span_score(tags, found)


def summary(score: SpanScore) -> dict[str, float]:
    """F1, in total and per label."""
    return {"f1": round(score.f1, 4), **{name: round(part.f1, 4) for name, part in score.by_label.items()}}


def main() -> None:
    """Choose the weight of the penalty, train, measure, write."""
    train, test = read(HERE / "data/steps_train.txt"), read(HERE.parent / "tests/data/steps_test.txt")
    scores = {l2: cross_validated(*train, l2=l2).f1 for l2 in (0.01, 0.02, 0.05, 0.1, 0.2)}
    print("cross-validated F1 by l2:", {l2: round(score, 4) for l2, score in scores.items()})
    tagger = InstructionTagger(l2=max(scores, key=lambda l2: scores[l2])).fit(*train)
    tagger.table_[np.abs(tagger.table_).max(1) < PRUNED] = 0
    tagger.table_ = tagger.table_.astype(np.float16).astype(np.float32)
    measured = {
        "test_sentences": len(test[0]),
        "tagger": summary(tagger.evaluate(*test)),
        "dictionary": summary(span_score(test[1], by_dictionary(test[0]))),
    }
    print(json.dumps(measured, indent=2))
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else InstructionTagger.shipped
    extra = {"trained_on": {"sentences": len(train[0])}, "measured": measured}
    tagger.save_pretrained(out, overwrite=True, half=True, extra=extra)


if __name__ == "__main__":
    main()
