"""CSV: one row per mention, to be opened in a spreadsheet. It has no texts of documents, so it is written only.

A cell of text that starts with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return would be run as a formula by a
spreadsheet. It gets an apostrophe before it, and so does a cell that starts with an apostrophe: whoever removes one
apostrophe from every cell that starts with one has the cells as they were.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import TextIO

from weightsmith_phenotype.document import Document
from weightsmith_phenotype.formats._common import WriteOptions, check_document

__all__ = ["COLUMNS", "HEAD", "render", "write_csv"]

COLUMNS = (
    "document_id",
    "start",
    "end",
    "text",
    "concept_id",
    "name",
    "score",
    "source",
    "negated",
    "family",
    "uncertain",
    "kind",
)
HEAD = ",".join(f'"{column}"' for column in COLUMNS) + "\r\n"
_FORMULA = tuple("=+-@\t\r\n'＝＋－＠")


def safe(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula; NUL, which spreadsheets cannot read, is U+FFFD.

    Examples
    --------
    >>> safe("=1+1"), safe("tall"), safe("'tis")
    ("'=1+1", 'tall', "''tis")
    """
    cell = cell.replace("\0", "\ufffd")
    return "'" + cell if cell.startswith(_FORMULA) else cell


def render(document: Document, options: WriteOptions) -> str:
    """One row per mention, each cell of text in quotes."""
    check_document(document)
    out = io.StringIO()
    rows = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC)
    for mention in document.mentions:
        rows.writerow(
            [
                safe(document.id),
                mention.start,
                mention.end,
                safe(mention.text),
                safe(mention.concept_id),
                safe(mention.name),
                float(mention.score),
                safe(mention.source),
                *(str(flag).lower() for flag in (mention.negated, mention.family, mention.uncertain)),
                safe(mention.kind),
            ]
        )
    return out.getvalue()


def write_csv(documents: Iterable[Document], stream: TextIO) -> None:
    r"""Write the mentions of documents, one row each, below a row of column names.

    Parameters
    ----------
    documents : iterable of Document
        Read one at a time.
    stream : text stream
        Opened with ``newline=""``, so that line ends within quoted cells stay as they are.

    Examples
    --------
    >>> import io
    >>> from weightsmith_phenotype import Mention
    >>> out = io.StringIO(newline="")
    >>> write_csv([Document("7", "tall", (Mention(0, 4, "tall", "HP:0000098", "Tall stature"),))], out)
    >>> out.getvalue().splitlines()[1]
    '"7",0,4,"tall","HP:0000098","Tall stature",1.0,"dictionary","false","false","false","Phenotype"'
    """
    stream.write(HEAD)
    options = WriteOptions()
    for document in documents:
        stream.write(render(document, options))
