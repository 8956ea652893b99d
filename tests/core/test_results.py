"""Results: JSON round trip, tables, and a report page that is complete and needs no network."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from dataclasses import asdict

import pytest
import torch
from rich.console import Console

from weightsmith.core.report import format, pictures, write_report
from weightsmith.core.results import Result, documents, record


@pytest.fixture
def result() -> Result:
    with record("dsnot", seed=3, sparsity=0.5, include="*") as made:
        for block in range(4):
            for kind in ("q_proj", "up_proj"):
                made.layer(f"layers.{block}.{kind}", sparsity=0.5, error=0.1 * (block + 1), skipped=kind == "x")
        made.totals |= {"sparsity": 0.5, "swaps": 1234}
        made.before |= {"perplexity": 20.0, "nonzero": 100}
        made.after |= {"perplexity": 25.0, "nonzero": 50}
        made.samples |= {"before": "once <upon> a time", "after": "once once"}
        made.notes.append("layer 'head' & its twin were left out")
        made.files["notes.txt"] = "hello"
    return made


def printed(table) -> str:
    out = io.StringIO()
    Console(file=out, width=140).print(table)
    return out.getvalue()


def test_json_round_trip(result, tmp_path):
    text = result.to_json(tmp_path / "result.json")
    assert (tmp_path / "result.json").read_text() == text + "\n"
    assert asdict(Result.from_json(text)) == asdict(result)


def test_json_is_strict_whatever_a_method_puts_in():
    odd = Result(
        "x", totals={"nan": float("nan"), "tensor": torch.tensor(2.5), "tuple": (1, 2), "dtype": torch.bfloat16}
    )
    assert json.loads(odd.to_json())["totals"] == {
        "nan": "nan",
        "tensor": 2.5,
        "tuple": [1, 2],
        "dtype": "torch.bfloat16",
    }


def test_numbers_that_are_not_finite_survive_the_round_trip_and_are_reported(tmp_path):
    nan, inf = float("nan"), float("inf")
    odd = Result("x", totals={"sparsity": nan, "norm": -inf, "word": "nano"}, curves={"loss": [1.0, nan, inf]})
    odd.before, odd.after = {"perplexity": inf, "accuracy": nan, "loss": 0.0}, {"perplexity": 2.0, "accuracy": 0.5}
    odd.after |= {"loss": nan}
    for number, value in enumerate((nan, inf, -inf, 1.0)):
        odd.layer(f"layers.{number}.fc", error=value)
    odd.layer("nan", error=2.0)
    odd.inputs = [{"network": "inf", "to_result": nan, "to_others": [0.0]}]
    back = Result.from_json(odd.to_json())
    assert repr(asdict(back)) == repr(asdict(odd))
    for each in (odd, back):
        page = write_report([each, Result("y", before=each.before, after=each.before)], tmp_path / "r.html").read_text()
        assert not re.search(r"width:-?(nan|inf)", page)
        assert re.search(r"perplexity .* inf .* 2 ", printed(each.comparison()))
        assert "nan" in printed(each.table())


def test_the_best_of_several_is_a_number(tmp_path):
    runs = [Result(name, after={"perplexity": value}) for name, value in (("a", float("nan")), ("b", 3.0), ("c", 4.0))]
    (panel,) = pictures.overview(runs)
    assert [bar["name"] for bar in panel["bars"] if bar["best"]] == ["b"]


def test_texts_and_numbers_that_cannot_be_printed_as_they_are_do_not_stop_a_report(tmp_path):
    odd = Result("m[/red]", title="caf\udce9 [/red]", hyper={"many": 10**400}, samples={"after": "\ud800 end"})
    odd.totals = {"a[/b]": 1, "count": 10**400, "label": "[/i]"}
    odd.before, odd.after = {"x[/b] accuracy": 0.5, "count": 3}, {"x[/b] accuracy": 1.0, "count": 10**400}
    odd.inputs = [{"network": "n[/b]", "to_result": 0.0, "to_others": [0.0]}]
    odd.notes = ["\udce9"]
    for number in range(2):
        odd.layer(f"[/u].{number}.fc", count=10**400 + number, kind="[/b]")
    page = odd.report(tmp_path / "r.html").read_text("utf-8")
    assert "\\ud800 end" in page
    assert "1.000e+400" in page
    assert "a[/b]" in printed(odd.table())
    assert "x[/b] accuracy" in printed(odd.comparison())
    assert "n[/b]" in printed(odd.networks())
    assert "\\udce9" in documents([odd], "out", ["caf\udce9"])["README.md"].encode().decode()


def test_names_of_networks_and_layers_are_no_labels(tmp_path):
    merged = Result("wise-ft", hyper={"row_error": 0.5}, after={"label_accuracy": 0.5})
    merged.inputs = [{"network": "q_wina", "to_result": 0.01, "to_others": [0.0]}]
    merged.layer("up_proj", row_error=0.5)
    card = documents([merged], "out", ["q_wina"])["README.md"]
    assert "| 1. q_wina | 1 % |  |" in card
    assert "| row error | 0.5 |" in card
    assert "| label accuracy |  | 50 % |" in card
    page = merged.report(tmp_path / "r.html").read_text()
    for name in ("1. q_wina", "up_proj"):
        assert f"<code>{name}</code>" in page


def test_record_fills_in_effort_and_environment(result):
    assert result.seconds > 0
    assert result.peak_memory > 10_000_000
    assert {"python", "torch", "weightsmith", "device"} <= set(result.environment)


def test_table_has_the_mean_of_each_kind_of_layer(result):
    text = printed(result.table())
    assert re.search(r"4 × q_proj .* 50 % .* 0.25 ", text)
    assert re.search(r"total .* 50 % .* 1,234", text)


def test_comparison_says_what_changed(result):
    text = printed(result.comparison())
    assert re.search(r"perplexity .* 20 .* 25 .* \+25 %", text)
    assert re.search(r"non-zero weights .* 100 .* 50 .* −50 %", text)


def test_pictures_draw_each_measure_that_differs_over_depth(result):
    figures, kinds = pictures.layers(result.layers)
    assert kinds == ["q_proj", "up_proj"]
    assert [figure["title"] for figure in figures] == ["error"], "sparsity is the same everywhere, skipped is no number"
    line = figures[0]["lines"][0]
    assert line["x"] == [0, 1, 2, 3]
    assert line["y"] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_layers_without_depth_become_bars():
    figures, kinds = pictures.layers([{"layer": "fc", "error": 1.0}, {"layer": "head", "error": 2.0}])
    assert kinds == []
    assert [(bar["name"], bar["width"]) for bar in figures[0]["bars"]] == [("fc", 50), ("head", 100)]


def test_overview_marks_the_single_best():
    runs = [
        Result(str(n), before={"perplexity": 20.0}, after={"perplexity": n, "nonzero": 5}) for n in (40.0, 25.0, 30.0)
    ]
    (panel,) = pictures.overview(runs)
    assert panel["label"] == "perplexity", "nonzero is the same for all"
    assert [(bar["name"], bar["best"]) for bar in panel["bars"]] == [
        ("start", False), ("40.0", False), ("25.0", True), ("30.0", False),
    ]  # fmt: skip
    assert panel["bars"][1]["width"] == 100
    assert pictures.overview(runs[:1]) == []


@pytest.mark.parametrize(("spread", "tone"), [(0.2, "better"), (0.6, "same")])
def test_a_gain_within_its_spread_is_no_gain(tmp_path, spread, tone):
    speeds = {n: {"tokens_per_second": n, "tokens_per_second_spread": spread} for n in (20.0, 21.0)}
    result = Result("wina", before=speeds[20.0], after=speeds[21.0])
    page = result.report(tmp_path / "r.html").read_text()
    assert f'<span class="badge {tone}">+5 %</span>' in page
    assert ("[green]" in str(result.comparison().columns[3]._cells)) == (tone == "better")
    (panel,) = pictures.overview([Result(str(n), after=after) for n, after in speeds.items()])
    assert panel["label"] == "tokens per second", "the spread is no measure"
    assert [bar["best"] for bar in panel["bars"]] == [False, tone == "better"]


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("peak_memory", 1_400_000_000, "1.4 GB"),
        ("bytes", 999_600, "1 MB"),
        ("seconds", 0.0123, "12.3 ms"),
        ("seconds", 3725, "1 h 2 min"),
        ("accuracy", 0.9312, "93.1 %"),
        ("ratio", 0.5, "0.5"),
        ("count", 0, "0"),
        ("weights", 83558.4, "83,558"),
        ("perplexity", float("inf"), "inf"),
        ("enabled", True, "yes"),
    ],
)
def test_numbers_have_their_units(name, value, shown):
    assert format.show(name, value) == shown


def test_report_is_one_page_without_network(result, tmp_path):
    page = result.report(tmp_path / "deep" / "report.html", "A <title> & more").read_text()
    assert len(page) < 100_000
    assert "<h1>A &lt;title&gt; &amp; more</h1>" in page
    assert "once &lt;upon&gt; a time" in page
    assert "layer &#39;head&#39; &amp; its twin" in page
    assert not re.search(r"<(script|img|iframe)[^>]* src=|<link|@import|url\(", page.split("<script>")[0])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_report_of_several_results_compares_them(result, tmp_path):
    other = Result("wanda", title="Wanda again", before=result.before, after={"perplexity": 30.0, "nonzero": 50})
    page = write_report([result, other], tmp_path / "report.html").read_text()
    assert "At a glance" in page
    assert "<h1>dsnot, Wanda again</h1>" in page
    assert page.count('class="part"') == 2


def test_report_of_an_empty_result_is_valid(tmp_path):
    page = Result("nothing").report(tmp_path / "r.html").read_text()
    assert "nothing" in page
    assert "<svg class" not in page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_report_draws_in_a_browser(result, tmp_path):
    page = result.report(tmp_path / "report.html")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --dump-dom"
    done = subprocess.run(
        ["chromium", *flags.split(), "--virtual-time-budget=6000", f"--user-data-dir={tmp_path}/user", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.count("<polyline") == 2


def test_axes_that_count_have_whole_numbers(result, tmp_path):
    result.curves["loss"] = [3.0, 2.0, 1.5]
    page = result.report(tmp_path / "r.html").read_text()
    axes = re.findall(r'text-anchor="middle">([^<]*)<', page)
    assert axes == ["1", "2", "3", "step", "0", "1", "2", "3", "block"]


def test_report_tells_prompt_columns_speed_and_readings(result, tmp_path):
    result.samples["prompt"] = "What is <this>?"
    result.after |= {"tokens_per_second": 20.0, "tokens_per_second_spread": 0.5}
    page = result.report(tmp_path / "r.html").read_text()
    assert "Prompt: <q>What is &lt;this&gt;?</q>" in page
    assert "<dt>sparsity</dt><dd>share of weights, or of activations, that are zero</dd>" in page
    assert "<dt>skipped</dt><dd>skipped</dd>" in page
    assert "20 ± 0.5" in page
    assert "Zeros alone do not make a model faster" in page
    assert "worked on <b>8</b> layers" in page
    result.reading, result.title = True, "condition numbers"
    page = result.report(tmp_path / "r.html").read_text()
    assert re.search(r"<code>condition numbers</code>\s+measured <b>8</b> layers", page)
