"""A notebook per verb: a question, five to ten cells, a picture, what to take away; each runs, as do the examples."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path

import pytest

from weightsmith import catalog

FOLDER = Path(__file__).parents[1] / "examples" / "verbs"
EXAMPLES = sorted(path.stem for path in FOLDER.parent.glob("plot_*.py"))
VERBS = [verb for verb in catalog.VERBS if verb != "apps"]


def test_every_verb_has_one():
    assert sorted(path.name for path in FOLDER.glob("*.py")) == sorted(f"plot_{verb}.py" for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_it_asks_shows_and_concludes(verb):
    text = (FOLDER / f"plot_{verb}.py").read_text("utf-8")
    first, *cells = text.split("\n# %%\n")
    title = first.splitlines()[1]
    assert title.startswith(f"{verb.capitalize()}: ")
    assert title.endswith("?")
    assert 4 <= len(cells) <= 9
    assert text.count("plt.show()") == 1
    assert cells[-1].startswith("# **Take away.** ")
    compile(text, verb, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_it_runs(verb, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is part of the extra docs")
    plt.switch_backend("Agg")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning, module="__main__")
        warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
        ran = runpy.run_path(str(FOLDER / f"plot_{verb}.py"), run_name="__main__")
    assert ran["figure"].axes
    plt.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_method_runs(name, monkeypatch, tmp_path):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is part of the extra docs")
    plt.switch_backend("Agg")
    runpy.run_path(str(FOLDER.parent / f"{name}.py"), run_name="__main__")
    plt.close("all")
