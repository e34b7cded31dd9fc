"""``kcap timeline``: events over time, exact whatever the range and the memory."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_support import on_a_terminal, run, shell
from hypothesis import given
from hypothesis import strategies as st
from support import capture, make_events
from test_state import make_batch
from tracee_support import DUMP

from kcap.model.batch import EMPTY, Batch
from kcap.model.classes import I64_MAX, I64_MIN
from kcap.model.side import Loss
from kcap.tools import histogram
from kcap.tools.histogram import MISSING, OTHERS, Bins, Histogram

S = 10**9
TIME = st.integers(I64_MIN, I64_MAX) | st.integers(0, 1000) | st.none()
EVENTS = st.lists(st.tuples(TIME, st.sampled_from(["a", "b", "c", None])), max_size=60)


def events(found: Sequence[tuple[int | None, str | None]]) -> Batch:
    rows = [
        {k: v for k, v in (("ts", ts), ("event", name), ("kind", "event")) if v is not None}
        for ts, name in found
    ]
    return make_batch(rows)


def counted(batch: Batch, cuts: Sequence[int] = (), **options: Any) -> Histogram:
    found = Histogram(**options)
    places = sorted({0, batch.rows, *(min(c, batch.rows) for c in cuts)})
    for start, stop in itertools.pairwise(places):
        found.write(batch.slice(start, stop))
    found.close()
    return found


def in_bin(bins: Bins, number: int, ts: int) -> bool:
    start = bins.start_ns + number * bins.width_ns
    return start <= ts < start + bins.width_ns


def write(path: Path, batch: Batch, *more: Batch, **options: Any) -> Path:
    path.write_bytes(capture([batch, *more], **options))
    return path


def timeline(path: Path | str, *words: str, code: int = 0) -> dict[str, Any]:
    result = run("timeline", "--json", path, *words)
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


# Counting


@given(EVENTS, st.lists(st.integers(0, 60), max_size=4), st.integers(1, 70), st.integers(1, 40))
def test_every_interval_has_its_events(
    found: list[tuple[int | None, str | None]], cuts: list[int], most: int, cells: int
) -> None:
    """As counted event by event, also where intervals had to become longer for want of room."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histogram, "CELLS_MAX", cells)
        patch.setattr(histogram, "_PENDING", 3)
        batch = events(found)
        plain, apart = counted(batch, cuts), counted(batch, cuts, by="event")
        times = [ts for ts, _ in found if ts is not None]
        assert (plain.events, plain.timeless) == (len(times), len(found) - len(times))
        for one in (plain, apart):
            bins = one.bins(most, everything=True)
            if bins is None:
                assert not times
                continue
            assert bins.count <= most
            assert bins.totals == [
                sum(in_bin(bins, i, ts) for ts in times) for i in range(bins.count)
            ]
            assert sum(bins.totals) == len(times)
        if bins is not None:
            for name, row in bins.counts.items():
                own = [ts for ts, event in found if ts is not None and (event or MISSING) == name]
                assert row == [sum(in_bin(bins, i, t) for t in own) for i in range(bins.count)]
        uncut = counted(batch, by="event").bins(most, everything=True)
        assert uncut == bins


def test_too_few_cells_make_intervals_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the test above does reach longer intervals, and no count is lost."""
    batch = events([(i * 7, "a") for i in range(1000)])
    exact = counted(batch).bins(7000)
    monkeypatch.setattr(histogram, "CELLS_MAX", 100)
    coarse = counted(batch).bins(7000)

    assert exact is not None
    assert coarse is not None
    assert (exact.width_ns, coarse.width_ns) == (1, 128)
    assert sum(coarse.totals) == sum(exact.totals) == 1000


def test_values_are_ranked_and_the_rest_is_one() -> None:
    """The most frequent first, names decide between equals, what has no row is in the others."""
    batch = events([(1, n) for n in "aabbbcd"] + [(2, None), (2, "b")])
    bins = counted(batch, by="event").bins(10, 2)

    assert bins is not None
    assert bins.counts == {"b": [3, 1], "a": [2, 0], OTHERS: [2, 1]}
    everything = counted(batch, by="event").bins(10)
    assert everything is not None
    assert list(everything.counts) == ["b", "a", MISSING, "c", "d"]


def test_more_values_than_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that come later are counted together."""
    monkeypatch.setattr(histogram, "VALUES_MAX", 3)
    bins = counted(events([(1, n) for n in "abcdefa"]), by="event").bins(5)

    assert bins is not None
    assert bins.counts == {"a": [2], "b": [1], "c": [1], OTHERS: [3]}


def test_numbers_are_values_too() -> None:
    """Any column of single values will do."""
    batch = make_batch([{"ts": i, "pid": i % 2} for i in range(5)])
    bins = counted(batch, by="pid").bins(1)

    assert bins is not None
    assert bins.counts == {"0": [3], "1": [2]}


def test_a_few_events_of_another_age_are_left_out() -> None:
    """1970 and 2077 do not press all others into one interval, and are not forgotten."""
    usual = [(10**18 + i * S, "a") for i in range(500)]
    found = counted(events([(0, "a"), *usual, (3 * 10**18, "a"), (3 * 10**18, "a")]))
    bins = found.bins(50)

    assert bins is not None
    assert (bins.before, bins.after, sum(bins.totals)) == (1, 2, 500)
    assert bins.width_ns < 20 * S
    whole = found.bins(50, everything=True)
    assert whole is not None
    assert (whole.before, whole.after, sum(whole.totals)) == (0, 0, 503)


def test_a_quiet_day_around_a_busy_second_is_all_shown() -> None:
    """Negative control: what is only quiet is not left out."""
    busy = [(40_000 * S + i * 10**7, "a") for i in range(500)]
    found = counted(events([(0, "a"), *busy, (40_000 * S, "a")])).bins(50)

    assert found is not None
    assert (found.before, found.after) == (0, 0)


def test_losses_have_their_place() -> None:
    """At the time they say, else where they stand; cut values are no lost events."""
    batch = events([(100, "a"), (200, "a"), (1000, "a")])
    found = Histogram()
    sides = [Loss("lost", 3, start_ns=150, end_ns=350), Loss("damaged", 1), Loss("cut", 9)]
    found.write(batch.slice(0, 2).with_before([Loss("torn")]))
    found.write(batch.slice(2, 3).with_before(sides))
    found.close()
    bins = found.bins(901)

    assert bins is not None
    assert [list(bins.place(p)) for p in found.placed] == [[], list(range(50, 251)), [100]]


def test_very_many_losses_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded; the last entry has the rest."""
    monkeypatch.setattr(histogram, "LOSSES_MAX", 10)
    found = Histogram()
    found.write(EMPTY.with_before([Loss("lost", 2, start_ns=i, end_ns=i) for i in range(50)]))

    assert len(found.placed) == 10
    assert sum(p.loss.count or 0 for p in found.placed) == 100
    assert (found.placed[-1].start_ns, found.placed[-1].end_ns) == (9, 49)


# The verb


@pytest.fixture
def story(tmp_path: Path) -> Path:
    """66 s: one event in the first, 70 in the second, 35 in the last, a loss in the tenth."""
    times = [0, *(S + i for i in range(70)), *(65 * S + i for i in range(35))]
    batch = events([(ts, "b" if ts else "a") for ts in times])
    loss = Loss("lost", 12, "no room", start_ns=10 * S, end_ns=10 * S)
    first = batch.slice(0, 71)
    return write(tmp_path / "story.kcap", first, batch.slice(71, 106).with_before([loss]))


def test_the_picture(story: Path) -> None:
    """Columns, a mark where events were lost, when it begins and ends, what was lost."""
    result = run("timeline", story, "--bins", "66")
    assert result.exit_code == 0, result.output
    first, *lines = result.stdout.splitlines()
    chart, rest = lines[:8], lines[8:]
    columns = ["".join(line.ljust(80)[12 + at] for line in chart) for at in (0, 1, 2, 65)]

    assert first == f"{story}: 106 events, 1970-01-01T00:00:00.000 + 1m05s, 984.848 ms a column"
    assert columns == [" " * 7 + "▁", "█" * 8, " " * 8, " " * 4 + "█" * 4]
    assert [line[:12].strip() for line in chart] == ["70", "", "", "", "35", "", "", ""]
    assert rest == [
        f"{'lost':>10}  {'':10}!",
        f"{'':12}00:00:00.000{'':42}00:01:04.015",
        "! 1970-01-01T00:00:10.000 lost 12 events: no room",
    ]


def test_a_row_a_value(story: Path) -> None:
    """--by gives the sum and a line for each value."""
    lines = run("timeline", story, "--by", "event", "--bins", "48").stdout.splitlines()

    assert lines[1].startswith(f"b{'':27}105 █")
    assert lines[2] == f"a{'':29}1 █"
    assert lines[3] == f"{'lost':>30}  {'':7}!"


def test_characters_of_the_output(story: Path, tmp_path: Path) -> None:
    """--ascii, or an output without such characters; values cannot steer the terminal."""
    expected = run("timeline", story, "--ascii").stdout
    assert expected.isascii()
    result = shell(f"kcap timeline {story}", tmp_path, PYTHONIOENCODING="ascii")
    assert result.stdout.decode() == expected
    evil = write(tmp_path / "evil.kcap", events([(1, "\x1b[2J")]))
    assert "\x1b" not in run("timeline", evil, "--by", "event").stdout


def test_the_width_is_the_terminals(story: Path, tmp_path: Path) -> None:
    """80 columns elsewhere."""
    wide = on_a_terminal("timeline", story, folder=tmp_path, COLUMNS="120")[1]
    assert max(map(len, wide.decode().splitlines()[1:9])) == 120
    narrow = run("timeline", story).stdout.splitlines()[1:9]
    assert max(map(len, narrow)) == 80


def test_json_has_all_numbers(story: Path) -> None:
    """Start, width, counts, series, losses; a range has just its own events."""
    found = timeline(story, "--bins", "66")
    assert (found["events"], found["start_ns"], sum(found["counts"])) == (106, 0, 106)
    assert [loss["count"] for loss in found["losses"]] == [12]
    assert found["losses"][0]["recorded"] is True
    apart = timeline(story, "--by", "event")
    assert [(s["value"], s["events"]) for s in apart["series"]] == [("b", 105), ("a", 1)]
    part = timeline(story, "--start", "1970-01-01T00:00:01Z", "--end", "1970-01-01T00:00:02Z")
    assert (part["events"], part["start_ns"], sum(part["counts"])) == (70, S, 70)


def test_how_it_is_read_does_not_show(tmp_path: Path) -> None:
    """A closed file, of which few columns are read, gives what a stream and an open file give."""
    batch = make_events(3000)
    closed = write(tmp_path / "closed.kcap", batch, chunk_rows=100)
    opened = write(tmp_path / "open.kcap", batch, chunk_rows=700, closed=False)
    words = ("--by", "arg_pathname", "--start", "1700000000000100000", "--bins", "17")
    expected = timeline(closed, *words)
    streamed = shell(f"cat {closed} | kcap timeline --json - {' '.join(words)}", tmp_path)

    assert expected["events"] > 1000
    for found in (json.loads(streamed.stdout), timeline(opened, *words, code=3)):
        for name in ("events", "start_ns", "bin_ns", "counts", "series"):
            assert found[name] == expected[name], name


def test_state_records_are_no_events(tmp_path: Path) -> None:
    """What only describes what was there is not counted."""
    rows = [{"ts": 1, "kind": "state"}, {"ts": 2, "kind": "event"}]

    assert timeline(write(tmp_path / "s.kcap", make_batch(rows)))["events"] == 1


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    """No events, events without a time, events of another age, a torn file."""
    empty = write(tmp_path / "empty.kcap", EMPTY)
    assert run("timeline", empty).stdout == f"{empty}: no events to draw\n"
    timeless = write(tmp_path / "timeless.kcap", events([(None, "a")] * 3))
    assert "3 events without a time" in run("timeline", timeless).stdout
    assert timeline(timeless)["timeless"] == 3
    ages = write(tmp_path / "ages.kcap", events([*((i, "a") for i in range(999)), (2**62, "a")]))
    text = run("timeline", ages).stdout
    assert "0 events before and 1 after" in text
    assert "--all" not in run("timeline", ages, "--all").stdout
    torn = tmp_path / "torn.kcap"
    torn.write_bytes(ages.read_bytes()[:-100])
    assert timeline(torn, code=3)["losses"][0]["kind"] == "torn"


@pytest.mark.parametrize("column", ["no_such", "arg_argv"])
def test_columns_that_will_not_do(story: Path, column: str) -> None:
    """An unknown name, or a column of lists, is wrong usage."""
    assert run("timeline", story, "--by", column).exit_code == 2


def test_a_real_dump(data: Callable[[str], Path]) -> None:
    """10,534 events with backward times: each is in its interval, each name has its sum."""
    found = timeline(str(data(DUMP)), "--by", "event", "--top", "1000", "--bins", "100")
    lines = run("cat", data(DUMP), "--format", "jsonl", "-F", "ts,event").stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    names = Counter(row["event"] for row in rows)
    start, width = found["start_ns"], found["bin_ns"]
    bins = Counter((_ns(row["ts"]) - start) // width for row in rows)

    assert {s["value"]: s["events"] for s in found["series"]} == names
    assert found["counts"] == [bins[i] for i in range(len(found["counts"]))]


def _ns(ts: Any) -> int:
    from kcap.tools.common import EventTime

    return ts if isinstance(ts, int) else EventTime().convert(ts, None, None)


def test_the_shipped_capture(fixtures: Path) -> None:
    """A format 1.0 file."""
    found = timeline(fixtures / "first.kcap", "--by", "event")

    assert {s["value"]: s["events"] for s in found["series"]} == {
        "exit": 21,
        "exec": 20,
        "fork": 20,
    }
