"""The demonstration: what methods of four verbs do to a real language model and to small image classifiers.

Everything is measured on the spot and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from weightsmith.claims.know import digits_transfer
from weightsmith.claims.modhifi import accuracy, digits_mlp
from weightsmith.core.data import token_ids
from weightsmith.core.metrics import decode_speed
from weightsmith.core.progress import track
from weightsmith.core.report import write_report
from weightsmith.core.results import Result, record
from weightsmith.embedded import open_model, text
from weightsmith.forget import classwise
from weightsmith.quantize import round_to_nearest
from weightsmith.signature import Source, read
from weightsmith.sparsify import dsnot, magnitude, wina
from weightsmith.workbench import Data, Evaluation, Workbench

__all__ = ["run"]

TITLE = "weightsmith on SmolLM2-135M and two digit classifiers"
METHODS: Mapping[str, Callable[..., Result]] = {
    "magnitude": magnitude,
    "Wanda + DSnoT": dsnot,
    "4-bit weights": round_to_nearest,
    "WINA": wina,
}
FORGOTTEN = 3
"""The digit that a classifier forgets."""


def run(
    *, report: Path = Path("report.html"), sparsity: float = 0.5, samples: int = 8, tokens: int = 1024, seeds: int = 2
) -> list[Result]:
    """Make a real language model sparse and coarse, predict weights for a classifier, make another forget a class.

    The language model is SmolLM2-135M. It is measured before and after each method, and writes an answer of its own;
    all of it goes into one report.

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
    seeds : int, default: 2
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
    for title, method in track([*METHODS.items()], "SmolLM2-135M"):
        bench = dense.copy()
        signature = read(method)
        result = bench.apply(signature, {"sparsity": sparsity} if "sparsity" in signature.fields else {})
        result.title = title
        results.append(result)
        console.print(f"{title}: perplexity {result.after['perplexity']:.1f}, {result.seconds:.0f} s")
    prompt = token_ids(opened.tokenizer, text("calibration"))[:16]
    for state, model in ((results[-1].before, dense.model), (results[-1].after, bench.model)):
        state["tokens_per_second"] = decode_speed(model, prompt)
    console.print(_language_table(results))
    for title, answer in (("dense", results[0].samples["before"]), *((r.title, r.samples["after"]) for r in results)):
        console.print(f"[bold]{title}[/]: {escape(answer)}\n")
    for result in (_predicted(seeds), _forgotten()):
        results.append(result)
        console.print(result.table())
        console.print(result.comparison())
    console.print(f"report: {write_report(results, report, TITLE)}")
    return results


def _language_table(results: list[Result]) -> Table:
    table = Table("SmolLM2-135M", title="Half the weights, 16 levels, or half the activations of a language model")
    for column in ("perplexity", "zero weights", "tokens per second", "seconds to make"):
        table.add_column(column, justify="right")
    states = [("dense", results[-1].before, ""), *((r.title, r.after, f"{r.seconds:.0f}") for r in results)]
    for name, state, seconds in states:
        zeros = 1 - state["nonzero"] / state["parameters"]
        speed = f"{state['tokens_per_second']:.1f}" if "tokens_per_second" in state else ""
        table.add_row(name, f"{state['perplexity']:.1f}", f"{zeros:.0%}", speed, seconds)
    return table


def _predicted(seeds: int) -> Result:
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


def _forgotten() -> Result:
    """ModHiFi-U on a digits MLP: one class is no longer recognized; drawn images stand in for the training data."""
    model, drawn, test = digits_mlp(0)
    images = [(image, number // (len(drawn) // 10)) for number, image in enumerate(drawn)]
    measured = [_accuracies(model, *test)]
    result = classwise(model, images, class_name=str(FORGOTTEN))
    measured.append(_accuracies(model, *test))
    result.title = f"A digits MLP forgets the digit {FORGOTTEN}"
    result.before, result.after = measured
    result.notes.append("Measured on test images; drawn images of each class found the weights.")
    return result


def _accuracies(model: nn.Module, images: Tensor, classes: Tensor) -> dict[str, float]:
    is_it = classes == FORGOTTEN
    return {
        f"accuracy on {FORGOTTEN}": accuracy(model, images[is_it], classes[is_it]),
        "accuracy on the other digits": accuracy(model, images[~is_it], classes[~is_it]),
    }
