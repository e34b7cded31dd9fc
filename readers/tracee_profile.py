"""Tracee's profile of executed files: ``tracee.profile`` of the releases 0.5 to 0.10.

One JSON object, written when Tracee ends: a key for each file that was executed, with the times it
was and its SHA-256. The key is the file and the time of its last change. An entry is an event
without a time and without a process: nothing tells when the file was executed or by whom.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
import posixpath
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa

from kcap import limits
from kcap.errors import BadInputError, DamagedError, KcapError, LimitError, TruncatedError
from kcap.model import catalogue, jsonshape, naming, shape
from kcap.model.batch import Batch, Column, constant
from kcap.model.builder import Field, Layout, RecordBuilder
from kcap.model.classes import I64_MAX, TypeClass
from kcap.model.side import Loss, Side, SourceInfo
from kcap.model.stream import StreamInfo
from kcap.model.text import depth
from kcap.readers.textinput import TextInput
from kcap.readers.tracee_values import row_bytes

BATCH_ROWS: Final = 8192
"""Entries of a batch."""

KEPT_FIELDS: Final = 1 << 16
"""Fields of all layouts kept; a profile with more starts anew."""

PROFILE_BYTES: Final = 4 * limits.LINE_BYTES
"""Longest profile."""

EVENT: Final = "executed_file"
"""What an entry is called."""

_ORIGIN_BYTES: Final = 1 << 20
_NAMED: Final = 3
_TAIL: Final = 6
"""An escape in text, the longest thing whose start alone is no JSON, takes so many characters."""

_TEXT: Final = r'"(?:[^"\\]|\\.)*"'
_START: Final = re.compile(
    rf"\s*\{{\s*{_TEXT}\s*:\s*\{{\s*\"(?:times\"\s*:\s*[0-9]|file_hash\"\s*:\s*\")", re.DOTALL
)
_KEY: Final = re.compile(r"(.+):([0-9]{1,20})", re.DOTALL)
_CONTAINER: Final = re.compile("[0-9a-f]{64}")
_NEXT: Final = re.compile(rf"\}}\s*,\s*(?={_TEXT}\s*:\s*\{{)")
_SPACE: Final = re.compile(r"\s*")
_decode: Final = json.JSONDecoder().raw_decode


class _BadEntryError(Exception):
    """It is no entry of a profile; says why."""


class TraceeProfileReader:
    """A source of the executed files in a profile, one event each.

    Its arguments: ``pathname`` and ``ctime`` from the key, ``name`` of a file that Tracee
    copied (its path is the copy's), ``times`` and ``sha256``.

    Args:
        stream: The bytes from their start, plain or compressed; need not be seekable.
        file: Its name, as the user gave it.
        lenient: Go on past entries that are none, and past damage as far as possible.

    Example:
        >>> with open("tracee.profile", "rb") as stream:
        ...     for batch in TraceeProfileReader(stream, "tracee.profile").batches():
        ...         print(batch.columns["arg_times"].to_pylist())
        [3, 1]
    """

    name = "tracee-profile"
    reads = "Tracee's tracee.profile of executed files (0.5 to 0.10), also gzip or zstd"

    def __init__(self, stream: BinaryIO, file: str, *, lenient: bool = False) -> None:
        self._stream = stream
        self._file = file
        self._lenient = lenient
        self._input = TextInput(stream, file)
        self._builder = RecordBuilder()
        self._layouts: dict[tuple[Any, ...], Layout] = {}
        self._fields = 0
        self._ord = 0
        self._skipped: list[str] = []
        self._skipped_count = 0
        self._losses: list[Loss] = []
        self._announced = False

    @staticmethod
    def sniff(head: bytes) -> bool:
        """Whether an input looks like a profile.

        Args:
            head: Its first bytes, decompressed.

        Returns:
            True where its first entry has the fields of one.
        """
        return _START.match(head.decode("utf-8", "replace")) is not None

    @functools.cached_property
    def info(self) -> StreamInfo:
        """What is known before the first entry; reads the first MiB."""
        head = self._input.head(_ORIGIN_BYTES)
        origin = hashlib.sha256(self.name.encode() + head).digest()[:16].hex()
        source = SourceInfo("tracee", origin=origin, details={"file": self._file})
        return StreamInfo(self._file, self.name, (source,))

    def batches(self) -> Iterator[Batch]:
        """The entries, once.

        Yields:
            Batches in the order of the file.

        Raises:
            BadInputError: An entry is none, unless lenient.
            DamagedError: The data is damaged, unless lenient.
            LimitError: It is too long.
            KcapError: The stream cannot be read.
        """
        _ = self.info
        failure: KcapError | None = None
        try:
            text, error = self._text()
            for key, entry, at in self._entries(text, complete=error is None):
                self._take(key, entry, text, at)
                many = self._fields > KEPT_FIELDS
                if len(self._builder) >= BATCH_ROWS or (many and len(self._builder)):
                    yield self._finish()
                if many:
                    self._builder, self._layouts, self._fields = RecordBuilder(), {}, 0
            if error is not None:
                raise error
        except TruncatedError as error:
            self._losses.append(Loss("torn", None, f"{error.what} at {error.place}"))
        except KcapError as error:
            failure = error
            if self._lenient and isinstance(error, DamagedError):
                self._losses.append(Loss("damaged", None, f"{error.what} at {error.place}"))
                failure = None
        if len(self._builder):
            yield self._finish()
        if self._losses or self._skipped_count:
            yield Batch(0, {}, tuple(self._sides()))
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Close the stream; may be called twice."""
        self._stream.close()

    def _text(self) -> tuple[str, KcapError | None]:
        """The whole input, and why it ends before its end."""
        data = bytearray()
        failure: KcapError | None = None
        try:
            for piece in self._input.pieces():
                data += piece or b""
                if len(data) > PROFILE_BYTES:
                    raise LimitError(
                        "the profile is too long",
                        file=self._file,
                        expected=f"at most {PROFILE_BYTES} bytes",
                    )
        except (TruncatedError, DamagedError) as error:
            failure = error
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            return decoder.decode(bytes(data)), failure
        except UnicodeDecodeError as error:
            if failure is None:
                failure = DamagedError("no UTF-8", file=self._file, offset=error.start)
            return data[: error.start].decode(), failure

    def _entries(self, text: str, *, complete: bool) -> Iterator[tuple[str, Any, int]]:
        """Key, value and place of each entry; over damage where lenient."""
        at = 0
        first = True
        while True:
            try:
                if first:
                    start = self._space(text, self._mark(text, at, "{"))
                    empty = text[start : start + 1] == "}"
                    at = start if empty else at
                if not first or empty:
                    at = self._mark(text, at, ",}")
                    if text[at - 1] == "}":
                        break
                    start = self._space(text, at)
                first = False
                key, end = _decode(text, start)
                value, at = _decode(text, self._space(text, self._mark(text, end, ":")))
            except (ValueError, RecursionError) as error:
                at = self._broken(text, at, error, complete=complete)
                if at < 0:
                    return
                continue
            yield key, value, start
        rest = self._space(text, at)
        if rest < len(text):
            self._bad("something follows the profile", text, rest)

    def _space(self, text: str, at: int) -> int:
        match = _SPACE.match(text, at)
        return match.end() if match is not None else at

    def _mark(self, text: str, at: int, marks: str) -> int:
        """The place after a mark."""
        at = self._space(text, at)
        if at >= len(text) or text[at] not in marks:
            raise json.JSONDecodeError(f"Expecting {marks!r}", text, at)
        return at + 1

    def _broken(self, text: str, at: int, error: Exception, *, complete: bool) -> int:
        """What to do where the JSON breaks: the place of the next mark, below zero for the end."""
        message, place = "nested too deep", at
        if isinstance(error, json.JSONDecodeError):
            message, place = error.msg, error.pos
        ends = place >= len(text) - _TAIL or message.startswith("Unterminated string")
        found = _NEXT.search(text, at)
        if ends and found is None:
            if complete:
                raise TruncatedError(
                    "the profile is not complete", file=self._file, offset=_offset(text, place)
                ) from error
            return -1
        self._bad(f"no JSON ({message})", text, place)
        return -1 if found is None else found.end() - 1 - _spaces(found[0])

    def _bad(self, problem: str, text: str, at: int) -> None:
        offset = _offset(text, at)
        if not self._lenient:
            raise BadInputError(
                problem,
                file=self._file,
                offset=offset,
                hint="--lenient skips and counts such entries",
            )
        self._skipped_count += 1
        if len(self._skipped) < _NAMED:
            self._skipped.append(f"{problem} at byte {offset}")

    def _take(self, key: Any, entry: Any, text: str, at: int) -> None:  # noqa: ANN401
        """Add an entry."""
        try:
            found = _fields(key, entry)
        except _BadEntryError as error:
            self._bad(str(error), text, at)
            return
        names = tuple((base, name, type(value)) for base, name, value in found)
        values = [value for _, _, value in found]
        layout = self._layouts.get(names)
        if layout is None:
            fields = [Field(base, catalogue.home(base)) for base, _, _ in found]
            words = [shape.Item(name, jsonshape.WORDS[kind]) for _, name, kind in names if name]
            layout = self._builder.layout(fields, shape.encode(words))
            self._layouts[names] = layout
            self._fields += len(names)
        if row_bytes(layout.fields, values) > limits.ROW_BYTES:
            self._bad(f"values of more than {limits.ROW_BYTES} bytes", text, at)
            return
        self._builder.add(layout, values)

    def _finish(self) -> Batch:
        count = len(self._builder)
        source = self.info.sources[0]
        constants = {
            "category": constant(TypeClass.STR, "file", count),
            "event": constant(TypeClass.STR, EVENT, count),
            "kind": constant(TypeClass.STR, "event", count),
            "ord": Column(TypeClass.I64, pa.array(np.arange(self._ord, self._ord + count))),
            "origin": constant(TypeClass.STR, source.origin, count),
            "source": constant(TypeClass.STR, source.id, count),
        }
        self._ord += count
        return self._builder.finish(constants, self._sides())

    def _sides(self) -> list[Side]:
        """What is to be said since the last call: at first the source, then what was lost."""
        sides: list[Side] = [] if self._announced else [*self.info.sources]
        self._announced = True
        if self._skipped_count:
            more = ["…"] if self._skipped_count > len(self._skipped) else []
            sides.append(Loss("skipped", self._skipped_count, "; ".join(self._skipped + more)))
            self._skipped, self._skipped_count = [], 0
        losses, self._losses = self._losses, []
        return [*sides, *losses]


def _fields(key: Any, entry: Any) -> list[tuple[str, str, Any]]:  # noqa: ANN401
    """The values of an entry: column base, name of the argument (none for a column), value."""
    if type(key) is not str:
        raise _BadEntryError("a key that is no text")
    if type(entry) is not dict:
        raise _BadEntryError("an entry that is no JSON object")
    if len(entry) > limits.EVENT_FIELDS:
        raise _BadEntryError(f"an entry of more than {limits.EVENT_FIELDS} fields")
    if depth(entry) > limits.JSON_DEPTH:
        raise _BadEntryError("an entry that is nested too deep")
    match = _KEY.fullmatch(key)
    path, ctime = (match[1], int(match[2])) if match else (key, None)
    if ctime is not None and ctime > I64_MAX:
        path, ctime = key, None
    folder, base = posixpath.split(path)
    container = posixpath.basename(folder)
    values: dict[str, Any] = {"pathname": path, "ctime": ctime}
    if base.startswith("exec."):
        values["name"] = base.removeprefix("exec.")
    values["times"] = entry.get("times", 0)  # Go leaves out what is zero or empty
    values["sha256"] = entry.get("file_hash") or None
    values |= {name: v for name, v in entry.items() if name not in {"times", "file_hash"}}
    found = [(naming.argument(name), name, v) for name, v in values.items() if v is not None]
    if "name" not in values and path.startswith("/"):
        found.append(("exe", "", path))
    if _CONTAINER.fullmatch(container):
        found.append(("container_id", "", container))
    return found


def _offset(text: str, at: int) -> int:
    return len(text[:at].encode("utf-8", "surrogatepass"))


def _spaces(found: str) -> int:
    """What follows the comma in a place where entries meet."""
    return len(found) - found.index(",") - 1
