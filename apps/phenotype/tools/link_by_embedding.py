"""Does linking phrases by sentence vectors raise the F1 of the default tagger on GSC+? It does not.

Phrases of one to seven words in which the tagger found nothing are embedded by the embedded MiniLM, and so are all
names and synonyms of the Human Phenotype Ontology. A phrase whose nearest name has at least a given cosine is a mention
of that concept; of overlapping phrases the one with the largest cosine. ``--epochs 1`` first trains the encoder to
bring the synonyms of each concept to its name (InfoNCE over the other pairs of a batch, temperature .05). Prints the
scores on the development abstracts for each least cosine. Two minutes; training takes ten more.

    WEIGHTSMITH_DATA=data python apps/phenotype/tools/link_by_embedding.py --epochs 1
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from weightsmith.claims.harness import user_data
from weightsmith.embedded import load
from weightsmith_phenotype import PhenoTagger
from weightsmith_phenotype.claims.phenotagger import gsc
from weightsmith_phenotype.document import Document, Mention
from weightsmith_phenotype.metrics import evaluate

LONGEST = 7
"""Words of a phrase."""
COSINES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
BATCH, RATE, TEMPERATURE = 96, 5e-5, 0.05
_EMPTY = """a an the of in and or with without to for from by on at is was were are be been has have had that this these
those which who it its their his her he she they we our not no but also than then may can could should between among
during after before into all both each other one two three four most more very such patient patients case cases family
families study studies results"""
EMPTY = frozenset(_EMPTY.split())
"""Words that neither begin nor end a phrase."""
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9'-]*|\d+|[^\sA-Za-z0-9]")


def phrases(document: Document, found: Sequence[Mention]) -> list[tuple[int, int]]:
    """Places of the phrases of a document that no mention touches."""
    tokens = [(match.start(), match.end(), match[0].lower()) for match in _WORD.finditer(document.text)]
    places = []
    for first, (start, _, word) in enumerate(tokens):
        if not word[0].isalpha() or word in EMPTY:
            continue
        for length, (_, end, last) in enumerate(tokens[first : first + LONGEST], 1):
            if not last[0].isalnum():
                break
            whole = last not in EMPTY and last[0].isalpha() and (length > 1 or len(last) > 4)
            if whole and not any(start < mention.end and mention.start < end for mention in found):
                places.append((start, end))
    return places


class Encoder:
    """Sentence vectors of unit length: the mean of the last layer over a text's tokens."""

    def __init__(self) -> None:
        self.model, self.tokenizer = load("minilm")

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Vectors (N, 384)."""
        batch: Any = self.tokenizer(list(texts), padding=True, truncation=True, max_length=24, return_tensors="pt")
        hidden = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(hidden)
        return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)

    @torch.no_grad()
    def of(self, texts: Sequence[str]) -> Tensor:
        """Vectors of many texts, those of like length together."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        made = torch.empty(len(texts), self.model.config.hidden_size)
        for start in range(0, len(order), 256):
            places = order[start : start + 256]
            made[places] = self([texts[place] for place in places])
        return made

    def fit(self, pairs: Sequence[tuple[str, str]], epochs: int) -> None:
        """Bring the texts of each pair together, and away from those of other pairs."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE)
        steps = epochs * (len(pairs) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
        self.model.train()
        for step in range(steps):
            order = torch.randperm(len(pairs))[:BATCH].tolist()
            left, right = (self([pairs[place][side] for place in order]) for side in (0, 1))
            cosine, own = left @ right.T / TEMPERATURE, torch.arange(len(order))
            loss = functional.cross_entropy(cosine, own) + functional.cross_entropy(cosine.T, own)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                print(f"step {step} of {steps}: loss {loss.item() / 2:.3f}", flush=True)
        self.model.eval()


def linked(
    document: Document, found: Sequence[Mention], near: Sequence[tuple[float, int, int, str]], least: float
) -> Document:
    """The document with the tagger's mentions and the phrases that are near enough."""
    mentions = list(found)
    pattern = Mention(0, 1, " ", "", 0.0) if not found else found[0]
    for cosine, start, end, concept in sorted(near, reverse=True):
        if cosine < least:
            break
        if not any(start < other.end and other.start < end for other in mentions):
            mentions.append(
                replace(pattern, start=start, end=end, text=document.text[start:end], concept_id=concept, score=cosine)
            )
    return replace(document, mentions=tuple(sorted(mentions, key=lambda mention: mention.start)))


def main() -> None:
    """Print the scores."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=0, help="passes over the pairs of names and synonyms")
    epochs = options.parse_args().epochs
    folder = user_data("apps/phenotagger", "linking by embeddings on GSC+")
    if folder is None:
        raise SystemExit("set WEIGHTSMITH_DATA to the folder of the data")
    torch.manual_seed(0)
    tagger, encoder = PhenoTagger.default(), Encoder()
    ontology = tagger.ontology
    named = [(name.lower(), concept) for concept in ontology.concepts for name in ontology[concept].names]
    if epochs:
        first = {concept: name for name, concept in reversed(named)}
        encoder.fit([(first[concept], name) for name, concept in named if name != first[concept]], epochs)
    names = encoder.of([name for name, _ in named])
    documents, _ = gsc(folder)
    rows = []
    for document in documents:
        found = tagger.tag(document.text)
        places = phrases(document, found)
        near: list[tuple[float, int, int, str]] = []
        if places:
            cosines, nearest = (encoder.of([document.text[a:b].lower() for a, b in places]) @ names.T).max(1)
            near = [
                (cosine, start, end, named[number][1])
                for cosine, number, (start, end) in zip(cosines.tolist(), nearest.tolist(), places, strict=True)
            ]
        rows.append((document, found, near))
    print("least cosine  mention F1  document F1  precision  recall")
    for least in (2.0, *COSINES):
        made = [linked(document, found, near, least) for document, found, near in rows]
        score = evaluate(documents, made, ontology, resamples=0)
        macro = score.document_macro
        print(
            f"{least if least <= 1 else 'none':>12}  {score.mention_relaxed.f1:10.4f}  {macro.f1:11.4f}"
            f"  {macro.precision:9.4f}  {macro.recall:6.4f}"
        )


if __name__ == "__main__":
    main()
