"""How fast and how good are ingredient lines read beside ingredient-parser-nlp, on one core?

Both turn held-out lines of ingredient-parser's own labeled sentences into records. Quality is measured on its labels:
F1 of (field, word) over name, quantity, unit, size, preparation, comment and purpose; for that arm our tagger learns
these labels from the other nine tenths. Its model has seen all sentences, those held out here too. A second measure is
on phrases of the Recipe-NER paper (names, quantities and units), where both are as they ship.

The peer asks NLTK for the part-of-speech tagger of English, whose weights are not installed. A PerceptronTagger is
therefore trained on the tags that spaCy's small model gives the training sentences, and saved as NLTK looks for it (in
``--nltk FOLDER``). Its own model was made with other tags, so that it may be somewhat better than measured here.
"""

from __future__ import annotations

import importlib.util
import json
import random
import resource
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import alternate, finish, memory_bandwidth, parser, print_table, ratio

from weightsmith.claims.harness import user_data
from weightsmith_kitchen.phrases.corpus import read_tagged
from weightsmith_kitchen.phrases.kernels.chain import FEATURES
from weightsmith_kitchen.phrases.read import read_ingredients
from weightsmith_kitchen.phrases.sampling import penn_tags
from weightsmith_kitchen.phrases.tagger import IngredientTagger, default_tagger
from weightsmith_kitchen.phrases.tokens import tokenize_lines

GOAL, RATE_GOAL = 3.0, 300_000
LINES, TAGGER_SENTENCES, REPEATS = 600, 6000, 100
SCRIPT = Path(__file__).parents[1] / "apps/kitchen/tools/train_phrases.py"
TAGGER = "averaged_perceptron_tagger_eng"
PEER_FIELDS = {"QTY": "quantity", "UNIT": "unit", "SIZE": "size", "PREP": "preparation", "COMMENT": "comment"}
PEER_FIELDS |= {"PURPOSE": "purpose"} | dict.fromkeys(("B_NAME_TOK", "I_NAME_TOK", "NAME_VAR", "NAME_MOD"), "name")


def training_script() -> Any:
    spec = importlib.util.spec_from_file_location("train_phrases", SCRIPT)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{SCRIPT} is not there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install_nltk_tagger(folder: Path, sentences: Sequence[list[str]]) -> None:
    """Train NLTK's tagger where it is not there yet, and let NLTK find it."""
    import nltk
    from nltk.tag.perceptron import PerceptronTagger

    nltk.data.path.insert(0, str(folder.resolve()))
    place = folder / "taggers" / TAGGER
    if place.is_dir():
        return
    chosen = random.Random(0).sample(list(sentences), min(TAGGER_SENTENCES, len(sentences)))
    plain = [[form.replace("\u00a0", " ") for form in forms] for forms in chosen]
    random.seed(0)  # NLTK shuffles with it
    tagger = PerceptronTagger(load=False)
    tagger.train(
        [list(zip(words, tags, strict=True)) for words, tags in zip(plain, penn_tags(plain), strict=True)], nr_iter=5
    )
    place.mkdir(parents=True)
    for name, part in zip(("weights", "tagdict", "classes"), tagger.encode_json_obj(), strict=True):
        (place / f"{TAGGER}.{name}.json").write_text(json.dumps(part), "utf-8")


def pairs(fields: Iterable[tuple[str, str]], script: Any) -> Counter[tuple[str, str]]:
    """(field, word) of texts as the labeled sentences have them."""
    return Counter((field, word) for field, text in fields for word in script.words_of(text))


def token_pairs(forms: Sequence[str], labels: Sequence[str], script: Any) -> Counter[tuple[str, str]]:
    """(field, word) of our tokens: a range and a length count as the labeled sentences have them."""
    found: Counter[tuple[str, str]] = Counter()
    place = 0
    while place < len(forms):
        word, label = script.stem(forms[place]), labels[place]
        if labels[place : place + 3] == [label] * 3 == ["quantity"] * 3 and forms[place + 1].lower() in ("to", "or"):
            word, place = f"{word}-{script.stem(forms[place + 2])}", place + 2
        number, _, unit = word.partition("-")
        if label == "size" and word[0].isdigit() and unit:
            found.update((("quantity", number), ("unit", unit)))
        elif label != "O":
            found[label, word] += 1
        place += 1
    return found


def paper_phrases(folder: Path, script: Any) -> tuple[list[str], list[Counter[tuple[str, str]]]]:
    """Phrases of the Recipe-NER paper as texts, with their names, quantities and units."""
    tokens, tags = read_tagged(folder / "ar_test.tsv")
    brackets = {"-LRB-": "(", "-RRB-": ")"}
    texts = [" ".join(brackets.get(word, word).replace("\u00a0", " ") for word in words) for words in tokens]
    labels = [[tag.lower() if tag in ("NAME", "QUANTITY", "UNIT") else "O" for tag in names] for names in tags]
    return texts, [token_pairs(words, names, script) for words, names in zip(tokens, labels, strict=True)]


def score(reference: Sequence[Counter[tuple[str, str]]], found: Sequence[Counter[tuple[str, str]]]) -> dict[str, float]:
    """F1 over (field, word), in total and per field."""
    right, wrong = Counter[str](), Counter[str]()
    for one, other in zip(reference, found, strict=True):
        for (field, _), count in (one & other).items():
            right[field] += count
        for (field, _), count in ((one - other) + (other - one)).items():
            wrong[field] += count
    f1 = lambda hits, misses: 2 * hits / max(1, 2 * hits + misses)  # noqa: E731
    return {"all": f1(right.total(), wrong.total()), **{name: f1(right[name], wrong[name]) for name in sorted(right)}}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--nltk", type=Path, default=Path("nltk-data"), help="folder for NLTK's tagger")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = user_data("apps/ingredient-phrases", "labeled ingredient sentences")
    if folder is None:
        raise SystemExit("nothing to measure on: set WEIGHTSMITH_DATA")
    script = training_script()
    parts, held_out = ([], []), []
    read = list(script.rows(folder))
    batch = tokenize_lines([row["input"] for row in read])
    for line, row in enumerate(read):
        forms = batch.forms(line)
        if script.held_out(row["input"]):
            held_out.append(row)
        elif (fields := script.align(forms, row)) is not None:
            parts[0].append(forms)
            parts[1].append([field or "O" for field in fields])
    rows = random.Random(0).sample(held_out, LINES)
    texts = [row["input"] for row in rows]
    reference = [pairs(((field, row[field]) for field in script.FIELDS), script) for row in rows]
    tagger = IngredientTagger(["O", *script.FIELDS], l2=0.3).fit(*parts)

    def ours(reader: IngredientTagger, some: Sequence[str]) -> list[Counter[tuple[str, str]]]:
        lower = {"QUANTITY": "quantity", "UNIT": "unit", "NAME": "name", **{field: field for field in script.FIELDS}}
        return [
            token_pairs([token.form for token in line.tokens], [lower.get(tag, "O") for tag in line.tags], script)
            for line in reader.tag_many(some)
        ]

    quality = {"ours": score(reference, ours(tagger, texts))}
    paper = user_data("apps/recipe-ner", "phrases of the paper, for a second measure of quality")
    others = ([], []) if paper is None else paper_phrases(paper, script)
    on_paper = {"ours": score(others[1], ours(default_tagger(), others[0]))} if others[0] else {}
    arms = {"ours": lambda: read_ingredients(texts)}
    try:
        install_nltk_tagger(arguments.nltk, parts[0])
        from ingredient_parser import inspect_parser, parse_ingredient

        def theirs(some: Sequence[str], kept: Sequence[str]) -> list[Counter[tuple[str, str]]]:
            labeled = [inspect_parser(text).PostProcessor.tokens for text in some]
            return [
                pairs(((PEER_FIELDS[t.label], t.text) for t in line if PEER_FIELDS.get(t.label) in kept), script)
                for line in labeled
            ]

        arms["ingredient-parser"] = lambda: [parse_ingredient(text) for text in texts]
        quality["ingredient-parser"] = score(reference, theirs(texts, script.FIELDS))
        if others[0]:
            on_paper["ingredient-parser"] = score(others[1], theirs(others[0], ("name", "quantity", "unit")))
    except ImportError as error:
        print(f"left out: ingredient-parser ({error})")
    many = [text for _ in range(REPEATS) for text in texts]
    default = default_tagger()
    taken = alternate(arms, rounds=arguments.rounds)
    tagging = alternate({"tag": lambda: default.tag_many(many)}, rounds=arguments.rounds)["tag"]
    count = default.tag_many(many).token_count
    rate = count / tagging.best
    bandwidth = memory_bandwidth()
    table = (
        (name, 1e6 * timing.best / len(texts), *(quality[name][field] for field in ("all", "name", "quantity", "unit")))
        for name, timing in taken.items()
    )
    print_table(("arm", "us per line", "F1", "name", "quantity", "unit"), list(table))
    print_table(("tagging", "tokens/s", "goal"), [("one thread", rate, RATE_GOAL)])
    peer = "ingredient-parser" if "ingredient-parser" in taken else "ours"
    finish(
        "recipe_phrases",
        ratio=ratio(taken[peer], taken["ours"]),
        goal=GOAL,
        limit=None,
        ours=1e6 * taken["ours"].best / len(texts),
        peer=1e6 * taken[peer].best / len(texts),
        unit="us/line",
        store=arguments.store,
        tokens_per_second=rate,
        goal_tokens_per_second=RATE_GOAL,
        # Two passes over one row of weights per feature; most come from the caches, so that this is no upper limit.
        tokens_per_second_were_all_rows_read_from_memory=bandwidth / (2 * FEATURES * 4 * len(default.labels)),
        f1=quality,
        f1_on_phrases_of_the_paper=on_paper,
        lines=len(texts),
        peak_megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


if __name__ == "__main__":
    main()
