"""The pages written from data say what the data say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


@pytest.mark.parametrize("path", generate.pages(), ids=lambda path: path.name)
def test_generated_pages_are_up_to_date(path):
    assert path.read_text("utf-8") == generate.pages()[path], "run `python docs/generate.py` and commit what it wrote"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/methods").glob("*.md")]
)
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
        if "://" not in target and not target.startswith("gallery/"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_a_claim_is_drawn(tmp_path):
    arm = {"name": "a", "role": "method", "mean": 1.0, "ci95": [0.9, 1.1], "values": [0.95, 1.0, 1.05]}
    generate._draw(
        {"arms": [arm, {**arm, "role": "control"}], "metric": "x", "higher_is_better": True}, tmp_path / "c.png"
    )
    assert (tmp_path / "c.png").stat().st_size > 5_000
