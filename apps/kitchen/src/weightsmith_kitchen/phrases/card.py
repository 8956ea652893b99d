"""The model card of a saved tagger: what it labels, what it learned from, what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["model_card"]


def model_card(kind: str, labels: Sequence[str], extra: Mapping[str, Any]) -> str:
    """The text of a ``README.md``.

    Parameters
    ----------
    kind : str
        Name of the tagger's class.
    labels : sequence of str
        What it labels.
    extra : mapping
        ``trained_on`` (facts by name), ``measured`` (per arm: F1 in total and per label, or a single fact) and
        ``matrix`` (F1 by training and test source), each optional; what else there is is not shown.

    Examples
    --------
    >>> print(model_card("IngredientTagger", ["O", "NAME"], {"measured": {"tagger": {"f1": 0.9, "NAME": 0.8}}}))
    ---
    library_name: weightsmith-kitchen
    pipeline_tag: token-classification
    language: en
    ---
    # IngredientTagger
    <BLANKLINE>
    A linear-chain CRF over hashed features of tokens. Labels: O, NAME.
    <BLANKLINE>
    ## Measured
    <BLANKLINE>
    F1 of exact spans.
    <BLANKLINE>
    | | f1 | NAME |
    | --- | --- | --- |
    | tagger | 0.9 | 0.8 |
    <BLANKLINE>
    ## Source
    <BLANKLINE>
    N. Diwan, D. Batra, G. Bagler, *A Named Entity Based Approach to Model Recipes*, arXiv:2004.12184.
    <BLANKLINE>
    """
    parts = [
        "---\nlibrary_name: weightsmith-kitchen\npipeline_tag: token-classification\nlanguage: en\n---",
        f"# {kind}\n\nA linear-chain CRF over hashed features of tokens. Labels: {', '.join(labels)}.",
    ]
    if extra.get("trained_on"):
        facts = [f"- {name.replace('_', ' ')}: {_plain(value)}" for name, value in extra["trained_on"].items()]
        parts.append("\n## Learned from\n\n" + "\n".join(facts))
    measured = extra.get("measured", {})
    arms = {name: values for name, values in measured.items() if isinstance(values, Mapping)}
    if arms:
        facts = [f"{name.replace('_', ' ')}: {_plain(value)}." for name, value in measured.items() if name not in arms]
        columns = list(dict.fromkeys(column for values in arms.values() for column in values))
        parts.append("\n## Measured\n\n" + " ".join(["F1 of exact spans.", *facts]) + "\n\n" + _table(arms, columns))
    if extra.get("matrix"):
        matrix = extra["matrix"]
        columns = list(dict.fromkeys(column for values in matrix.values() for column in values))
        parts.append("\nF1 by source; rows: trained on, columns: tested on.\n\n" + _table(matrix, columns))
    parts.append(
        "\n## Source\n\nN. Diwan, D. Batra, G. Bagler, *A Named Entity Based Approach to Model Recipes*, "
        "arXiv:2004.12184.\n"
    )
    return "\n".join(parts)


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _table(rows: Mapping[str, Mapping[str, object]], columns: Sequence[str]) -> str:
    lines = [f"| | {' | '.join(columns)} |", "|" + " --- |" * (len(columns) + 1)]
    for name, values in rows.items():
        cells = " | ".join(str(values.get(column, "")) for column in columns)
        lines.append(f"| {name.replace('_', ' ')} | {cells} |")
    return "\n".join(lines)
