"""A meal kit as CSV and as PDF."""

from __future__ import annotations

import csv
import io
from typing import Any
from xml.sax.saxutils import escape

from weightsmith_kitchen.kit.kit import MealKit
from weightsmith_kitchen.quantity import Quantity

__all__ = ["cell", "to_csv", "to_pdf"]

DANGEROUS = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet take a cell for a formula."""


def to_csv(kit: MealKit) -> str:
    """The kit as CSV: a row per ingredient, and the total.

    A cell that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    stream = io.StringIO()
    rows = kit.rows()
    columns = list(rows[0]) if rows else ["ingredient"]
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([cell(row[column]) for column in columns])
    total = {"ingredient": "total", "kcal": round(kit.kcal.value), "kcal_low": round(kit.kcal.low)}
    total |= {"kcal_high": round(kit.kcal.high), "kcal_per_serving": round(kit.kcal_per_serving.value)}
    if not kit.complete:
        total["notes"] = f"a lower bound: {len(kit.unpriced)} ingredients have no energy, see the notes"
    writer.writerow([cell(total.get(column, "")) for column in columns])
    return stream.getvalue()


def cell(value: Any) -> Any:
    """A value for a cell of CSV that no spreadsheet takes for a formula."""
    if isinstance(value, str) and value.startswith(DANGEROUS):
        return "'" + value
    return "" if value is None else value


def to_pdf(kit: MealKit) -> bytes:
    """The kit as a PDF of one or more pages: shopping list, amounts in kitchen fractions, energy, and sources."""
    from reportlab.lib import colors
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.styles import getSampleStyleSheet
    from reportlab.lib.units import mm
    from reportlab.platypus import Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

    styles = getSampleStyleSheet()
    small = styles["BodyText"].clone("small", fontSize=7.5, leading=9, textColor=colors.HexColor("#444444"))
    body = styles["BodyText"].clone("cell", fontSize=9.5, leading=12)
    font = _font()
    if font:
        for style in (small, body, styles["Title"], styles["BodyText"]):
            style.fontName = font

    def text(content: str, style: Any = body) -> Any:
        return Paragraph(escape(content), style)

    people = Quantity.of(kit.servings)
    who = f"For {people} {'person' if people.high == 1 else 'people'}" if kit.servings_known else "For the whole recipe"
    total = f"{who}: {kit.kcal} kcal" + (f", {kit.kcal_per_serving} kcal each" if kit.servings_known else "")
    if not kit.complete:
        total += (
            f". A lower bound: {len(kit.unpriced)} of {len(kit.ingredients)} ingredients have no energy, see the notes"
        )
    head = [text(name) for name in ("Buy", "Amount", "Grams", "kcal", "From")]
    rows = [head]
    for item in kit.ingredients:
        source = "" if item.food is None else f"{item.food.name} ({item.food.source}, {item.food.id}). {item.basis}"
        rows.append(
            [
                text(item.called()),
                text(item.measured()),
                text("" if item.grams is None else str(item.grams)),
                text("" if item.kcal is None else str(item.kcal)),
                text(" ".join([source, *item.remarks]).strip(), small),
            ]
        )
    table = Table(rows, colWidths=[42 * mm, 28 * mm, 24 * mm, 28 * mm, 56 * mm], repeatRows=1)
    table.setStyle(
        TableStyle(
            [
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("LINEBELOW", (0, 0), (-1, 0), 1, colors.HexColor("#333333")),
                ("LINEBELOW", (0, 1), (-1, -1), 0.25, colors.HexColor("#bbbbbb")),
            ]
        )
    )
    stream = io.BytesIO()
    document = SimpleDocTemplate(
        stream, pagesize=A4, leftMargin=16 * mm, rightMargin=16 * mm, topMargin=16 * mm, bottomMargin=16 * mm,
        title=kit.dish or "Meal kit", author="weightsmith-kitchen", invariant=1,
    )  # fmt: skip
    notes = [text(note, small) for note in kit.notes]
    document.build(
        [
            text(kit.dish or "Meal kit", styles["Title"]),
            text(total),
            Spacer(1, 5 * mm),
            table,
            Spacer(1, 4 * mm),
            *notes,
        ]
    )
    return stream.getvalue()


def _font() -> str | None:
    """A font with the letters of more languages than the PDF standard's, where one is installed with reportlab."""
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFError, TTFont

    try:
        pdfmetrics.registerFont(TTFont("Vera", "Vera.ttf"))
    except TTFError:
        return None
    return "Vera"
