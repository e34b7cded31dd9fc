"""Batches as messages: the same bodies and ids however events were cut into batches."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sink_support import ORIGIN, T0, alerts, events, ids
from support import make_events

from kcap.errors import DamagedError, KcapError
from kcap.model.batch import EMPTY, Batch, Column, coded, concat, constant
from kcap.model.classes import TypeClass
from kcap.model.side import SourceInfo
from kcap.writers.jsonl import JsonLines
from kcap.writers.sinks import messages
from kcap.writers.sinks.messages import NO_TIME, Texts
from kcap.writers.sinks.render import Renderer
from kcap.writers.sinks.transport import Message

MESSAGES = st.lists(
    st.tuples(st.text(max_size=5), st.binary(max_size=9), st.integers(-(1 << 63), (1 << 63) - 1)),
    max_size=6,
)


def texts(values: list[bytes]) -> Texts:
    lengths = np.array([len(v) for v in values], "<u4").tobytes()
    return Texts(lengths, b"".join(v + b"\n" for v in values))


def encoded(rows: list[tuple[str, bytes, int]], values: dict[str, list[str]]) -> bytes:
    return messages.encode(
        len(rows),
        np.array([ts for _, _, ts in rows], "<i8").tobytes(),
        texts([i.encode() for i, _, _ in rows]),
        texts([b for _, b, _ in rows]),
        {name: texts([v.encode() for v in column]) for name, column in values.items()},
    )


def rendered(*batches: Batch, **options: Any) -> list[Message]:
    """What a courier would get."""
    renderer = Renderer(options.pop("form", "jsonl"), **options)
    blocks = [made for batch in batches for made in renderer.render(batch)]
    found = [message for made in blocks for message in messages.decode(made.block, {})]
    assert [made.count for made in blocks] == [messages.count_of(made.block) for made in blocks]
    bodies = b"".join(made.bodies for made in blocks)
    assert bodies == b"".join(message.body + b"\n" for message in found)
    return found


def printed(*batches: Batch) -> bytes:
    stream = io.BytesIO()
    sink = JsonLines(stream)
    for batch in batches:
        sink.write(batch)
    return stream.getvalue()


@given(MESSAGES, st.booleans())
def test_a_block_comes_back(rows: list[tuple[str, bytes, int]], varying: bool) -> None:
    """What was put into a block is what is taken out, constant options under the others."""
    keys = {"key": [f"k{n}" for n in range(len(rows))]} if varying else {}

    found = messages.decode(encoded(rows, keys), {"key": "always", "other": "x"})

    assert [(m.id, m.body) for m in found] == [(i, b) for i, b, _ in rows]
    assert [m.ts_ns for m in found] == [None if ts == NO_TIME else ts for _, _, ts in rows]
    for at, message in enumerate(found):
        assert message.values == {"key": f"k{at}" if varying else "always", "other": "x"}


def test_a_block_that_is_none_is_an_error() -> None:
    """Cut anywhere, or longer than it says, a block is refused with an error of ours."""
    whole = encoded([("a", b"body", 1), ("b", b"", 2)], {"key": ["x", "y"]})

    for length in range(len(whole)):
        with pytest.raises(DamagedError):
            messages.decode(whole[:length], {})
    with pytest.raises(DamagedError):
        messages.decode(whole + b"\n", {})
    assert len(messages.decode(whole, {})) == 2


def test_a_frame_that_is_none_is_an_error() -> None:
    """A pipe that ends within a frame gives none; a length beyond the limit is refused."""
    whole = messages.frame(messages.BLOCK, b"payload")

    for length in range(len(whole)):
        assert messages.read_frame(io.BytesIO(whole[:length])) is None
    assert messages.read_frame(io.BytesIO(whole)) == (messages.BLOCK, b"payload")
    with pytest.raises(DamagedError):
        messages.read_frame(io.BytesIO(b"B\xff\xff\xff\xff"))


@settings(max_examples=40)
@given(st.lists(st.integers(0, 60), max_size=4), st.sampled_from(["jsonl", "line", "tracee-json"]))
def test_batches_do_not_matter(cuts: list[int], form: str) -> None:
    """However events are cut into batches, the messages are the same."""
    whole = make_events(60)
    places = [0, *sorted(cuts), 60]
    parts = [whole.slice(a, b) for a, b in itertools.pairwise(places)]

    assert rendered(*parts, form=form) == rendered(whole, form=form)


def test_bodies_are_json_lines() -> None:
    """A body is the line that --format jsonl prints of the event."""
    batch = make_events(300)

    found = rendered(batch)

    assert b"".join(m.body + b"\n" for m in found) == printed(batch)
    assert [json.loads(m.body)["ts"] for m in found] == [m.ts_ns for m in found]


def test_long_batches_make_several_blocks() -> None:
    """A block is about as long as it should be, whatever the batch and the event."""
    renderer = Renderer("jsonl")
    blocks = list(renderer.render(events(5000, text="x" * 500)))
    one = list(renderer.render(events(2, text="x" * 600_000)))

    assert len(blocks) > 5
    assert all(len(made.bodies) <= messages.BLOCK_BYTES for made in blocks)
    assert [made.count for made in one] == [1, 1]


def test_ids_are_the_identity() -> None:
    """An event's id is its origin and number, in every run."""
    assert [m.id for m in rendered(events(7, 5))] == ids(7, 5)


def test_derived_events_have_ids_of_their_own() -> None:
    """A view of an event has its identity, so its name is added."""
    batch = events(4)
    views = coded(["execve", None], np.array([1, 0, 1, 1]))
    assert views is not None

    found = rendered(batch.adding({"derived_from": views}))

    assert [m.id for m in found] == [
        f"{ORIGIN}:0",
        f"{ORIGIN}:1:execve",
        f"{ORIGIN}:2",
        f"{ORIGIN}:3",
    ]


def test_alerts_have_their_ids() -> None:
    """An alert has its own id among events, and what has none gets its number in the run."""
    some = alerts(2)
    mixed = concat([events(2), some, events(1, 2)])
    nameless = events(3).select(["ts", "event"])

    found = rendered(mixed)

    expected = some.columns["arg_alert_id"].values.to_pylist()
    assert [m.id for m in found] == [*ids(2), *expected, *ids(1, 2)]
    assert len(set(expected)) == 2
    assert [m.id for m in rendered(nameless, nameless)] == [f"-:n{n}" for n in range(6)]


def test_an_id_cannot_steer_anything() -> None:
    """An origin of a forged capture has no control characters in an id."""
    batch = events(1).adding({"origin": constant(TypeClass.STR, "a\r\nX: y\x1b", 1)})

    assert [m.id for m in rendered(batch)] == ["a\\x0d\\x0aX: y\\x1b:0"]


@pytest.mark.parametrize(("what", "count"), [("all", 5), ("events", 3), ("alerts", 2)])
def test_a_sink_gets_what_it_asked_for(what: str, count: int) -> None:
    """Events, alerts, or both, in their order."""
    mixed = concat([events(2), alerts(2), events(1, 2)])

    kinds = [json.loads(m.body)["kind"] for m in rendered(mixed, what=what)]

    wanted = {"alerts": {"alert"}, "events": {"event"}, "all": {"alert", "event"}}[what]
    assert [k in wanted for k in kinds] == [True] * count
    assert rendered(events(3), what="alerts") == []


def test_state_is_no_event() -> None:
    """What only describes what was there is not sent."""
    batch = events(4)
    kinds = coded(["event", "state"], np.array([0, 1, 1, 0]))
    assert kinds is not None

    found = rendered(batch.adding({"kind": kinds}))

    assert [m.id for m in found] == [f"{ORIGIN}:0", f"{ORIGIN}:3"]


def test_a_message_without_a_time_has_none() -> None:
    """An event whose time is not known has no time."""
    times = Column(TypeClass.I64, pa.array([T0]), np.array([1], np.int32))

    assert [m.ts_ns for m in rendered(events(2).adding({"ts": times}))] == [None, T0]


def test_templates_make_bodies_and_options() -> None:
    """A body by a template, and an option that differs from event to event."""
    found = rendered(
        events(3),
        form="template",
        template='{"what": "{{ event }}"}',
        values={"routing_key": "kcap.{{ event }}.{{ user }}"},
    )

    assert [m.body for m in found] == [
        b'{"what": "openat"}',
        b'{"what": "execve"}',
        b'{"what": "connect"}',
    ]
    assert [m.values["routing_key"] for m in found] == [
        f"kcap.{name}.-" for name in ("openat", "execve", "connect")
    ]


def test_a_source_that_came_before_is_known() -> None:
    """What a source is called may come in a batch without events, and with ones not sent."""
    info = SourceInfo("tracee")
    flags = Column(TypeClass.I64, pa.array([0o102, 0o102]))
    batch = events(2).adding({"arg_flags": flags, "source": constant(TypeClass.STR, info.id, 2)})
    expected = rendered(batch.with_before([info]), form="line")

    assert rendered(EMPTY.with_before([info]), batch, form="line") == expected
    assert rendered(batch, form="line") != expected


def test_a_format_needs_a_line_for_each_event() -> None:
    """A format that has none is refused; a template must be given."""
    with pytest.raises(KcapError, match="line for each event"):
        rendered(events(2), form="null")
    with pytest.raises(KcapError, match="without a template"):
        Renderer("template")


def test_bodies_tell_of_every_byte() -> None:
    """Negative control: the digest that a sink gives changes when one event does."""
    digests = {
        hashlib.sha256(b"".join(m.body for m in rendered(batch))).hexdigest()
        for batch in (events(50), events(50, 1), events(49))
    }

    assert len(digests) == 3
