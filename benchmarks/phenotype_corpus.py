"""How does tagging a corpus of short notes scale with processes, and what does all that is not tagging cost?

The notes are made of names and synonyms of the Human Phenotype Ontology. One file of JSON lines holds them all; a
folder holds one file per note. Goal: two processes at 1.8 times the speed of one, with the same output to the byte. The
limit is what two processes gain that tag half of the notes each, in memory, and write nothing.

``--notes 100000`` is the full size; the default is a try.
"""

from __future__ import annotations

import filecmp
import json
import multiprocessing
import random
import resource
import tempfile
from pathlib import Path

import torch
from harness import alternate, finish, parser, print_table, ratio

from weightsmith_phenotype import PhenoTagger
from weightsmith_phenotype.batch import tag_corpus

PLAIN = ("was seen in clinic with", "has", "presents with", "was referred for", "without", "mother had", "possible")


def note(names: list[str], draw: random.Random) -> str:
    sentences = []
    for _ in range(draw.randint(2, 5)):
        found = ", ".join(draw.choice(names) for _ in range(draw.randint(1, 3)))
        sentences.append(f"The patient, aged {draw.randint(1, 80)}, {draw.choice(PLAIN)} {found}.")
    return " ".join(sentences)


def tag_all(tagger: PhenoTagger, texts: list[str]) -> None:
    for text in texts:
        tagger.tag(text)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--notes", type=int, default=5_000, help="number of notes")
    options.add_argument("--jobs", type=int, default=2, help="processes that are compared with one")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    tagger = PhenoTagger.default()
    draw = random.Random(0)
    names = [name for concept in tagger.ontology.concepts for name in tagger.ontology[concept].names]
    texts = [note(names, draw) for _ in range(arguments.notes)]
    jobs = arguments.jobs
    forks = multiprocessing.get_context("fork")

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lines = (json.dumps({"id": f"n{number:07}", "text": text}) + "\n" for number, text in enumerate(texts))
        (folder / "notes.jsonl").write_text("".join(lines))
        for number, text in enumerate(texts):
            path = folder / "notes" / f"{number // 1000:04}" / f"n{number:07}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

        def corpus(source: str, out: str, jobs: int) -> None:
            result = tag_corpus([folder / source], tagger, folder / out, jobs=jobs, overwrite=True)
            if result.documents != len(texts) or result.failures:
                raise SystemExit(f"{result.documents} of {len(texts)} notes were tagged: {result.failures[:3]}")

        def in_memory() -> None:
            parts = [forks.Process(target=tag_all, args=(tagger, texts[part::jobs])) for part in range(jobs)]
            for part in parts:
                part.start()
            for part in parts:
                part.join()

        times = alternate(
            {
                "in memory, 1 process": lambda: tag_all(tagger, texts),
                f"in memory, {jobs} processes": in_memory,
                "one file, 1 process": lambda: corpus("notes.jsonl", "one.jsonl", 1),
                f"one file, {jobs} processes": lambda: corpus("notes.jsonl", "many.jsonl", jobs),
                f"file per note, {jobs} processes": lambda: corpus("notes", "files.jsonl", jobs),
            },
            rounds=arguments.rounds,
        )
        same = filecmp.cmp(folder / "one.jsonl", folder / "many.jsonl", shallow=False)
        size = (folder / "one.jsonl").stat().st_size
    memory, memory_jobs, one, many, files = times.values()
    rows = [(name, time.median, len(texts) / time.median) for name, time in times.items()]
    print_table(("arm", "s", "notes/s"), rows)
    finish(
        "phenotype_corpus",
        ratio=ratio(one, many),
        goal=0.9 * jobs,
        limit=ratio(memory, memory_jobs),
        ours=len(texts) / many.median,
        peer=len(texts) / one.median,
        unit="notes/s",
        store=arguments.store,
        notes=len(texts),
        jobs=jobs,
        same_bytes=same,
        megabytes_written=size / 1e6,
        overhead_of_one_process=ratio(one, memory),
        file_per_note=len(texts) / files.median,
        peak_resident_megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


if __name__ == "__main__":
    main()
