"""JSON lines: every value comes back exactly, and the bytes do not depend on how events are cut."""

from __future__ import annotations

import base64
import errno
import io
import json
import math
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hostile import VALUE
from hypothesis import given
from hypothesis import strategies as st

from kcap import limits
from kcap.errors import OutputError
from kcap.model import catalogue, naming, text
from kcap.model.batch import EMPTY, Batch, Column, concat, constant, dictionary
from kcap.model.builder import Field, RecordBuilder
from kcap.model.classes import TypeClass
from kcap.writers import blocks, fragments
from kcap.writers.jsonl import JsonLines

FIELDS = [
    Field("ts", TypeClass.I64),
    Field("pid", TypeClass.I64),
    Field("process_name", TypeClass.STR),
    Field("stack_addresses", TypeClass.LIST_I64),
    Field(naming.argument("flags")),
    Field(naming.argument("flags"), None, 2),
    Field(naming.argument("a,b \u202e")),
    Field(naming.extension("kubernetes.podName"), TypeClass.STR),
]
RECORD = st.dictionaries(st.sampled_from(FIELDS), VALUE, max_size=len(FIELDS))


def batch_of(records: list[dict[Field, Any]]) -> Batch:
    builder = RecordBuilder()
    for record in records:
        builder.add(builder.layout(list(record), "shape"), list(record.values()))
    return builder.finish()


BATCHES = st.lists(RECORD, max_size=6).map(batch_of)


def lines_of(*batches: Batch, state: bool = False) -> bytes:
    stream = io.BytesIO()
    sink = JsonLines(stream, state=state)
    for batch in batches:
        sink.write(batch)
    sink.close()
    return stream.getvalue()


def no_constant(name: str) -> float:
    raise ValueError(name)


def expected(name: str, column: Column, value: Any) -> Any:
    """What JSON can say of a value."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, list):
        return [expected(name, column, item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if column.cls is TypeClass.JSON:
        try:
            return json.loads(value, parse_constant=no_constant)
        except ValueError:
            return value
    return value


@given(BATCHES)
def test_every_value_comes_back(batch: Batch) -> None:
    """Each line parses to the values of its event, with their types, and to nothing else."""
    lines = lines_of(batch).decode().split("\n")
    assert lines.pop() == ""
    wanted = [
        {name: expected(name, batch.columns[name], value) for name, value in row.items()}
        for row in batch.to_pylist()
    ]
    # repr tells 1 from 1.0 and True, and -0.0 from 0.0.
    parsed = [json.loads(line, parse_constant=no_constant) for line in lines]
    assert [repr(sorted(p.items())) for p in parsed] == [repr(sorted(w.items())) for w in wanted]


@given(BATCHES)
def test_a_line_is_safe_and_in_order(batch: Batch) -> None:
    """No line holds a raw control character; the envelope comes first, then names in order."""
    order = list(catalogue.envelope())
    for line in lines_of(batch).decode().splitlines():
        assert not re.search(text.UNSAFE, line)
        names = list(json.loads(line))
        known = [name for name in names if name in order]
        assert known == sorted(known, key=order.index)
        assert names == known + sorted(names[len(known) :])


@given(st.lists(BATCHES, min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 300))
def test_cutting_changes_nothing(batches: list[Batch], step: int, block: int) -> None:
    """The same events give the same bytes in one batch, in pieces, and in small blocks."""
    whole = concat(batches)
    once = lines_of(whole)
    assert lines_of(*batches) == once
    assert lines_of(*(whole.slice(i, i + step) for i in range(0, len(whole), step))) == once
    rows = np.arange(len(whole), dtype=np.int32)
    assert lines_of(*(whole.take(rows[i : i + step]) for i in range(0, len(whole), step))) == once
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block)
        assert lines_of(whole) == once


def test_no_events_no_lines() -> None:
    """A batch without rows writes nothing; an event without values is an empty object."""
    assert lines_of(EMPTY) == b""
    assert lines_of(EMPTY, Batch(2, {})) == b"{}\n{}\n"


def test_a_line_as_people_see_it() -> None:
    """The form, spelled out once."""
    batch = batch_of(
        [
            {
                Field("arg_flags"): 1 << 63,
                Field("arg_data"): b"\x00\xff",
                Field("arg_argv"): ["ls", 'a"b'],
                Field("arg_ratio"): 1.0,
                Field("pid", TypeClass.I64): 7,
                Field("process_name", TypeClass.STR): "käse\x1b",
                Field("arg_map"): {"b": [1, None], "a": "\u202e"},
            }
        ]
    )
    assert lines_of(batch).decode() == (
        '{"pid":7,"process_name":"käse\\u001b","shape":"shape","arg_argv__list":["ls","a\\"b"],'
        '"arg_data__bin":"AP8=","arg_flags__u64":9223372036854775808,'
        '"arg_map__json":{"b":[1,null],"a":"\\u202e"},"arg_ratio__f64":1.0}\n'
    )


@pytest.mark.parametrize(
    ("stored", "printed"),
    [
        ('{"a":1e5,"b":1.50}', '{"a":1e5,"b":1.50}'),
        ('{"a"\n:\t1}', '{"a" : 1}'),
        ('["\x85\u202e"]', '["\\u0085\\u202e"]'),
        ('"\\ud800"', '"\\ud800"'),
        (str(1 << 80), str(1 << 80)),
        ('{"a":"cut her', '"{\\"a\\":\\"cut her"'),
        ('{"a":NaN}', '"{\\"a\\":NaN}"'),
        ('["\n"]', '"[\\"\\u000a\\"]"'.replace("\\u000a", "\\n")),
        ("", '""'),
        ("[" * 20_000, f'"{"[" * 20_000}"'),
        ("[" * 900 + "]" * 900, f'"{"[" * 900}{"]" * 900}"'),
        ("[" * 32 + "]" * 32, "[" * 32 + "]" * 32),
        ("9" * 5000, f'"{"9" * 5000}"'),
    ],
)
def test_json_is_embedded_where_it_is_json(stored: str, printed: str) -> None:
    """JSON keeps its own spelling; what no reader is sure to take is a string."""
    batch = Batch(1, {"arg_x__json": constant(TypeClass.JSON, stored, 1)})
    assert lines_of(batch).decode() == f'{{"arg_x__json":{printed}}}\n'


def test_a_cut_value_has_its_length_beside_it() -> None:
    """A json value over the limit is a string, and NAME__size is its true length."""
    size = limits.VALUE_BYTES + 10
    batch = batch_of([{Field("arg_x"): {"a": "b" * (size - 8)}}])
    event = json.loads(lines_of(batch))
    assert isinstance(event["arg_x__json"], str)
    assert event["arg_x__json__size"] == size


def test_floats_are_short_and_floats() -> None:
    """Floats read back the same, as short as Python writes them, never as integers."""
    values = [1.0, -0.0, 0.1, 1e16, 1e22, 5e-324, 1.7976931348623157e308, 123456789.0, 1e-5]
    column = Column(TypeClass.F64, pa.array(values))
    lines = lines_of(Batch(len(values), {"arg_x__f64": column})).decode().splitlines()
    texts = [line.removeprefix('{"arg_x__f64":').removesuffix("}") for line in lines]
    assert [repr(json.loads(t)) for t in texts] == [repr(v) for v in values]
    digits = [sum(c.isdigit() for c in t.split("e")[0].strip("-0.")) for t in texts]
    assert all(d <= 17 for d in digits)


def test_floats_that_json_lacks_are_strings() -> None:
    """NaN and the infinities are strings, alone and in lists."""
    endless = [math.nan, math.inf, -math.inf]
    batch = batch_of([*({Field("arg_x"): value} for value in endless), {Field("arg_x"): endless}])
    assert [list(json.loads(line).values())[1] for line in lines_of(batch).splitlines()] == [
        "NaN",
        "Infinity",
        "-Infinity",
        ["NaN", "Infinity", "-Infinity"],
    ]


def test_state_rows_on_demand() -> None:
    """Rows of kind state are left out unless asked for; other kinds and none at all stay."""
    kind = Field("kind", TypeClass.STR)
    pid = Field("pid", TypeClass.I64)
    rows: list[dict[Field, Any]] = [{kind: "event", pid: 1}, {kind: "state", pid: 2}, {pid: 3}]
    batch = batch_of(rows)
    assert [json.loads(x)["pid"] for x in lines_of(batch).splitlines()] == [1, 3]
    assert [json.loads(x)["pid"] for x in lines_of(batch, state=True).splitlines()] == [1, 2, 3]
    assert lines_of(batch.slice(1, 2)) == b""


def test_the_unsafe_pattern_means_the_same_in_both_engines() -> None:
    """Arrow's RE2 finds exactly the code points that `printable` escapes."""
    points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    found = pc.match_substring_regex(pa.array(points), text.UNSAFE)
    unsafe = [p for p in points if text.printable(p) != p]
    assert pa.array(points).filter(found).to_pylist() == unsafe
    assert {"\x1b", "\n", "\x9b", "\u202e"} <= set(unsafe)


class Dribble(io.RawIOBase):
    """A stream that takes a few bytes at a time."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += bytes(data[:7])
        return min(len(data), 7)


class Failing(io.RawIOBase):
    """A stream that fails, or would block where there is no error."""

    def __init__(self, error: OSError | None) -> None:
        self.error = error

    def write(self, data: Any) -> None:
        if self.error:
            raise self.error

    def flush(self) -> None:
        if self.error:
            raise self.error


def test_partial_writes_are_continued() -> None:
    """An unbuffered stream gets every byte."""
    batch = Batch(9, {"pid": constant(TypeClass.I64, 7, 9)})
    stream = Dribble()
    JsonLines(stream).write(batch)
    assert stream.data == b'{"pid":7}\n' * 9


def test_each_batch_is_handed_on() -> None:
    """What a batch says has left the buffer when `write` returns, and again after `close`."""
    raw = io.BytesIO()
    stream = io.BufferedWriter(raw, 1 << 20)
    sink = JsonLines(stream)
    sink.write(Batch(1, {}))
    assert raw.getvalue() == b"{}\n"
    sink.close()
    sink.close()
    assert not stream.closed


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), None])
def test_a_full_disk_is_an_output_error(error: OSError | None) -> None:
    """What the stream refuses is a KcapError; a reader that went away is left to the caller."""
    batch = Batch(1, {})
    with pytest.raises(OutputError):
        JsonLines(Failing(error)).write(batch)
    with pytest.raises(BrokenPipeError):
        JsonLines(Failing(BrokenPipeError())).write(batch)
    sink = JsonLines(Failing(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OutputError):
        sink.close()
    sink.close()


MEMORY = """
import io, re, sys
import numpy as np, pyarrow as pa
from kcap.model.batch import Batch, Column, dictionary
from kcap.model.classes import TypeClass
from kcap.writers import blocks
from kcap.writers.jsonl import JsonLines

class Nowhere(io.RawIOBase):
    def write(self, data):
        return len(data)

def peak_kib():  # not ru_maxrss, which a child inherits from whoever started it
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1])

rows, block = int(sys.argv[1]), int(sys.argv[2])
blocks.BLOCK_BYTES = block or blocks.BLOCK_BYTES
numbers = Column(TypeClass.I64, pa.array(np.arange(rows) + (1 << 40)))
words = Column(TypeClass.STR, dictionary(pa.array([f"word {i % 20000}" for i in range(rows)])))
few = Column(TypeClass.I64, pa.array(range(100)), np.arange(100, dtype=np.int32))
columns = {f"arg_{i}": (numbers, words, few)[i % 3] for i in range(1000)}
batch = Batch(rows, columns)
JsonLines(Nowhere()).write(batch.slice(0, 10))
before = peak_kib()
JsonLines(Nowhere()).write(batch)
print((peak_kib() - before) >> 10)
"""


def grown_mib(rows: int, block: int) -> int:
    words = [sys.executable, "-c", MEMORY, str(rows), str(block)]
    return int(subprocess.run(words, capture_output=True, check=True, timeout=120).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory as Linux counts it")
@pytest.mark.long  # 40 s
def test_memory_follows_the_block_not_the_batch() -> None:
    """1,000 columns of 65,536 rows need under 150 MiB; without blocks an eighth needs more."""
    assert grown_mib(65_536, 0) < 150
    assert grown_mib(8_192, 1 << 40) > 150


LONG = "x" * 50_000


@pytest.mark.parametrize(
    ("column", "several"),
    [
        (constant(TypeClass.STR, LONG, 512), True),
        (Column(TypeClass.LIST, pa.array([[LONG], []] * 256)), True),
        (Column(TypeClass.LIST_I64, pa.array([[1 << 60] * 2000] * 512)), True),
        (constant(TypeClass.STR, "short", 512), False),
    ],
)
def test_long_values_come_in_blocks(column: Column, several: bool) -> None:
    """What one write holds follows the text, also where one entry serves every row."""
    widths: list[int] = []

    class Measure(io.RawIOBase):
        def write(self, data: Any) -> int:
            widths.append(len(data))
            return len(data)

    batch = Batch(512, {"arg_x": column})
    JsonLines(Measure()).write(batch)
    assert sum(widths) == len(lines_of(batch))
    assert max(widths) <= blocks.BLOCK_BYTES
    assert (len(widths) > 1) is several


def test_unused_long_entries_are_not_rendered() -> None:
    """A dictionary with a long entry that no row uses is made smaller first."""
    values = pa.DictionaryArray.from_arrays(pa.array([1, 1], pa.int32()), pa.array([LONG, "a"]))
    entries, codes = fragments.distinct(Column(TypeClass.STR, values))
    assert (entries.to_pylist(), codes.tolist()) == (["a"], [0, 0])


def test_a_dictionary_far_larger_than_the_rows() -> None:
    """A slice of a batch renders its own entries only, and the right ones."""
    words = [f"word {i}" for i in range(50_000)]
    batch = Batch(len(words), {"arg_x__str": Column(TypeClass.STR, dictionary(pa.array(words)))})
    column = batch.slice(49_990, 49_993).columns["arg_x__str"]
    entries, codes = fragments.distinct(column)
    assert len(entries) == len(codes) == 3
    lines = lines_of(batch.slice(49_990, 49_993)).splitlines()
    assert [json.loads(line)["arg_x__str"] for line in lines] == words[49_990:49_993]
