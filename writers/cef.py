"""CEF, the Common Event Format of SIEMs: a line an event, for syslog and for files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import BinaryIO, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kcap import __version__
from kcap.model import catalogue, naming, text
from kcap.model.batch import Batch, Column, Rows, without_state
from kcap.model.classes import TypeClass
from kcap.writers import arguments, blocks, fragments
from kcap.writers.fragments import Texts

_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "externalId": ("arg_alert_id",),
    "cat": ("category",),
    "act": ("action",),
    "outcome": ("status",),
    "reason": ("arg_reason",),
    "dvchost": ("host",),
    "spid": ("pid",),
    "sproc": ("process_name",),
    "suser": ("user",),
    "suid": ("uid",),
    "filePath": ("arg_pathname", "arg_path", "arg_file_path", "arg_filename", "arg_file_name"),
    "oldFilePath": ("arg_old_path", "arg_oldpath"),
    "src": ("arg_sip", "arg_src", "arg_local_ip"),
    "spt": ("arg_sport", "arg_src_port", "arg_local_port"),
    "dst": ("arg_dip", "arg_dst", "arg_remote_ip"),
    "dpt": ("arg_dport", "arg_dst_port", "arg_remote_port"),
    "msg": ("arg_text",),
}
"""Keys of CEF's dictionary, and what an event has for them, the best first."""

_TIME: Final = "ts"
_IDENTITY: Final = ("origin", "ord")
_ELSEWHERE: Final = frozenset({
    *("event", _TIME, *_IDENTITY, "arg_rule", "arg_title", "arg_severity"),
    *("provenance", "shape"),
})  # fmt: skip
"""What has a place of its own, and how the source spelled a record, which is for captures."""

_CLASSES: Final = frozenset(TypeClass)
"""A row has a value of one class, so that the key need not say which."""

_SEVERITIES: Final = {"low": 3, "medium": 5, "high": 8, "critical": 10}
_EVENT: Final = "1"
"""How severe what is no alert is, of 10."""

_NS_PER_MS: Final = 1_000_000
_UNSAFE: Final = re.compile(text.UNSAFE)
_WORD: Final = re.compile(r"[^0-9A-Za-z]+")


class Cef:
    r"""A sink that writes CEF, one line an event.

    Keys of CEF's dictionary hold what they are for; all else has a key of its own, ``kcap`` and
    the column's name. Line ends within a value are ``\n`` as the format says.

    Args:
        stream: Where the lines go; stays open.
        state: Whether rows that only describe what was there (``kind`` is ``state``) are written.

    Example:
        >>> sink = Cef(sys.stdout.buffer)
        >>> sink.write(batch)
        CEF:0|kcap|kcap|0.1.0|CreateFile|CreateFile|1|rt=1604759097183 spid=6328
    """

    def __init__(self, stream: BinaryIO, *, state: bool = False) -> None:
        self._stream = stream
        self._state = state
        self._closed = False

    def write(self, batch: Batch) -> None:
        """Write the events of a batch.

        Args:
            batch: Events; side records have no place in CEF.

        Raises:
            OutputError: The stream takes no more.
        """
        if not self._state:
            batch = without_state(batch)
        for block in blocks.of(batch):
            fragments.write_all(self._stream, _lines(block))
        fragments.flush(self._stream)

    def close(self) -> None:
        """Flush the stream, which stays open.

        Raises:
            OutputError: The stream takes no more.
        """
        if not self._closed:
            self._closed = True
            fragments.flush(self._stream)


class _Key(NamedTuple):
    """A key of the extension and the values it has, in some rows."""

    name: str
    texts: Texts
    rows: Rows | None


def _lines(block: Batch) -> memoryview:
    keys = list(_extension(block))
    constants = fragments.Constants()
    begin = constants.number(f"CEF:0|kcap|kcap|{__version__}|")
    bar, end, none = constants.number("|"), constants.number("\n"), constants.number("-")
    calm = constants.number(_EVENT)
    heads = [(constants.number(f"{k.name}="), constants.number(f" {k.name}=")) for k in keys]
    lines = fragments.LineBuilder(block.rows, constants.texts())
    lines.append(begin)
    for names in (("arg_rule", "event"), ("arg_title", "event")):
        found = [(column, _header_texts(column)) for column in _columns(block, names)]
        arguments.append_first(lines, block.rows, found, none)
        lines.append(bar)
    severe = [(column, _severities(column)) for column in _columns(block, ("arg_severity",))]
    arguments.append_first(lines, block.rows, severe, calm)
    lines.append(bar)
    seen = np.zeros(block.rows, np.bool_)
    for key, (first, other) in zip(keys, heads, strict=True):
        where = slice(None) if key.rows is None else key.rows
        lines.append(np.where(seen[where], other, first).astype(np.int32), key.rows)
        lines.append_texts(key.texts, key.rows)
        seen[where] = True
    lines.append(end)
    return lines.finish()


def _extension(block: Batch) -> Iterator[_Key]:
    """The keys in their order: time and identity, CEF's own, then ours."""
    time = block.get(_TIME)
    if time is not None and time.cls is TypeClass.I64 and len(time):
        moments = pc.divide(time.values, _NS_PER_MS)
        yield _Key("rt", Texts(moments.cast(pa.utf8()), None), time.rows)
    has_id = np.logical_and(*(block.mask(name) for name in _IDENTITY))
    if has_id.any():
        origin, place = (block.array(n).filter(pa.array(has_id)) for n in _IDENTITY)
        ids = fragments.joined(
            origin.cast(pa.utf8()), pa.scalar(":", pa.utf8()), place.cast(pa.utf8())
        )
        yield _Key("externalId", Texts(ids, None), np.flatnonzero(has_id).astype(np.int32))
    left = set(block.columns) - _ELSEWHERE
    spare: list[_Key] = []
    for key, names in _KEYS.items():
        missing = np.ones(block.rows, np.bool_)
        for column_name in (c for name in names for c in arguments.spellings(block, name)):
            column = block.columns[column_name]
            if column_name not in left or not len(column):
                continue
            left.discard(column_name)
            rows = column.rows
            at = np.arange(block.rows, dtype=np.int32) if rows is None else rows
            texts, wanted = _value_texts(column), missing[at]
            if wanted.any():
                yield _Key(key, texts.select(wanted), at[wanted])
            if not wanted.all():
                spare.append(_Key(_own(column_name), texts.select(~wanted), at[~wanted]))
            missing[at] = False
    yield from spare
    for name in [n for n in catalogue.envelope() if n in left] + sorted(
        left - catalogue.envelope().keys()
    ):
        column = block.columns[name]
        if len(column):
            yield _Key(_own(name), _value_texts(column), column.rows)


def _columns(block: Batch, names: tuple[str, ...]) -> Iterator[Column]:
    for name in names:
        for spelling in arguments.spellings(block, name):
            yield block.columns[spelling]


@cache
def _own(column: str) -> str:
    """A key for what CEF has none for: letters and digits only."""
    base, suffixes = naming.parts(column)
    prefix, _, name = base.partition("_")
    named = arguments.source_name(base) if prefix == naming.ARGUMENT else ""
    kept = [suffix for suffix in suffixes if suffix not in _CLASSES]
    words = _WORD.split(" ".join([named or base, *kept]))
    key = "kcap" + "".join(word[0].upper() + word[1:] for word in words if word)
    return key if key != "kcap" else f"kcapArg{name.encode().hex()}"


def _severities(column: Column) -> Texts:
    texts = fragments.render(column, _plain)
    numbers = [str(_SEVERITIES.get(word, 1)) for word in texts.entries.to_pylist()]
    return Texts(pa.array(numbers, pa.utf8()), texts.codes)


def _header_texts(column: Column) -> Texts:
    """Values for the header, where a bar ends a field and there is one line."""
    texts = fragments.render(column, _plain)
    entries = pc.replace_substring(texts.entries, "\\", "\\\\")
    entries = pc.replace_substring(entries, "|", "\\|")
    entries = pc.replace_substring_regex(entries, "[\r\n]+", " ")
    return Texts(fragments.escape_unsafe(entries, entries, _escaped), texts.codes)


def _value_texts(column: Column) -> Texts:
    """Values for the extension, where an equals sign ends a key."""
    texts = fragments.render(column, _plain)
    entries = texts.entries
    for special, escaped in (("\\", "\\\\"), ("=", "\\="), ("\r", "\\r"), ("\n", "\\n")):
        entries = pc.replace_substring(entries, special, escaped)
    return Texts(fragments.escape_unsafe(entries, entries, _escaped), texts.codes)


def _plain(cls: TypeClass, values: pa.Array) -> pa.Array:
    if cls in (TypeClass.STR, TypeClass.JSON):
        return values
    return (
        fragments.base64_texts(values) if cls is TypeClass.BIN else fragments.number_texts(values)
    )


def _escaped(value: str) -> str:
    r"""Other control characters, which the format has no words for, as ``\\x1b``."""
    return _UNSAFE.sub(lambda match: "\\\\" + text.printable(match[0])[1:], value)
