"""Tracee's events that are larger than a capture can hold."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from tracee_support import OPENED, V1BETA1, losses, read, rebuilt, same

from kcap import limits
from kcap.errors import BadInputError, LimitError
from kcap.model.builder import RecordBuilder
from kcap.readers import tracee
from kcap.readers.tracee_records import Records
from kcap.writers.tracee_json import TraceeJson, objects

ITEMS = limits.LIST_VALUE_ITEMS


def line(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


def arguments(*values: object) -> list[dict[str, Any]]:
    return [{"name": f"a{i}", "type": "t", "value": v} for i, v in enumerate(values)]


def wide(count: int) -> list[tuple[str, dict[str, Any]]]:
    """Events of so many fields: arguments, other keys, keys of an object that is taken apart."""
    bare = {"eventName": "openat", "timestamp": 1, "args": []}
    args = arguments(*range(count - len(bare)))
    others = {f"k{i}": i for i in range(count - len(bare))}
    inside = {f"k{i}": i for i in range(count - 4)}
    process = {"name": "x", "id": 1, "workload": {"process": inside}}
    return [
        ("arguments", bare | {"args": args}),
        ("spelt arguments", bare | {"args": [{"value": 1, "name": a["name"]} for a in args]}),
        ("others", bare | others),
        ("inside", process),
    ]


@pytest.mark.parametrize("place", range(4))
def test_an_event_has_at_most_8192_fields(place: int) -> None:
    """Up to the limit an event is read; one more, or very many, make a bad line with its place."""
    name, most = wide(limits.EVENT_FIELDS)[place]
    (batch,) = read(line(most))
    assert batch.rows == 1, name

    before = line(OPENED) + b"\n"
    for count in (limits.EVENT_FIELDS + 1, 65_537):
        data = before + line(wide(count)[place][1]) + line(V1BETA1)
        with pytest.raises(BadInputError, match="more than 8192 fields") as caught:
            read(data)
        error = caught.value
        assert (error.file, error.line, error.offset) == ("in", 3, len(before))

        batches = read(data, lenient=True)
        (loss,) = losses(batches)
        assert sum(b.rows for b in batches) == 2
        assert (loss.kind, loss.count) == ("skipped", 1)
        assert f"at line 3, byte {len(before)}" in loss.reason


def test_an_event_of_short_names_is_given_back_at_the_limit() -> None:
    """8,192 fields whose shape fits its column come back as they were."""
    event = wide(limits.EVENT_FIELDS)[0][1]
    for at, entry in enumerate(event["args"]):
        entry |= {"name": f"{at:x}", "type": ""}

    assert same(rebuilt(line(event))[0], event)


def test_a_refused_event_leaves_nothing_behind() -> None:
    """What is refused for its many fields is not kept as a layout, nor as a plan for one."""
    records = Records(RecordBuilder())
    for i in range(3):
        event = OPENED | {f"k{i}.{j}": 1 for j in range(limits.EVENT_FIELDS)}
        with pytest.raises(Exception, match="fields"):
            records.add(event)

    assert len(records) == 0
    assert all(not root.plans for root in records._roots)


LARGE: dict[str, tuple[object, int]] = {
    "integers": ([1] * ITEMS, 8 * ITEMS),
    "unsigned": ([1 << 63, *[1] * (ITEMS - 1)], 8 * ITEMS),
    "floats": ([0.5] * ITEMS, 8 * ITEMS),
    "wild text": ("\udc80" * 5000, 15 * 5000),
}
"""A value, and what it takes in a row at least."""


@pytest.mark.parametrize("kind", sorted(LARGE))
def test_a_row_that_is_too_large_is_a_bad_line(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written is a bad line; just below that an event is written, or told."""
    value, size = LARGE[kind]
    count = limits.ROW_BYTES // size
    below = line(OPENED | {"args": arguments(*[value] * int(count * 0.98))})
    above = line(OPENED | {"args": arguments(*[value] * int(count * 1.02))})
    assert len(above) <= limits.LINE_BYTES

    (batch,) = read(below)
    captured, told = support.read(support.capture([batch]))[0], losses([batch])
    written = sum(b.rows for b in captured)
    assert batch.rows == 1
    assert written == 1 or [loss.kind for loss in losses(captured)] == ["skipped"]
    assert written == 1 or kind in {"floats", "unsigned"}  # their frames count, too
    assert told == []

    with pytest.raises(BadInputError, match=f"values of more than {limits.ROW_BYTES} bytes"):
        read(above)
    (rest,) = read(above + line(OPENED), lenient=True)
    assert (rest.rows, losses([rest])[0].count) == (1, 1)

    # Negative control: it really could not have been written.
    monkeypatch.setattr(tracee, "_LARGE_BYTES", limits.LINE_BYTES)
    captured, _ = support.read(support.capture(read(above)))
    assert sum(b.rows for b in captured) == 0


def long_shape() -> dict[str, Any]:
    """An event within the limits, but for its shape: the names of its fields are long."""
    return OPENED | {"args": [{"name": f"{i:040}", "type": "t", "value": i} for i in range(2000)]}


def test_an_event_whose_shape_was_cut_is_not_given_back() -> None:
    """It is told when it is read; writing gives all events before it, then says which one it is."""
    events = [OPENED, OPENED | {"hostProcessId": 5}, long_shape(), OPENED]
    (batch,) = read(b"".join(map(line, events)))
    assert batch.rows == 4
    assert [(loss.kind, loss.count) for loss in losses([batch])] == [("cut", 1)]

    given: list[dict[str, Any]] = []
    with pytest.raises(LimitError, match=r"event 2 \(column ord\) .* shape was cut") as caught:
        given.extend(objects(batch))
    assert all(map(same, given, events[:2]))
    assert len(given) == 2
    assert "--format jsonl" in (caught.value.hint or "")

    out = io.BytesIO()
    with pytest.raises(LimitError):
        TraceeJson(out).write(batch)
    assert [json.loads(text) for text in out.getvalue().splitlines()] == events[:2]

    # Negative control: the others are given back, whatever stands beside them.
    assert len(list(objects(batch.take(np.array([0, 1, 3], np.int32))))) == 3


def test_a_cut_shape_survives_a_capture(kcap: Callable[..., Any], tmp_path: Path) -> None:
    """Imported, such an event is shown whole as jsonl, and refused in one line as tracee-json."""
    (tmp_path / "in.jsonl").write_bytes(line(OPENED) + line(long_shape()))
    assert kcap("import", "in.jsonl", "-o", "out.kcap").returncode == 3
    for file in ("in.jsonl", "out.kcap"):
        done = kcap("cat", file, "--format", "tracee-json")
        assert done.returncode == 1
        assert [json.loads(text) for text in done.stdout.splitlines()] == [OPENED]
        assert b"event 1 (column ord) cannot be given back" in done.stderr
        rows = [json.loads(t) for t in kcap("cat", file, "--format", "jsonl").stdout.splitlines()]
        assert sum(name.startswith("arg_0") for name in rows[1]) == 2000
