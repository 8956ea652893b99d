"""The demonstration: what three methods do to a real language model and to a small image classifier.

Everything is measured on the spot and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from weightsmith.claims.know import digits_transfer
from weightsmith.core.data import token_ids
from weightsmith.core.metrics import decode_speed
from weightsmith.core.progress import track
from weightsmith.core.report import write_report
from weightsmith.core.results import Result, record
from weightsmith.embedded import open_model, text
from weightsmith.signature import Source, read
from weightsmith.sparsify import dsnot, magnitude, wanda, wina
from weightsmith.workbench import Data, Evaluation, Workbench

__all__ = ["run"]

TITLE = "weightsmith on SmolLM2-135M and a digits CNN"
METHODS: Mapping[str, tuple[Callable[..., Result], Mapping[str, Any]]] = {
    "magnitude": (magnitude, {}),
    "magnitude + DSnoT": (dsnot, {"start": "magnitude"}),
    "Wanda": (wanda, {}),
    "Wanda + DSnoT": (dsnot, {"start": "wanda"}),
    "WINA": (wina, {}),
}


def run(
    *, report: Path = Path("report.html"), sparsity: float = 0.5, samples: int = 8, tokens: int = 1024, seeds: int = 3
) -> list[Result]:
    """Prune a real language model in four ways, make it skip activations, predict weights for a CNN.

    The model is SmolLM2-135M. It is measured before and after each method, and writes an answer of its own; all of it
    goes into one report.

    Parameters
    ----------
    report : Path, default: report.html
        The HTML page to write.
    sparsity : float, default: 0.5
        Share of weights, and of activations, to do without.
    samples : int, default: 8
        Calibration samples, of 256 tokens.
    tokens : int, default: 1024
        Tokens to measure perplexity on.
    seeds : int, default: 3
        Trials of the digits CNN.

    Returns
    -------
    list of Result
        One for each thing done.
    """
    console = Console()
    data = Data(sources={"calibration": Source(samples=samples)}, evaluation=Evaluation(tokens=tokens))
    opened = open_model("embedded:smollm2")
    dense = Workbench(opened, data)
    results: list[Result] = []
    for title, (method, hyper) in track([*METHODS.items()], "SmolLM2-135M"):
        bench = dense.copy()
        result = bench.apply(read(method), {"sparsity": sparsity, **hyper})
        result.title = title
        results.append(result)
        console.print(f"{title}: perplexity {result.after['perplexity']:.1f}, {result.seconds:.0f} s")
    prompt = token_ids(opened.tokenizer, text("calibration"))[:16]
    for state, model in ((results[-1].before, dense.model), (results[-1].after, bench.model)):
        state["tokens_per_second"] = decode_speed(model, prompt)
    console.print(_language_table(results))
    for title, answer in (("dense", results[0].samples["before"]), *((r.title, r.samples["after"]) for r in results)):
        console.print(f"[bold]{title}[/]: {escape(answer)}\n")
    results.append(_digits(seeds))
    console.print(results[-1].table())
    console.print(f"report: {write_report(results, report, TITLE)}")
    return results


def _language_table(results: list[Result]) -> Table:
    table = Table("SmolLM2-135M", title="Half the weights, or half the activations, of a language model")
    for column in ("perplexity", "zero weights", "tokens per second", "seconds to make"):
        table.add_column(column, justify="right")
    states = [("dense", results[-1].before, ""), *((r.title, r.after, f"{r.seconds:.0f}") for r in results)]
    for name, state, seconds in states:
        zeros = 1 - state["nonzero"] / state["parameters"]
        speed = f"{state['tokens_per_second']:.1f}" if "tokens_per_second" in state else ""
        table.add_row(name, f"{state['perplexity']:.1f}", f"{zeros:.0%}", speed, seconds)
    return table


def _digits(seeds: int) -> Result:
    """KNOW on a CNN: accuracy on new digits after fine-tuning on 50 images, from trained and from predicted weights."""
    with record("know", seed=0, seeds=seeds, images=50) as result:
        result.title = "KNOW on a digits CNN"
        trials = [digits_transfer(seed) for seed in track(range(seeds), "digits CNN")]
        accuracy = {arm: sum(trial[arm] for trial in trials) / seeds for arm in trials[0]}
        for arm, value in accuracy.items():
            result.layer(f"from {arm} weights", accuracy=value)
        result.before, result.after = {"accuracy": accuracy["naive"]}, {"accuracy": accuracy["know"]}
        result.notes.append(
            "Before: fine-tuned from the trained weights. After: from the predicted ones. Compare with matched shrink, "
            "the trained weights at the predicted ones' norms: most of the gain is the smaller norm."
        )
    return result
