"""The command line as a user meets it: help, tables, exit codes, one-line errors, a quick start."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoints

import pytest
from typer.testing import CliRunner

from weightsmith import catalog, claims
from weightsmith.claims.harness import Arm, Claim, ClaimResult, Ordering
from weightsmith.cli.main import app, main

runner = CliRunner()


def words(*arguments: str) -> str:
    done = runner.invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return " ".join(done.output.replace("│", " ").split())


def fails(capsys, *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code, capsys.readouterr().err


def test_help_shows_verbs_and_tools():
    text = words("--help")
    for word in ("sparsify Fewer weights, fewer activations", "predict", "methods", "show", "run", "claims", "demo"):
        assert word in text


def test_a_verb_lists_its_commands_with_one_line():
    text = words("sparsify", "--help")
    for name, method in catalog.commands("sparsify").items():
        assert f"{name} {method.commands[name].summary}" in text


def test_every_command_has_help():
    for name, method in catalog.commands().items():
        assert "[default:" in words(method.commands[name].verb, name, "--help")


@pytest.mark.parametrize(
    "line", [["--help"], ["methods"], ["methods", "--json"], ["show", "wanda"], ["sparsify", "--help"]]
)
def test_looking_imports_nothing_heavy(line):
    code = (
        "import sys\nfrom weightsmith.cli.main import main\n"
        f"try: main({line!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'scipy', 'transformers', 'plotly', 'jinja2'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_commands_do_not_import_what_few_of_them_need():
    code = (
        "import sys, weightsmith.cli.adaptor\n"
        "heavy = {'peft', 'transformers.trainer', 'datasets', 'sklearn', 'plotly', 'diffusers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_methods_json_has_every_row():
    rows = json.loads(runner.invoke(app, ["methods", "--json"]).output)
    assert [row["slug"] for row in rows] == [method.slug for method in catalog.METHODS]
    for row in rows:
        assert re.fullmatch(r"planned|not measured|held|not held|\d of \d held", row["status"])


def test_methods_of_one_verb():
    text = words("methods", "--verb", "merge")
    assert "weight-matching" in text
    assert "wanda" not in text


@pytest.fixture
def planned_method(monkeypatch):
    """A row without commands and classes: a method that does not exist yet."""
    method = replace(catalog.find("magnitude"), slug="dowsing", aliases=(), commands={}, classes=())
    assert method.planned
    monkeypatch.setattr(catalog, "METHODS", (*catalog.METHODS, method))
    return method


def test_show_a_planned_method(planned_method):
    text = words("show", planned_method.slug)
    assert planned_method.paper in text
    assert "planned" in text


def test_claims_of_a_planned_method(capsys, planned_method):
    found, text = fails(capsys, "claims", planned_method.slug)
    assert (found, text) == (1, "error: 'dowsing' is planned: it has no claim to run yet\n")


def test_show_a_ready_method_tells_its_defaults():
    text = words("show", "magnitude")
    assert "weightsmith sparsify magnitude MODEL OUT" in text
    assert "--sparsity 0.5" in text


def test_show_of_one_command_among_several_tells_only_that_one():
    text = words("show", "ties")
    assert "weightsmith merge ties CHECKPOINTS... OUT" in text
    assert "weightsmith merge dare" not in text
    assert "weightsmith merge dare" in words("show", "bang")


def test_show_tells_the_measured_claims():
    text = words("show", "dsnot")
    for claim in claims.stored("dsnot"):
        assert claim["title"] in text
        assert f"{claim['arms'][0]['mean']:.4g} ±" in text
    assert claims.stored("dsnot")


def test_version():
    assert words("--version").startswith("weightsmith 0.")


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (["show", "wandaa"], 1, "error: no method 'wandaa'. Did you mean 'wanda'?\n"),
        (["sparsify", "magnitude", "embedded:nothing", "OUT"], 1, "error: no embedded model folder 'nothing'"),
        (["run", "no-such.yaml"], 2, "error: cannot read recipe no-such.yaml"),
        (["methods", "--verb", "cook"], 2, "found 'cook'"),
        (["sparsfy"], 2, "Did you mean 'sparsify'?"),
        (["sparsify", "magnitude"], 2, "Missing argument"),
    ],
)
def test_errors_are_readable_and_have_their_exit_code(capsys, line, code, message):
    found, text = fails(capsys, *line)
    assert found == code
    assert message in " ".join(text.replace("│", " ").split(" "))
    assert "Traceback" not in text


@pytest.mark.parametrize(("why", "said"), [((), "stopped\n"), (("start it again",), "stopped; start it again\n")])
def test_a_run_that_is_interrupted_says_so(capsys, monkeypatch, why, said):
    def interrupted(*_):
        raise KeyboardInterrupt(*why)

    monkeypatch.setattr("weightsmith.recipe.load_recipe", interrupted)
    assert fails(capsys, "run", "recipe.yaml") == (130, said)


def completed(line: str) -> list[str]:
    environment = {"_WEIGHTSMITH_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    code = (
        "import sys\nfrom weightsmith.cli.main import main\ntry: main([])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return done.stdout.split()


def test_a_shell_completes_verbs_commands_and_options_without_importing_a_method(monkeypatch):
    assert completed("weightsmith spars") == ["sparsify"]
    assert completed("weightsmith sparsify wa") == ["wanda"]
    assert completed("weightsmith sparsify wanda MODEL OUT --calibration FILE --spars") == ["--sparsity"]
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    assert "complete -o default" in words("--show-completion")


def test_debug_shows_the_traceback():
    with pytest.raises(Exception, match="no method 'wandaa'"):
        main(["show", "wandaa", "--debug"])


def test_a_bug_is_one_line_too(capsys, monkeypatch):
    monkeypatch.setattr(catalog, "find", lambda slug: {}[slug])
    code, text = fails(capsys, "show", "x")
    assert (code, text) == (1, "error: KeyError: 'x' (a bug? --debug shows where)\n")


@pytest.mark.parametrize(("value", "code"), [(0.9, 0), (0.1, 1)])
def test_claims_are_run_stored_and_shown(monkeypatch, tmp_path, value, code):
    claim = Claim("wina", "Toy", "a beats b", "accuracy", True, [Ordering("a", "b")], scales=("cpu", "gpu"))

    def run(scale, seeds):
        assert scale == "gpu"
        arms = [
            Arm("a", "method", [value + 0.01 * seed for seed in seeds]),
            Arm("b", "baseline", [0.5 + 0.011 * seed for seed in seeds]),
        ]
        return [ClaimResult.judge(claim, arms, scale=scale, seeds=seeds, seconds=0.0)]

    monkeypatch.setattr(catalog, "load", lambda entry: {"weightsmith.claims.wina:run": run}[entry])
    monkeypatch.setitem(globals(), "CLAIM", claim)
    done = runner.invoke(app, ["claims", "wina", "--scale", "gpu", "--seeds", "4", "--store", str(tmp_path)])
    assert done.exit_code == code, done.output
    monkeypatch.undo()
    monkeypatch.setattr(claims, "FOLDERS", (tmp_path,))
    (stored,) = claims.stored("wina")
    assert stored["seeds"] == [0, 1, 2, 3]
    assert stored["holds"] is (code == 0)
    status = {row["slug"]: row["status"] for row in json.loads(runner.invoke(app, ["methods", "--json"]).output)}
    assert status["wina"] == ("held" if code == 0 else "not held")
    assert status["know"] == "not measured"


def test_a_scale_that_a_claim_has_not_is_refused_before_anything_runs(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(catalog, "METHODS", [catalog.find("wina"), catalog.find("dsnot")])
    monkeypatch.setattr(catalog, "load", lambda entry: lambda scale: ran.append(entry) or [])
    code, text = fails(capsys, "claims", "wina", "dsnot", "--scale", "gpu")
    assert (code, text) == (2, "error: wina: its claim has no scale 'gpu': expected cpu\n")
    with pytest.raises(SystemExit) as stop:
        main(["claims", "--scale", "gpu"])
    assert stop.value.code == 0
    assert not ran
    assert "dsnot: its claim has no scale 'gpu'; it is left out\n" in capsys.readouterr().err


def test_show_of_a_product_tells_how_it_is_imported_and_called():
    text = words("show", "phenotagger")
    assert "from weightsmith_phenotype import PhenoTagger" in text
    assert "weightsmith phenotype --help" in text


@pytest.fixture
def no_products(monkeypatch):
    """As on a machine where weightsmith is installed and no product is."""
    monkeypatch.setitem(sys.modules, "weightsmith_phenotype", None)
    monkeypatch.setattr("weightsmith.cli.lazy.products", lambda: EntryPoints())


def test_the_catalog_tells_of_products_that_are_not_installed(no_products):
    assert not catalog.find("phenotagger").installed
    assert catalog.find("wina").installed
    assert "phenotagger" in words("methods")
    text = words("show", "phenotagger")
    assert "https://arxiv.org/abs/2009.08478" in text
    assert "weightsmith-phenotype, a package of its own, is not installed" in text


def test_claims_leave_out_products_that_are_not_installed(no_products, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(catalog, "METHODS", [catalog.find("wina"), catalog.find("phenotagger")])
    monkeypatch.setattr(catalog, "load", lambda entry: lambda scale: ran.append(entry) or [])
    with pytest.raises(SystemExit) as stop:
        main(["claims"])
    assert stop.value.code == 0
    assert ran == ["weightsmith.claims.wina:run"]
    said = "phenotagger: the product weightsmith-phenotype is not installed; its claim is left out\n"
    assert capsys.readouterr().err == said


def test_the_claim_of_a_product_that_is_not_installed_is_refused(no_products, capsys):
    code, text = fails(capsys, "claims", "phenotagger")
    assert code == 1
    assert text == (
        "error: phenotagger: the product weightsmith-phenotype is not installed. Install it, and run the claim again.\n"
    )
