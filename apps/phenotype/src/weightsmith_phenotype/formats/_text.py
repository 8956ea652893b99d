"""Plain text: one document per file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import BinaryIO

from weightsmith_phenotype.document import Document
from weightsmith_phenotype.errors import CorpusError
from weightsmith_phenotype.formats._common import CONVERT, ReadOptions, assemble, decoded

__all__ = ["read"]


def read(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Document]:
    """Yield the one document of a text file. Its id is the file's name without the suffix, or the default id.

    Line ends stay as they are. A byte order mark is not part of the text.

    Raises
    ------
    CorpusError
        If the file is not UTF-8 or holds NUL, as binary files and UTF-16 do.
    """
    raw = stream.read()
    text = decoded(raw, name)
    nul = text.find("\0")
    if nul >= 0:
        raise CorpusError(
            f"{name} is not text",
            found=f"NUL at character {nul} (UTF-16 without a byte order mark, or a binary file)",
            expected="UTF-8",
            do=CONVERT,
        )
    yield assemble(name, options.default_id or PurePath(name).stem, text, (), options)
