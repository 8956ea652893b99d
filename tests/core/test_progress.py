"""Progress: items pass through unchanged, short work is silent, long work says how far it is."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from weightsmith.core import progress


class Clock:
    """A clock that goes one second further at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def fast_clock(monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", Clock())


@pytest.fixture
def terminal(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(progress, "_console", console)
    return console.file


@pytest.fixture
def no_terminal(monkeypatch):
    monkeypatch.setattr(progress, "_console", Console(file=io.StringIO(), force_terminal=False))


def test_short_work_says_nothing(no_terminal, caplog):
    with caplog.at_level(logging.INFO, "weightsmith"):
        assert list(progress.track("abc", "letters")) == ["a", "b", "c"]
    assert caplog.messages == []


def test_long_work_logs_where_there_is_no_terminal(no_terminal, fast_clock, caplog):
    with caplog.at_level(logging.INFO, "weightsmith"):
        assert list(progress.track(range(30), "layers")) == list(range(30))
    assert caplog.messages[0].startswith("layers: 1/30 in ")
    assert caplog.messages[-1].startswith("layers: done, 30 in ")
    assert len(caplog.messages) == 4, "one line each ten seconds, and the last"


@pytest.mark.parametrize(("seconds", "lines"), [(9.0, []), (11.0, ["loading a model: 11 s"])])
def test_a_long_stage_is_one_line_where_there_is_no_terminal(no_terminal, monkeypatch, caplog, seconds, lines):
    times = iter([0.0, seconds])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with caplog.at_level(logging.INFO, "weightsmith"), progress.stage("loading a model"):
        pass
    assert caplog.messages == lines


def test_a_path_in_brackets_is_shown_as_it_is(terminal):
    with progress.stage("saving out[/z]"):
        pass
    assert "out[/z]" in terminal.getvalue()


def test_a_generator_has_no_total(no_terminal, fast_clock, caplog):
    with caplog.at_level(logging.INFO, "weightsmith"):
        list(progress.track((n for n in range(5)), "blocks"))
    assert caplog.messages[0].startswith("blocks: 1 in ")


def test_nested_bars_share_one_display_and_close_it(terminal, fast_clock):
    for _ in progress.track(range(4), "outer"):
        for _ in progress.track(range(4), "inner"):
            pass
    assert "outer" in terminal.getvalue()
    assert "inner" in terminal.getvalue()
    assert progress._bars is None


def test_a_break_or_an_error_closes_the_bar(terminal, fast_clock):
    loop = progress.track(range(9), "broken")
    for item in loop:
        if item == 5:
            break
    loop.close()
    with pytest.raises(ZeroDivisionError):
        list(progress.track((1 // (3 - n) for n in range(9)), "raises"))
    assert progress._bars is None
