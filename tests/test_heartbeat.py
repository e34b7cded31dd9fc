"""Heartbeats: where they stop nobody looked, and the capture says so for good."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import forge
import pytest
from cli_support import run
from forge import Part
from hypothesis import given
from hypothesis import strategies as st
from live_support import children
from support import SOURCE, capture, make_events, opened, read
from test_record import recording, until

from kcap.errors import DamagedError
from kcap.format import body, heartbeat
from kcap.format.record import Kind
from kcap.format.verify import verify
from kcap.format.writer import CaptureWriter
from kcap.model import arrow_sides
from kcap.model.batch import EMPTY, Batch
from kcap.model.side import Heartbeat, Loss
from kcap.model.stream import StreamInfo
from kcap.replay.pipeline import Pipeline, Summary
from kcap.replay.pulse import GAP_NS, Pulse

SECOND = 10**9
START = 1_700_000_000 * SECOND


def beat(at_s: float, *, set_ahead_s: float = 0, source: str | None = SOURCE.id) -> Heartbeat:
    """A heartbeat so long after the start, by a wall clock that someone has set."""
    at_ns = int(at_s * SECOND)
    ahead_ns = int(set_ahead_s * SECOND)
    return Heartbeat(START + at_ns + ahead_ns, 50 * SECOND + at_ns, 3, source, {"lost": 0})


class Live:
    """A live source of these batches."""

    info = StreamInfo("live", "live", live=True)

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._given = batches

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        yield from self._given

    def close(self) -> None:
        """See `Source.close`."""


def recorded(*beats_s: float, closed: bool = True) -> tuple[bytes, Summary]:
    """A recording with heartbeats at these times, and events."""
    out = io.BytesIO()
    writer = CaptureWriter(out, file_id=forge.FILE_ID)
    sink = writer if closed else _NeverClosed(writer)
    first = make_events(20).with_before([SOURCE, beat(beats_s[0])])
    later = [EMPTY.with_before([beat(at)]) for at in beats_s[1:]]
    return _bytes(out, Pipeline(Live([first, *later]), [sink]).run())


class _NeverClosed:
    """A writer whose process is killed."""

    def __init__(self, writer: CaptureWriter) -> None:
        self._writer = writer

    def write(self, batch: Batch) -> None:
        """See `Sink.write`."""
        self._writer.write(batch)

    def close(self) -> None:
        """See `Sink.close`."""


def _bytes(out: io.BytesIO, summary: Summary) -> tuple[bytes, Summary]:
    return out.getvalue(), summary


def blind(losses: Sequence[Loss]) -> list[tuple[int | None, int | None]]:
    """The intervals in which nobody looked."""
    return [(loss.start_ns, loss.end_ns) for loss in losses if loss.kind == "blind"]


# What a gap is


@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.floats(-1e4, 1e4), st.sampled_from(["a", "b", None])),
        max_size=20,
    )
)
def test_a_gap_is_blind_whatever_the_wall_clock_says(
    steps: list[tuple[int, float, str | None]],
) -> None:
    """Each pair of one source's heartbeats more than 3 s apart is a loss, and nothing else is."""
    pulse, at, last, expected, found = Pulse(), 0.0, {}, [], []
    for step, ahead, source in steps:
        at += step
        one = beat(at, set_ahead_s=ahead, source=source)
        before = last.get(source)
        if before is not None and one.boot_ns - before.boot_ns > 3 * SECOND:
            expected.append((before.ts_ns, one.ts_ns))
        last[source] = one
        sides = pulse.take(EMPTY.with_before([one])).before
        assert sides[-1] == one
        found += blind([s for s in sides if isinstance(s, Loss)])

    assert found == expected


def test_the_end_may_be_blind_too() -> None:
    """Events that came long after the last heartbeat: the time between was not watched over."""
    pulse = Pulse()
    pulse.take(EMPTY.with_before([beat(0)]))

    assert blind(pulse.end(START + GAP_NS + 1)) == [(START, START + GAP_NS + 1)]
    assert pulse.end(START + GAP_NS) == [], "negative control: three seconds are no gap"
    assert pulse.end(None) == []
    assert Pulse().end(START) == [], "a source without heartbeats makes no gaps"


def test_a_recording_ends_with_its_last_event() -> None:
    """The pipeline knows when that was, and the capture says what was blind."""
    late = make_events(5)
    first = EMPTY.with_before([SOURCE, replace(beat(0), ts_ns=START - 9 * SECOND)])
    out = io.BytesIO()
    summary = Pipeline(Live([first, late]), [CaptureWriter(out)]).run()

    assert summary.exit_code == 3
    recorded_losses = [s for b in opened(out.getvalue()).batches() for s in b.before]
    assert len(blind([s for s in recorded_losses if isinstance(s, Loss)])) == 1


# In a capture


def test_intervals_are_kept_apart() -> None:
    """Three gaps stay three intervals in the footer, which adds equal losses up."""
    data, summary = recorded(0, 1, 5.5, 6, 7, 12.25, 20)
    footer = opened(data).footer
    assert footer is not None

    expected = [(1.0, 5.5), (7.0, 12.25), (12.25, 20.0)]
    found = blind([Loss.from_json(e) for e in footer.totals["loss"]])
    assert found == [(START + int(a * SECOND), START + int(b * SECOND)) for a, b in expected]
    assert blind(summary.losses) == found
    assert footer.totals["records"]["HEARTBEAT"] == 7
    assert verify(opened(data)).good


def test_steady_heartbeats_are_no_loss() -> None:
    """Negative control: a heartbeat a second, and one that is 2 s late, say nothing."""
    data, summary = recorded(0, 1, 2, 5, 6)

    assert summary.losses == []
    assert read(data)[1] == []


@given(
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.integers(0, (1 << 64) - 1),
    st.none() | st.text(max_size=5),
    st.dictionaries(st.text(max_size=3), st.integers(0, 1 << 70) | st.text(max_size=3), max_size=3),
)
def test_what_is_written_is_read(
    ts_ns: int, boot_ns: int, events: int, source: str | None, details: dict[str, object]
) -> None:
    """A heartbeat comes back from its record, also where a later version has added to it."""
    one = Heartbeat(ts_ns, boot_ns, events, source, details)

    assert heartbeat.unpack(heartbeat.pack(one)) == one
    assert heartbeat.unpack(heartbeat.pack(one) + b"more") == one


def test_a_heartbeat_may_have_no_body() -> None:
    """spec/kcap.md, 4.6: time and events alone are a heartbeat."""
    assert heartbeat.unpack(struct.pack("<qQ", 5, 8)) == Heartbeat(5, 0, 8)


BAD = {
    "short": b"\0" * 15,
    "no-length": struct.pack("<qQI", 5, 8, 0),
    "body-beyond-end": struct.pack("<qQQ", 5, 8, 99),
    "body-is-a-list": struct.pack("<qQQ", 5, 8, len(body.pack([]))) + body.pack([]),
    "no-boot-time": struct.pack("<qQQ", 5, 8, len(body.pack({}))) + body.pack({}),
}


@pytest.mark.parametrize("payload", BAD.values(), ids=BAD)
def test_nonsense_is_damage_and_costs_no_event(payload: bytes, tmp_path: Path) -> None:
    """Verify names such a record, recover leaves it out, and reading gives every event."""
    data = forge.inserted(capture(), Part(Kind.HEARTBEAT, payload))
    (tmp_path / "bad.kcap").write_bytes(data)

    with pytest.raises(DamagedError):
        heartbeat.unpack(payload)
    assert verify(opened(data)).findings[0].kind == "HEARTBEAT"
    assert sum(b.rows for b in read(data)[0]) == 60
    done = run("recover", tmp_path / "bad.kcap", "-o", tmp_path / "good.kcap")
    assert done.exit_code == 3
    repaired = opened((tmp_path / "good.kcap").read_bytes())
    assert sum(b.rows for b in repaired.batches()) == 60
    assert Kind.HEARTBEAT not in {
        p.kind for p in forge.parts_of((tmp_path / "good.kcap").read_bytes())
    }


def test_a_killed_recording_keeps_its_heartbeats(tmp_path: Path) -> None:
    """They are written as they come, and a repair keeps each of them bit for bit."""
    data, _ = recorded(0, 1, 2, 9, closed=False)
    beats = [p.payload for p in forge.parts_of(data) if p.kind == Kind.HEARTBEAT]
    assert [heartbeat.unpack(b) for b in beats] == [beat(at) for at in (0, 1, 2, 9)]

    (tmp_path / "killed.kcap").write_bytes(data + b"\x89KCP")
    assert run("recover", tmp_path / "killed.kcap", "-o", tmp_path / "r.kcap").exit_code == 3
    parts = forge.parts_of((tmp_path / "r.kcap").read_bytes())
    assert [p.payload for p in parts if p.kind == Kind.HEARTBEAT] == beats


def test_an_undamaged_recording_is_its_own_repair(tmp_path: Path) -> None:
    """spec/kcap.md, 2.8: with heartbeats, too, repairing changes nothing."""
    data, _ = recorded(0, 1, 2)
    (tmp_path / "a.kcap").write_bytes(data)

    assert run("recover", tmp_path / "a.kcap", "-o", tmp_path / "b.kcap").exit_code == 0
    assert (tmp_path / "b.kcap").read_bytes() == data


def test_an_arrow_export_has_losses_and_no_heartbeats() -> None:
    """What a heartbeat means to a copy is said by the losses beside it."""
    gap = Loss("blind", None, "no heartbeat", start_ns=1, end_ns=2)

    assert arrow_sides.unpack(arrow_sides.pack([beat(0), gap, SOURCE])) == [
        replace(gap, recorded=True),
        SOURCE,
    ]


@pytest.mark.parametrize("words", [("filter", "-w", "not ps.pid = 99"), ("merge",)], ids=" ".join)
def test_copies_keep_what_was_blind(words: tuple[str, ...], tmp_path: Path) -> None:
    """A copy has no heartbeats, but every interval without one."""
    data, summary = recorded(0, 1, 9)
    (tmp_path / "a.kcap").write_bytes(data)
    verb, *rest = words
    assert run(verb, tmp_path / "a.kcap", *rest, "-o", tmp_path / "b.kcap").exit_code == 0

    copy = (tmp_path / "b.kcap").read_bytes()
    footer = opened(copy).footer
    assert footer is not None
    assert "HEARTBEAT" not in footer.totals["records"]
    assert blind([Loss.from_json(e) for e in footer.totals["loss"]]) == blind(summary.losses)


# What people see


def test_info_shows_what_was_blind(tmp_path: Path) -> None:
    """`kcap info` lists the interval, as text and as JSON, and ends with 3."""
    (tmp_path / "a.kcap").write_bytes(recorded(0, 1, 7)[0])
    (tmp_path / "steady.kcap").write_bytes(recorded(0, 1, 2)[0])

    shown = run("info", tmp_path / "a.kcap")
    assert shown.exit_code == 3
    assert "heartbeats   3\n" in shown.stdout
    assert (
        "blind from 2023-11-14T22:13:21.000000000Z to 2023-11-14T22:13:27.000000000Z:"
        " no heartbeat of the recorder for 6.000000000 s" in shown.stdout
    )
    (entry,) = json.loads(run("info", "--json", tmp_path / "a.kcap").stdout)["blind"]
    assert (entry["start_ns"], entry["end_ns"]) == (START + SECOND, START + 7 * SECOND)

    control = run("info", "--json", tmp_path / "steady.kcap")
    assert (control.exit_code, json.loads(control.stdout)["blind"]) == (0, [])


def test_info_shows_other_blind_spots(tmp_path: Path) -> None:
    """A way around the recorder, or a program that was taken away, is listed with its process."""
    spot = Loss("blind", 12, "io_uring of process nginx (4711): its operations make no calls")
    (tmp_path / "a.kcap").write_bytes(capture([make_events(5).with_before([SOURCE, spot])]))

    shown = run("info", tmp_path / "a.kcap")
    assert shown.exit_code == 3
    assert "blind 12 events: io_uring of process nginx (4711)" in shown.stdout


@pytest.mark.root
def test_a_stopped_recorder_is_blind(tmp_path: Path) -> None:
    """SIGSTOP and SIGCONT of a recording: it ends with 3, and the interval is in the capture."""
    with recording(tmp_path, "-o", "r.kcap") as process:
        until(lambda: _beats(tmp_path / "r.kcap") >= 1)
        all_of_it = (process.pid, *children(process.pid))
        for pid in all_of_it:
            os.kill(pid, signal.SIGSTOP)
        stopped_ns = time.time_ns()
        time.sleep(GAP_NS / SECOND + 0.5)
        for pid in all_of_it:
            os.kill(pid, signal.SIGCONT)
        until(lambda: _beats(tmp_path / "r.kcap") >= 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 3

    shown = run("info", "--json", tmp_path / "r.kcap")
    entries = json.loads(shown.stdout)["blind"]
    assert shown.exit_code == 3
    assert any(
        entry["start_ns"] <= stopped_ns and entry["end_ns"] >= stopped_ns + GAP_NS
        for entry in entries
    )


def _beats(path: Path) -> int:
    """Heartbeats in a file that is still written."""
    found = json.loads(run("info", "--json", path).stdout)
    return int(found["records"].get("HEARTBEAT", 0))
