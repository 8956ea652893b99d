"""The adaptor: a signature becomes arguments, options, help; given values arrive as the signature's types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from weightsmith.cli.adaptor import make_command
from weightsmith.core.data import Batches
from weightsmith.core.results import Result, record
from weightsmith.signature import read

runner = CliRunner()
received: dict[str, object] = {}


def blend(
    checkpoints: Sequence[Path],
    out: Path,
    *,
    share: float | Literal["2:4"] = 0.5,
    rule: Literal["mean", "sum"] = "mean",
    include: str | Sequence[str] = "*",
    exclude: Sequence[str] = (),
    steps: int | None = None,
    exact: bool = False,
    big_number: int = 3,
    generator: torch.Generator | None = None,
) -> Result:
    """Blend several checkpoints [into one].

    Parameters
    ----------
    checkpoints : sequence of path
        Files.
    out : path
        File.
    share : float or "2:4"
        How much of ``a`` [0, 1].
    rule : {"mean", "sum"}
        How.
    include, exclude : str or sequence of str
        Patterns.
    steps : int, optional
        How often.
    exact : bool
        Slow and right.
    big_number : int
        A number.
    generator : torch.Generator, optional
        Randomness.
    """
    received.clear()
    received.update(locals())
    with record("blend") as result:
        result.layer("fc", error=0.25)
    return result


@pytest.fixture
def call(tmp_path):
    for name in "abc":
        (tmp_path / name).touch()
    app = make_command("blend", read(blend))
    files = [str(tmp_path / name) for name in "abc"]
    return lambda *options: runner.invoke(app, [*files, str(tmp_path / "out"), *options])


def test_defaults_are_the_signatures(call, tmp_path):
    assert call().exit_code == 0
    assert received["checkpoints"] == [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    assert received["out"].name == "out"  # in a folder from which it is moved when all is written
    assert received["generator"].initial_seed() == 0
    given = {name: received[name] for name in ("share", "rule", "include", "exclude", "steps", "exact", "big_number")}
    assert given == {
        "share": 0.5, "rule": "mean", "include": "*", "exclude": (), "steps": None, "exact": False, "big_number": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (["--share", "0.25"], "share", 0.25),
        (["--share", "2:4"], "share", "2:4"),
        (["--rule", "sum"], "rule", "sum"),
        (["--include", "a.*"], "include", "a.*"),
        (["--include", "a", "--include", "b"], "include", ["a", "b"]),
        (["--exclude", "a"], "exclude", ["a"]),
        (["--steps", "7"], "steps", 7),
        (["--exact"], "exact", True),
        (["--no-exact"], "exact", False),
        (["--big-number", "12"], "big_number", 12),
    ],
)
def test_options_arrive_as_the_signatures_types(call, options, name, value):
    assert call(*options).exit_code == 0
    assert received[name] == value
    assert type(received[name]) is type(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--share", "2:5"], "found '2:5', expected number or '2:4'"),
        (["--rule", "max"], "mean"),
        (["--big-number", "x"], "as an integer"),
        (["--nothing"], "No such option"),
    ],
)
def test_wrong_options_are_usage_errors(call, options, message):
    done = call(*options)
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


def test_a_missing_checkpoint_is_a_usage_error(tmp_path):
    done = runner.invoke(make_command("blend", read(blend)), [str(tmp_path / "none"), str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "there is no folder" in " ".join(done.output.replace("│", " ").split())


def test_help_is_the_docstring(call):
    text = " ".join(call("--help").output.replace("│", " ").split())
    assert "Blend several checkpoints [into one]." in text
    assert "How much of a [0, 1]. [default: 0.5]" in text
    assert "--exact --no-exact" in text
    assert "NUMBER|2:4" in text
    assert "mean" in text
    assert "sum" in text
    assert "CHECKPOINTS" in text.upper()


def test_seed_json_and_report(call, tmp_path):
    done = call("--seed", "5", "--json", str(tmp_path / "r.json"), "--report", str(tmp_path / "r.html"))
    assert done.exit_code == 0, done.output
    assert received["generator"].initial_seed() == 5
    assert Result.from_json((tmp_path / "r.json").read_text()).layers == [{"layer": "fc", "error": 0.25}]
    assert "<h1>blend</h1>" in (tmp_path / "r.html").read_text()
    assert "0.25" in done.output


def test_a_transform_saves_the_changed_model(tmp_path):
    def zero(model: nn.Module, calibration: Batches, *, scale: float) -> Result:
        """Scale all weights."""
        assert [batch["input_ids"].shape for batch in calibration] == [(8, 4), (2, 4)]
        with record("zero", scale=scale) as result, torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale)
        result.files["note.txt"] = "scaled"
        return result

    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    save_file({"input_ids": torch.zeros(99, 4, dtype=torch.long)}, tmp_path / "data.safetensors")
    app, out = make_command("zero", read(zero)), tmp_path / "out"
    line = [str(tmp_path / "model"), str(out), "--scale", "0", "--calibration", str(tmp_path / "data.safetensors")]
    done = runner.invoke(app, [*line, "--calibration-samples", "10"])
    assert done.exit_code == 0, done.output
    model = LlamaForCausalLM.from_pretrained(out)
    assert all(not parameter.any() for parameter in model.parameters())
    assert (out / "note.txt").read_text() == "scaled"
    result = Result.from_json((out / "weightsmith.json").read_text())
    assert result.after["nonzero"] == 0
    assert result.before["nonzero"] > 0
    again = runner.invoke(app, line)
    assert again.exit_code == 1
    assert "exists" in str(again.exception)
    assert runner.invoke(app, [*line, "--overwrite", "--calibration-samples", "10"]).exit_code == 0


def test_a_plain_function_has_only_its_own_options(tmp_path):
    def demo(*, report: Path = Path("report.html"), fast: bool = False) -> list[Result]:
        """Show it."""
        received.update(report=report, fast=fast)
        return []

    app = make_command("demo", read(demo))
    assert runner.invoke(app, ["--report", str(tmp_path / "r.html"), "--fast"]).exit_code == 0
    assert received["report"] == tmp_path / "r.html"
    assert received["fast"] is True
    text = runner.invoke(app, ["--help"]).output
    assert "--seed" not in text
    assert "--json" not in text


@pytest.mark.parametrize("seed", ["-1", "4294967296", "99999999999999999999999"])
def test_a_seed_out_of_range_is_refused(call, seed):
    done = call("--seed", seed)
    assert done.exit_code == 2
    assert "equal to 0" in done.output if seed == "-1" else "equal to 4294967295" in done.output
