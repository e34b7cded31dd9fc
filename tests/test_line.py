"""Console lines: Fibratus's form and fields, one line an event whatever it lacks or holds."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hostile import VALUE
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import KcapError
from kcap.model import catalogue, decode, naming, text
from kcap.model.batch import EMPTY, Batch, Column, concat, constant, dictionary
from kcap.model.builder import Field, RecordBuilder
from kcap.model.catalogue import ColumnInfo
from kcap.model.classes import TypeClass
from kcap.writers import blocks, line
from kcap.writers.line import ConsoleLines

I64, STR = TypeClass.I64, TypeClass.STR

FIELDS = [
    *(Field(name, I64) for name in ("ts", "seq", "ord", "cpu", "pid")),
    *(Field(name, STR) for name in ("ts_raw", "process_name", "event")),
    Field(naming.argument("zeta")),
    Field(naming.argument("zeta"), None, 2),
    Field(naming.argument("Zeta")),
    Field(naming.argument("a,b \u202e")),
    Field(naming.argument("")),
    Field(naming.extension("outside"), STR),
]
RECORD = st.dictionaries(st.sampled_from(FIELDS), VALUE, max_size=len(FIELDS))


def batch_of(*records: dict[Field, Any]) -> Batch:
    builder = RecordBuilder()
    for record in records:
        builder.add(builder.layout(list(record)), list(record.values()))
    return builder.finish()


BATCHES = st.lists(RECORD, max_size=6).map(lambda records: batch_of(*records))


def lines_of(*batches: Batch, **options: Any) -> str:
    stream = io.BytesIO()
    sink = ConsoleLines(stream, **options)
    for batch in batches:
        sink.write(batch)
    sink.close()
    return stream.getvalue().decode()


def plain(value: Any) -> str:
    """The text of one value, one at a time: what the columnar code has to agree with."""
    if isinstance(value, list):
        return f"[{', '.join(map(plain, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, str):
        return text.printable(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return str(value)


def go_time(ns: int) -> str:
    """A time as Go's Time.String gives it."""
    seconds, rest = divmod(ns, 10**9)
    date = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    fraction = f".{rest:09}".rstrip("0").rstrip(".")
    return f"{date:%Y-%m-%d %H:%M:%S}{fraction} +0000 UTC"


def by_hand(row: dict[str, Any]) -> str:
    """The default line of an event, told from its values."""

    def field(*bases: str) -> str:
        for base in bases:
            for name in sorted(row):
                if naming.parts(name)[0] == base and not derived(name):
                    is_time = name == "ts"
                    return go_time(row[name]) if is_time else plain(row[name])
        return "-"

    def derived(name: str) -> bool:
        return bool({"raw", "size"} & set(naming.parts(name)[1]))

    found = []
    for name, value in row.items():
        base, suffixes = naming.parts(name)
        if (base == "arg" or base.startswith("arg_")) and not derived(name):
            number = [int(s) for s in suffixes if s.isdigit()] or [1]
            found.append((naming.source_name(base), number[0], value))
    found.sort(key=lambda item: item[:2])
    parameters = ", ".join(f"{text.printable(name)}➜ {plain(value)}" for name, _, value in found)
    return (
        f"{field('seq', 'ord')} {field('ts', 'ts_raw')} - {field('cpu')} {field('process_name')}"
        f" ({field('pid')}) - {field('event')} ({parameters})\n"
    )


def comparable(line: str) -> str:
    """Arrow and Python agree on a float's digits, not on when to write an exponent."""
    return re.sub(
        r"-?[0-9]+\.?[0-9]*(?:e[+-]?[0-9]+)?",
        lambda m: repr(float(m[0])) if re.search("[.e]", m[0]) else m[0],
        line,
    )


@given(BATCHES)
def test_lines_say_what_the_values_say(batch: Batch) -> None:
    """The default line of every event is the one told from its values, one event at a time."""
    wanted = "".join(map(by_hand, batch.to_pylist()))
    assert comparable(lines_of(batch)) == comparable(wanted)


@given(BATCHES)
def test_no_event_is_dropped_and_no_control_is_printed(batch: Batch) -> None:
    """There are as many lines as events, and the only control character is the line's end."""
    everything = " ".join(f"{{{{ .{name} }}}}" for name in (*line.FIELDS, "Params", *batch.columns))
    for template in (None, everything):
        printed = lines_of(batch, template=template)
        assert len(printed.split("\n")) == len(batch) + 1
        assert not re.search(text.UNSAFE, printed.replace("\n", ""))


@given(st.lists(BATCHES, min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 300))
def test_cutting_changes_nothing(batches: list[Batch], step: int, block: int) -> None:
    """The same events give the same text in one batch, in pieces, and in small blocks."""
    whole = concat(batches)
    once = lines_of(whole)
    assert lines_of(*batches) == once
    assert lines_of(*(whole.slice(i, i + step) for i in range(0, len(whole), step))) == once
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block)
        assert lines_of(whole) == once


@given(BATCHES)
def test_color_only_adds_color(batch: Batch) -> None:
    """Without its ANSI sequences a coloured line is the plain line."""
    colored = lines_of(batch, color=True)
    assert re.sub(r"\x1b\[[0-9]*m", "", colored) == lines_of(batch)
    assert colored.count("\x1b[0m") == 2 * len(batch)


def test_the_default_form() -> None:
    """The line of Fibratus's manual, in UTC."""
    batch = batch_of(
        {
            Field("seq", I64): 681951,
            Field("ts", I64): 1604759097183980900,
            Field("cpu", I64): 2,
            Field("process_name", STR): "cmd.exe",
            Field("pid", I64): 6328,
            Field("event", STR): "CreateFile",
            Field("arg_operation", STR): "open",
            Field("arg_file_name", STR): r"C:\WINDOWS\system32\en-US\cmd.exe.mui",
        }
    )
    expected = (
        "681951 2020-11-07 14:24:57.1839809 +0000 UTC - 2 cmd.exe (6328) - CreateFile "
        r"(file_name➜ C:\WINDOWS\system32\en-US\cmd.exe.mui, operation➜ open)" + "\n"
    )
    assert lines_of(batch) == expected
    assert lines_of(batch, template=line.TEMPLATE) == expected
    assert lines_of(batch, template="{{.Pid}} {{ .Params }}", delimiter="=") == (
        r"6328 file_name=C:\WINDOWS\system32\en-US\cmd.exe.mui, operation=open" + "\n"
    )


def test_an_event_that_lacks_everything() -> None:
    """Each missing value is a placeholder, no parameters are an empty list, no events nothing."""
    assert lines_of(Batch(2, {})) == "- - - - - (-) - - ()\n" * 2
    assert lines_of(EMPTY) == ""


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1))
def test_times_over_the_whole_range(times: list[int]) -> None:
    """Any int64 time is printed as Go prints it, from 1677 to 2262."""
    batch = Batch(len(times), {"ts": Column(I64, pa.array(times, pa.int64()))})
    printed = lines_of(batch, template="{{ .Timestamp }}").splitlines()
    assert printed == [go_time(ns) for ns in times]


@pytest.mark.parametrize(
    ("ns", "printed"),
    [
        (0, "1970-01-01 00:00:00 +0000 UTC"),
        (-1, "1969-12-31 23:59:59.999999999 +0000 UTC"),
        (100, "1970-01-01 00:00:00.0000001 +0000 UTC"),
        (10**9 + 5 * 10**8, "1970-01-01 00:00:01.5 +0000 UTC"),
        (-(1 << 63), "1677-09-21 00:12:43.145224192 +0000 UTC"),
        ((1 << 63) - 1, "2262-04-11 23:47:16.854775807 +0000 UTC"),
    ],
)
def test_times_spelled_out(ns: int, printed: str) -> None:
    """The edges of the range and of the fraction."""
    batch = Batch(1, {"ts": constant(I64, ns, 1)})
    assert lines_of(batch, template="{{ .Timestamp }}") == f"{printed}\n"


def test_what_stands_in() -> None:
    """A null ts shows ts_raw, a missing seq shows ord, a pid of another class is still the pid."""
    ts, raw, seq, at = Field("ts", I64), Field("ts_raw", STR), Field("seq", I64), Field("ord", I64)
    pid = Field("pid", I64)
    batch = batch_of(
        {ts: 0, raw: "zero", seq: 7, at: 1, pid: 5},
        {raw: "9999-01-01\n", at: 2, pid: "five"},
        {pid: 1 << 63},
    )
    assert lines_of(batch, template="{{ .Seq }}|{{ .Timestamp }}|{{ .Pid }}") == (
        "7|1970-01-01 00:00:00 +0000 UTC|5\n2|9999-01-01\\x0a|five\n-|-|9223372036854775808\n"
    )


FIBRATUS = [
    "Seq",
    "Timestamp",
    "Pid",
    "Ppid",
    "Pexe",
    "Pcomm",
    "Pname",
    "Cwd",
    "Exe",
    "Comm",
    "Tid",
    "Sid",
    "Process",
    "Category",
    "Description",
    "CPU",
    "Type",
    "Kparams",
    "Params",
    "Kparams.File_name",
    "Params.File_name",
    "Meta",
    "Host",
    "PE",
    "Pcmd",
    "Cmd",
    "Callstack",
]


@pytest.mark.parametrize("field", FIBRATUS)
def test_every_field_of_fibratus(field: str) -> None:
    """Every template field of Fibratus 1.x and 3.x is taken, and shows the column it stands for."""
    columns = {
        "Cmd": "cmdline",
        "Comm": "cmdline",
        "Sid": "user",
        "Process": "process_name",
        "Pname": "parent_name",
        "Type": "event",
        "CPU": "cpu",
        "Kparams.File_name": "arg_file_name",
        "Params.File_name": "arg_file_name",
        **{n: n.lower() for n in ("Seq", "Pid", "Ppid", "Exe", "Tid", "Category", "Host")},
    }
    assert lines_of(Batch(1, {}), template=f"{{{{ .{field} }}}}") in ("-\n", "\n")
    if field in columns:
        batch = batch_of({Field(columns[field], STR): "the value"})
        assert lines_of(batch, template=f"<{{{{ .{field} }}}}>") == "<the value>\n"


def test_the_call_stack_is_in_hex() -> None:
    """Addresses of the stack are hexadecimal; as a column of ours they stay numbers."""
    batch = batch_of({Field("stack_addresses", TypeClass.LIST_I64): [0x7FFB5C1D0396, 16]})
    printed = lines_of(batch, template="{{ .Callstack }} {{ .stack_addresses }}")
    assert printed == "[0x7ffb5c1d0396, 0x10] [140717558924182, 16]\n"


def test_our_columns_are_fields() -> None:
    """Any column is a field: without a suffix of any class, with one exactly that."""
    name, flags = Field("arg_name", STR), Field("arg_flags", I64)
    batch = batch_of({name: b"a\xff", flags: 3}, {flags: "O_RDWR"})
    template = "{{ .arg_name }}|{{ .arg_name__raw }}|{{ .arg_flags }}|{{ .arg_flags__str }}"
    assert lines_of(batch, template=template) == "a\\xff|Yf8=|3|-\n-|-|O_RDWR|O_RDWR\n"
    assert lines_of(batch, template="{{ .Kparams }}") == "flags➜ 3, name➜ a\\xff\nflags➜ O_RDWR\n"
    assert lines_of(batch, template="{{ .container_id }}{{ .ext_no.where }}") == "--\n--\n"


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{{ .Timestmp }}", "did you mean .Timestamp?"),
        ("{{ .PID }}", "did you mean .Pid?"),
        ("{{ .kparams }}", "did you mean .Kparams?"),
        ("{{ .proces_name }}", "did you mean .process_name?"),
        ("{{ .zzzzzz }}", ".Timestamp"),
        ("{{ .arg_x__what }}", "unknown field"),
        ("{{ .Seq }} {{ .Pid", "{{ in the template has no }}"),
        ("{{ .Seq }} .Pid }}", "}} in the template has no {{"),
        ("{{ .Seq }} {{ {{ .Pid }}", "is no field"),
        ("{{ }}", "is no field"),
        ("{{ Seq }}", "is no field"),
        ("{{ .Seq | printf }}", "is no field"),
        ("{{ .\x1b[2J }}", "\\x1b"),
        ("plain", "no field"),
        ("", "no field"),
    ],
)
def test_a_bad_template_is_refused(template: str, word: str) -> None:
    """A malformed template or an unknown field is an error before the first event."""
    with pytest.raises(KcapError) as caught:
        ConsoleLines(io.BytesIO(), template=template)
    said = f"{caught.value} {caught.value.hint}"
    assert word in said
    assert not re.search(text.UNSAFE, said)


def test_a_template_may_hold_any_text() -> None:
    """What is not a tag is printed as it is, a byte that is not text included."""
    batch = Batch(1, {"pid": constant(I64, 5, 1)})
    assert lines_of(batch, template="ä\t{ } {{ .Pid }}\udcff") == "ä\t{ } 5\\xed\\xb3\\xbf\n"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Decoder tables of our own."""
    decoders = {
        "sample_flags": {0: "NONE", 1: "R", 2: "W", 4: "X", 6: "WX", 64: "BIG", 1 << 63: "TOP"},
        "sample_enum": {-100: "CWD", 1: "ONE", 2: "TWO"},
        "zeroless_flags": {1: "A"},
    }
    arguments = {
        "mode": ColumnInfo("mode", I64, "", "sample_flags"),
        "fd": ColumnInfo("fd", I64, "", "sample_enum"),
        "address": ColumnInfo("address", I64, "", "hex"),
        "bits": ColumnInfo("bits", I64, "", "zeroless_flags"),
        "odd": ColumnInfo("odd", I64, "", "no such table"),
    }
    monkeypatch.setattr(catalogue, "decoder", lambda name: decoders.get(name, {}))
    monkeypatch.setattr(catalogue, "arguments", lambda: arguments)
    caches = (decode._table, decode.text_of, decode.number_of, catalogue.decoder_of)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    ("name", "value", "printed"),
    [
        ("mode", 0, "NONE"),
        ("mode", 5, "R|X"),
        ("mode", 7, "R|WX"),
        ("mode", 64 + 1 + 0x1000, "R|BIG|0x1000"),
        ("mode", 0x1000, "0x1000"),
        ("mode", -1, "-1"),
        ("mode", (1 << 63) + 1, "R|TOP"),
        ("mode", "already text", "already text"),
        ("mode", [1, 8], "[R, 0x8]"),
        ("fd", -100, "CWD"),
        ("fd", 3, "3"),
        ("bits", 0, "0"),
        ("address", 0xFFFFA88C7EA077D0, "0xffffa88c7ea077d0"),
        ("address", -1, "0xffffffffffffffff"),
        ("odd", 9, "9"),
        ("other", 9, "9"),
    ],
)
@pytest.mark.usefixtures("tables")
def test_numbers_become_text(name: str, value: Any, printed: str) -> None:
    """Flags and enums are given by name, what the table does not know as a number."""
    batch = batch_of({Field(naming.argument(name), I64): value})
    assert lines_of(batch, template="{{ .Params }}") == f"{name}➜ {printed}\n"
    assert lines_of(batch, template=f"{{{{ .arg_{name} }}}}") == f"{printed}\n"


@pytest.mark.parametrize(
    ("table", "number", "printed"),
    [
        ("open_flags", 0x80042, "O_RDWR|O_CREAT|O_CLOEXEC"),
        ("open_flags", 0x101001, "O_WRONLY|O_SYNC"),
        ("open_flags", 0x1001, "O_WRONLY|O_DSYNC"),
        ("open_flags", 0x410002, "O_RDWR|O_TMPFILE"),
        ("mmap_prot", 0, "PROT_NONE"),
        ("mmap_prot", 7, "PROT_READ|PROT_WRITE|PROT_EXEC"),
        ("clone_flags", 0x10100 | 17, "CLONE_VM|CLONE_THREAD|0x11"),
        ("socket_type", 1, "SOCK_STREAM"),
        ("socket_type", 5 | 0x80000, "SOCK_SEQPACKET|SOCK_CLOEXEC"),
        ("socket_type", 7 | 0x800, "SOCK_NONBLOCK|0x7"),
        ("socket_family", 3, "AF_AX25"),
        ("socket_family", 500, "500"),
        ("signal", 9, "SIGKILL"),
    ],
)
def test_the_catalogue_s_tables(
    table: str, number: int, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each table of the catalogue is read as what it is: flags, one of many, or both."""
    arguments = {"x": ColumnInfo("x", I64, "", table)}
    monkeypatch.setattr(catalogue, "arguments", lambda: arguments)
    monkeypatch.setattr(catalogue, "decoder_of", catalogue.decoder_of.__wrapped__)
    batch = batch_of({Field("arg_x", I64): number})
    assert lines_of(batch, template="{{ .arg_x }}") == f"{printed}\n"


@pytest.mark.usefixtures("tables")
def test_each_number_is_decoded_where_it_stands() -> None:
    """Many events with few distinct numbers get each their own text."""
    values = [0, 1, 2, 5, 1, 0, 4]
    batch = Batch(7, {"arg_mode": Column(I64, pa.array(values))})
    printed = lines_of(batch, template="{{ .arg_mode }}").splitlines()
    assert printed == ["NONE", "R", "W", "R|X", "R", "NONE", "X"]


def test_state_rows_on_demand() -> None:
    """Rows of kind state are left out unless asked for."""
    kind, pid = Field("kind", STR), Field("pid", I64)
    batch = batch_of({kind: "event", pid: 1}, {kind: "state", pid: 2}, {pid: 3})
    assert lines_of(batch, template="{{ .Pid }}") == "1\n3\n"
    assert lines_of(batch, template="{{ .Pid }}", state=True) == "1\n2\n3\n"


def test_a_name_that_kcap_does_not_give() -> None:
    """A column name that spells no valid text has a label all the same."""
    columns = {
        name: constant(I64, 1, 1) for name in ("arg_xFF", "arg_b", "arg_B", "arg_xED_xA0_x80")
    }
    assert lines_of(Batch(1, columns), template="{{ .Params }}") == (
        "B➜ 1, \\xed\\xa0\\x80➜ 1, b➜ 1, \ufffd➜ 1\n"
    )


def test_long_values_come_in_blocks() -> None:
    """The memory of a write follows the text that the template asks for."""
    widths: list[int] = []

    class Measure(io.RawIOBase):
        def write(self, data: Any) -> int:
            widths.append(len(data))
            return len(data)

    words = dictionary(pa.array([f"{i:05}" * 2000 for i in range(2000)]))
    batch = Batch(2000, {"cmdline": Column(STR, words), "pid": Column(I64, pa.array(range(2000)))})
    ConsoleLines(Measure(), template="{{ .Cmd }}").write(batch)
    assert sum(widths) == 2000 * 10_001
    assert len(widths) > 1
    assert max(widths) <= blocks.BLOCK_BYTES
    widths.clear()
    ConsoleLines(Measure(), template="{{ .Pid }}").write(batch)
    assert len(widths) == 1


def test_sparse_columns_fall_in_place() -> None:
    """Of 3,000 events each gets its own values, whichever of the columns has them."""
    count = 3000
    rng = np.random.default_rng(5)
    columns = {}
    for number in range(40):
        rows = np.flatnonzero(rng.random(count) < 0.1).astype(np.int32)
        columns[f"arg_n{number:02}"] = Column(I64, pa.array(rows.astype(np.int64)), rows)
    batch = Batch(count, columns)
    printed = lines_of(batch).splitlines(keepends=True)
    assert printed == [by_hand(row) for row in batch.to_pylist()]
