"""Reading a customer file line by line in constant memory: encoding, delimiter, records with their lines."""

from __future__ import annotations

import codecs
import csv
import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from services.survey.domain import columns

DELIMITERS = ",;\t|"
# A record over more lines than this, or longer, is a quotation mark that was never closed.
MAX_RECORD_LINES = 100
MAX_RECORD_CHARS = 100_000
MAX_LINE_CHARS = 100_000

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Bytes that Windows-1252 does not define; a file with them is Latin-1 proper.
_NOT_CP1252 = frozenset(b"\x81\x8d\x8f\x90\x9d")


@dataclass(frozen=True, slots=True)
class Record:
    """One record and the physical lines it stands on, counted from 1; `problem` says why it is bad."""

    line: int
    last_line: int
    cells: list[str]
    problem: str | None = None


def sniff_encoding(stream: BinaryIO, chunk: int = 1 << 18) -> str:
    """The encoding of a whole file, read once in pieces from its start.

    A byte-order mark decides; else UTF-8 when most non-ASCII characters are valid UTF-8; else UTF-16 when
    every second byte is nil; else Windows-1252, or Latin-1 where that does not define a byte.
    """
    head = stream.read(chunk)
    for bom, name in _BOMS:
        if head.startswith(bom):
            return name
    sample = head[:2000]
    if len(sample) >= 4:
        if sample[1::2].count(0) > len(sample) // 4:
            return "utf-16-le"
        if sample[0::2].count(0) > len(sample) // 4:
            return "utf-16-be"
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    valid = invalid = 0
    undefined = False
    while head:
        following = stream.read(chunk)
        text = decoder.decode(head, final=not following)
        if not text.isascii():
            bad = sum("\udc80" <= c <= "\udcff" for c in text)
            invalid += bad
            valid += sum(c > "\x7f" for c in text) - bad
            undefined = undefined or (bad > 0 and not _NOT_CP1252.isdisjoint(head))
        head = following
    if invalid == 0 or valid > invalid:
        return "utf-8"
    return "latin-1" if undefined else "cp1252"


def open_text(stream: BinaryIO, encoding: str) -> io.TextIOWrapper:
    """The file's text. What is not valid in its encoding becomes lone surrogates, found by `records`."""
    errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
    return io.TextIOWrapper(stream, encoding=encoding, errors=errors, newline="")


def sniff_delimiter(line: str) -> str:
    """The delimiter of a header line: the one that finds most known columns, then most columns."""

    def found(delimiter: str) -> tuple[int, int]:
        try:
            cells = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            return (0, 0)
        return (columns.known(cells), len(cells))

    return max(DELIMITERS, key=found)


class _Lines:
    """Physical lines with a way to give some back; bounds how long a line and a record may get."""

    def __init__(self, text: io.TextIOBase) -> None:
        self.text = text
        self.number = 0
        self.back: deque[str] = deque()
        self.taken: list[str] = []
        self.chars = 0
        self.too_long = False

    def begin(self) -> None:
        self.taken.clear()
        self.chars = 0
        self.too_long = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.back:
            line = self.back.popleft()
        else:
            line = self.text.readline(MAX_LINE_CHARS)
            if len(line) == MAX_LINE_CHARS and not line.endswith(("\n", "\r")):
                self.too_long = True
                while (rest := self.text.readline(MAX_LINE_CHARS)) and not rest.endswith(("\n", "\r")):
                    pass
                line = line[:100] + "\n"
        if not line:
            raise StopIteration
        self.number += 1
        self.taken.append(line)
        self.chars += len(line)
        if len(self.taken) > MAX_RECORD_LINES or self.chars > MAX_RECORD_CHARS:
            raise _Unclosed
        return line

    def keep_first(self) -> None:
        """Gives back all lines of this record but its first."""
        rest = self.taken[1:]
        self.back.extendleft(reversed(rest))
        self.number -= len(rest)


class _Unclosed(Exception):
    pass


def records(
    text: io.TextIOBase, delimiter: str, *, first: str | None = None, line: int = 0
) -> Iterator[Record]:
    """All records after `line` lines were read already; `first` is a line to read before the rest.

    Blank records are left out. A bad record costs its first line only: after a quotation mark that is
    never closed, reading goes on with the next line.
    """
    lines = _Lines(text)
    lines.number = line
    if first is not None:
        lines.back.append(first)

    def reader() -> Iterator[list[str]]:
        return csv.reader(lines, delimiter=delimiter, strict=True)

    rows = reader()
    while True:
        lines.begin()
        start = lines.number + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except (_Unclosed, csv.Error) as error:
            several = len(lines.taken) > 1
            lines.keep_first()
            rows = reader()
            if lines.too_long:
                problem = f"the line is longer than {MAX_LINE_CHARS:,} characters"
            elif several or isinstance(error, _Unclosed) or "unexpected end" in str(error):
                problem = "a quotation mark is opened and never closed"
            else:
                problem = 'a quotation mark stands in the middle of a cell; write it twice ("") inside quotes'
            yield Record(start, start, [], problem)
            continue
        if lines.too_long:
            yield Record(start, lines.number, [], f"the line is longer than {MAX_LINE_CHARS:,} characters")
        elif not any(cell and not cell.isspace() for cell in cells):
            continue
        else:
            yield Record(start, lines.number, cells, _bad_text(lines.taken))


def _bad_text(taken: list[str]) -> str | None:
    for text in taken:
        if "\0" in text:
            return "the line contains a NUL byte"
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                return "the line is not valid UTF-8, while the rest of the file is"
            if "\ufffd" in text:
                return "the line contains bytes that are no text"
    return None
