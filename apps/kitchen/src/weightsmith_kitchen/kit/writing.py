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

    The rows with something in the column ``buy`` are the shopping list, one per food: filter on it. A cell that a
    spreadsheet would take for a formula gets an apostrophe before it.
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
    said = [kit.yields, f"a lower bound: {kit.missing}" if kit.missing else ""]
    total["notes"] = "; ".join(filter(None, said))
    writer.writerow([cell(total.get(column, "")) for column in columns])
    return stream.getvalue()


def cell(value: Any) -> Any:
    """A value for a cell of CSV that no spreadsheet takes for a formula."""
    if isinstance(value, str) and value.startswith(DANGEROUS):
        return "'" + value
    return "" if value is None else value


def to_pdf(kit: MealKit) -> bytes:
    """The kit as a PDF of one or more pages: the shopping list, then each ingredient with energy and sources."""
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
        for style in (small, body, *(styles[name] for name in ("Title", "Heading2", "BodyText"))):
            style.fontName = font

    def text(content: str, style: Any = body) -> Any:
        return Paragraph(escape(content), style)

    people = Quantity.of(kit.servings)
    who = f"For {people} {'person' if people.high == 1 else 'people'}" if kit.servings_known else "For the whole recipe"
    total = f"{who}: {kit.kcal} kcal" + (f", {kit.kcal_per_serving} kcal each" if kit.servings_known else "")
    total += f"; {kit.yields}" if kit.yields else ""
    total += f". A lower bound: {kit.missing}" if kit.missing else ""
    bought = [[text(name) for name in ("Buy", "Amount", "Grams")]]
    for line in kit.shopping_list:
        grams = "" if line.grams is None else str(line.grams)
        bought.append([text(line.name), text(line.amount), text(grams)])
    rows = [[text(name) for name in ("Ingredient", "Amount", "Grams", "kcal", "From")]]
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
    ruled = TableStyle(
        [
            ("VALIGN", (0, 0), (-1, -1), "TOP"),
            ("LINEBELOW", (0, 0), (-1, 0), 1, colors.HexColor("#333333")),
            ("LINEBELOW", (0, 1), (-1, -1), 0.25, colors.HexColor("#bbbbbb")),
        ]
    )
    shopping = Table(bought, colWidths=[82 * mm, 60 * mm, 36 * mm], repeatRows=1, style=ruled)
    table = Table(rows, colWidths=[42 * mm, 28 * mm, 24 * mm, 28 * mm, 56 * mm], repeatRows=1, style=ruled)
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
            text("Shopping list", styles["Heading2"]),
            shopping,
            Spacer(1, 5 * mm),
            text("Ingredients", styles["Heading2"]),
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
