"""``kcap stats``: every event is counted once, whatever is counted by and however it comes."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_support import run, shell
from hypothesis import given
from hypothesis import strategies as st
from support import RECORDS, batch_of, capture, make_events, opened
from test_state import make_batch

from kcap import counting
from kcap.counting import INTERVALS_MAX, Counts, Rate
from kcap.errors import KcapError, LimitError
from kcap.format.reader import CaptureReader
from kcap.keys import exact, key, plain
from kcap.model.batch import Batch
from kcap.model.side import Loss

S = 10**9
NAMES = st.sampled_from(["a", "b", "c", ""]) | st.none()
ROWS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "ts": st.integers(-(10**12), 10**12),
            "event": st.sampled_from(["read", "write", "exec"]),
            "process_name": st.sampled_from(["sh", "cat", ""]),
            "user": st.sampled_from(["root", ""]),
            "uid": st.integers(0, 2),
            "pid": st.integers(1, 3),
        },
    ),
    max_size=40,
)
CUTS = st.lists(st.integers(0, 40), max_size=4)


def counted(batch: Batch, names: Sequence[str], cuts: Sequence[int] = ()) -> Counts:
    found = Counts([key(name) for name in names])
    for start, stop in itertools.pairwise(sorted({0, batch.rows, *cuts})):
        found.write(batch.slice(start, stop))
    found.close()
    return found


def write(path: Path, *batches: Batch, **options: Any) -> Path:
    path.write_bytes(capture(list(batches), **options))
    return path


def stats(*words: str | Path, code: int = 0) -> dict[str, Any]:
    result = run("stats", "--json", *words)
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def counts_of(report: dict[str, Any], table: int = 0) -> dict[Any, int]:
    rows = report["tables"][table]["rows"]
    return {tuple(row["values"]): row["count"] for row in rows}


# Counting


@given(ROWS, CUTS, st.lists(st.sampled_from(["event", "process_name", "pid"]), max_size=3))
def test_counts_are_those_of_a_loop(
    rows: list[dict[str, Any]], cuts: list[int], names: list[str]
) -> None:
    """Counts, first and last times of each group are as counted one by one, however cut."""
    found, others = counted(make_batch(rows), names, cuts).ranked()
    expected: dict[tuple[Any, ...], list[int | None]] = {}
    for row in rows:
        values = tuple(row.get(name) for name in names) or (None,)
        expected.setdefault(values, []).append(row.get("ts"))

    assert others is None
    assert {g.values: g.count for g in found} == {v: len(t) for v, t in expected.items()}
    for group in found:
        times = [t for t in expected[group.values] if t is not None]
        assert (group.first_ns, group.last_ns) == (
            (min(times), max(times)) if times else (None, None)
        )


@given(ROWS, st.integers(0, 5), st.booleans())
def test_rows_and_others_add_up(rows: list[dict[str, Any]], top: int, by_value: bool) -> None:
    """What has no row is in the others, and the order is a function of the counts alone."""
    counts = counted(make_batch(rows), ["event", "pid"])
    shown, others = counts.ranked(top, by_value=by_value)
    again, _ = counted(make_batch(rows[::-1]), ["event", "pid"]).ranked(top, by_value=by_value)

    assert [(g.values, g.count) for g in shown] == [(g.values, g.count) for g in again]
    assert sum(g.count for g in shown) + (others.count if others else 0) == len(rows)
    assert len(shown) + (others.groups if others else 0) == counts.groups
    assert shown == counts.ranked(by_value=by_value)[0][:top]
    if not by_value:
        assert [g.count for g in shown] == sorted((g.count for g in shown), reverse=True)


@given(RECORDS, CUTS)
def test_values_of_every_class_are_counted(records: list[Any], cuts: list[int]) -> None:
    """A column of any class, named in full, has as many values and missing ones as it has."""
    batch = batch_of(records)
    for name, column in batch.columns.items():
        groups, _ = counted(batch, [name], cuts).ranked()
        told = Counter(exact(v) for v in column.values.to_pylist())
        told[None] += batch.rows - len(column)
        assert {exact(g.values[0]): g.count for g in groups} == +told


def test_numbers_that_python_calls_equal_are_apart() -> None:
    """1, 1.0 and true are three values, 2**63 and -2**63 two, every NaN is one."""
    values: list[Any] = [1, 1.0, True, 1 << 63, -(1 << 63), float("nan"), float("nan"), None]
    batch = batch_of([(0, {"a": value}) for value in values])
    groups, _ = counted(batch, ["arg_a"], [3, 6]).ranked()

    assert sorted(g.count for g in groups) == [1] * 6 + [2]
    assert {type(g.values[0]) for g in groups} == {int, float, bool, type(None)}
    assert exact([1]) != exact([True])
    assert plain(exact([1, "a", [2.5]])) == (1, "a", (2.5,))


def test_too_many_groups_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of groups and one of their text hold; the error says what to do."""
    batch = make_events(300)
    monkeypatch.setattr(counting, "GROUPS_MAX", 20)
    counted(batch, ["arg_fd"])
    with pytest.raises(LimitError, match="20 groups to count by arg_pathname,arg_fd") as caught:
        counted(batch, ["arg_pathname", "arg_fd"])
    assert "kcap query" in str(caught.value.hint)

    monkeypatch.undo()
    monkeypatch.setattr(counting, "VALUES_BYTES", 20)
    with pytest.raises(LimitError):
        counted(batch, ["arg_pathname"])


# Words


def value_of(name: str, **row: Any) -> Any:
    found, _ = counted(make_batch([row]), [name]).ranked()
    return found[0].values[0]


@pytest.mark.parametrize(
    ("name", "row", "value"),
    [
        ("user", {"user": "root", "uid": 0}, "root"),
        ("user", {"user": "", "uid": 7}, "uid 7"),
        ("user", {"uid": 7}, "uid 7"),
        ("user", {}, None),
        ("container", {"container_name": "", "container_id": "c0ffee"}, "c0ffee"),
        ("container", {"container_name": "web", "container_id": "c0ffee"}, "web"),
        ("path", {"fd_type": "file", "fd_name": "/etc/passwd"}, "/etc/passwd"),
        ("path", {"fd_type": "unix", "fd_name": "/run/x"}, None),
        ("path", {"arg_pathname": "/a"}, "/a"),
        ("path", {"arg_file_name": "C:\\a"}, "C:\\a"),
        ("destination", {"arg_dip": "10.0.0.1", "arg_dport": 53}, "10.0.0.1:53"),
        ("destination", {"arg_dip": "fe80::1", "arg_dport": 53}, "[fe80::1]:53"),
        ("destination", {"arg_dip": "10.0.0.1"}, "10.0.0.1"),
        ("destination", {"fd_type": "ipv4", "fd_name": "1.1.1.1:9->2.2.2.2:80"}, "2.2.2.2:80"),
        ("destination", {"fd_type": "ipv6", "fd_name": "::1:9->fe80::2:80"}, "[fe80::2]:80"),
        ("destination", {"fd_type": "ipv4", "fd_name": "0.0.0.0:80"}, "0.0.0.0:80"),
        ("destination", {"fd_type": "file", "fd_name": "a->b"}, None),
        (
            "destination",
            {"arg_remote_addr": {"sin_port": "123", "sin_addr": "1.2.3.4"}},
            "1.2.3.4:123",
        ),
        (
            "destination",
            {"arg_remote_addr": {"sun_path": "/run/x"}},
            "/run/x",
        ),
        ("destination", {"arg_remote_addr": [{}]}, None),
        ("destination", {"arg_remote_addr": {"sin_addr": 1}}, None),
        (
            "destination",
            {"event": "bind", "arg_addr": {"sin_addr": "1.2.3.4", "sin_port": "1"}},
            None,
        ),
        (
            "destination",
            {"event": "connect", "arg_addr": {"sin_addr": "1.2.3.4", "sin_port": "1"}},
            "1.2.3.4:1",
        ),
        ("dns", {"arg_proto_dns": {"questions": [{"name": "a.example"}]}}, "a.example"),
        ("dns", {"arg_dns_questions": [{"query": "a.example"}]}, "a.example"),
        ("dns", {"arg_proto_dns": {"questions": []}}, None),
        ("dns", {"event": "QueryDns", "arg_name": "a.example"}, "a.example"),
        ("dns", {"event": "CreateProcess", "arg_name": "a"}, None),
        ("minute", {"ts": 61 * S}, "1970-01-01T00:01:00Z"),
        ("hour", {"ts": -1}, "1969-12-31T23:00:00Z"),
        ("day", {}, None),
    ],
)
def test_words_tell_what_the_columns_say(name: str, row: dict[str, Any], value: Any) -> None:
    """Each source's way to say it, and none where it says something else."""
    assert value_of(name, **row) == value


@pytest.mark.parametrize(
    ("name", "meant"),
    [("evnet", "event"), ("pathname", "arg_pathname"), ("proces", "process"), ("a__b", None)],
)
def test_unknown_names_are_refused(name: str, meant: str | None, closed: Path) -> None:
    """Wrong usage, and what was probably meant."""
    with pytest.raises(KcapError, match="no column is called"):
        key(name)
    result = run("stats", "--by", name, closed)

    assert result.exit_code == 2
    assert (f"'{meant}'" if meant else "kcap docs columns") in result.stderr


# Events over time


@given(st.lists(st.integers(-(2**62), 2**62) | st.integers(0, 10**13)), st.integers(3, 30), CUTS)
def test_intervals_depend_on_the_events_alone(times: list[int], most: int, cuts: list[int]) -> None:
    """Few enough, of the shortest length for which they are, and each with its events."""
    rate = Rate()
    batch = make_batch([{"ts": ts} for ts in times])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "INTERVALS_MAX", 30)  # so that they become longer on the way
        for start, stop in itertools.pairwise(sorted({0, batch.rows, *cuts})):
            rate.write(batch.slice(start, stop))
        found = rate.intervals(most)
    lengths = [length * S for length in counting._LENGTHS_S]
    shortest = next(n for n in lengths if len({t // n for t in times}) <= most)

    assert rate.length_ns == shortest
    assert found == Counter(t // shortest * shortest for t in times)
    assert list(found) == sorted(found)


def test_lengths_divide_each_other() -> None:
    """Else intervals could not become longer without a look at the events again."""
    lengths = counting._LENGTHS_S
    assert all(b % a == 0 for a, b in itertools.pairwise(lengths))
    assert (1 << 64) // (lengths[-1] * S) < 3 < INTERVALS_MAX


# The verb

EVENTS = make_batch(
    [
        {"ts": i * S, "event": "read" if i % 3 else "exec", "process_name": f"p{i % 5}", "uid": 0}
        for i in range(30)
    ]
)


@pytest.mark.parametrize("words", [(), ("--by", "event"), ("--by", "event,process", "-n", "3")])
def test_any_chunking_and_state_tells_the_same(words: tuple[str, ...], tmp_path: Path) -> None:
    """Closed, unfinished or from a pipe, in one chunk or many: the same report."""
    one = write(tmp_path / "one.kcap", EVENTS)
    many = write(tmp_path / "many.kcap", EVENTS, chunk_rows=7)
    expected = stats(*words, one)
    found = stats(*words, many)
    piped = run("stats", "--json", *words, "-", input=many.read_bytes())

    assert expected["tables"] == found["tables"] == json.loads(piped.stdout)["tables"]
    assert expected["events"] == 30


def test_the_index_alone_tells_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No chunk of a closed capture is read for --by event; for anything more, some are."""
    path = write(tmp_path / "a.kcap", EVENTS, make_batch([{"ts": 1, "pid": 1}]))
    read: list[int] = []
    chunk = CaptureReader.chunk

    def noted(self: CaptureReader, number: int, columns: Any = None) -> Batch:
        read.append(number)
        return chunk(self, number, columns)

    monkeypatch.setattr(CaptureReader, "chunk", noted)
    quick = counts_of(stats("--by", "event", path))
    assert read == []
    slow = counts_of(stats("--by", "event", "--times", path))
    assert read

    assert quick == slow == {("read",): 20, ("exec",): 10, (None,): 1}


def test_only_needed_columns_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting by process reads its column, the time and what tells state from events."""
    path = write(tmp_path / "a.kcap", EVENTS)
    asked: list[Any] = []
    chunk = CaptureReader.chunk

    def noted(self: CaptureReader, number: int, columns: Any = None) -> Batch:
        asked.append(columns)
        return chunk(self, number, columns)

    monkeypatch.setattr(CaptureReader, "chunk", noted)
    stats("--by", "process", path)

    assert asked == [("process_name", "ts")]


def test_state_records_do_not_count(tmp_path: Path) -> None:
    """Neither where events are read nor where the index would have counted them."""
    state = make_batch([{"ts": 1, "event": "exec", "kind": "state"}] * 4)
    nameless = make_batch([{"ts": 1, "pid": 1}] * 9)
    path = write(tmp_path / "a.kcap", EVENTS, state, nameless)

    for words in (("--by", "event"), ("--by", "event", "--times"), ("--by", "hour")):
        assert stats(*words, path)["events"] == 39
    expected = {("read",): 20, ("exec",): 10, (None,): 9}
    assert counts_of(stats("--by", "event", path)) == expected


def test_an_interval_of_time_is_half_open(tmp_path: Path) -> None:
    """Events at --start count, those at --end don't, in the index's answer too."""
    path = write(tmp_path / "a.kcap", EVENTS, chunk_rows=7)
    within = ("--start", "1970-01-01T00:00:10", "--end", "1970-01-01T00:00:20")
    report = stats("--by", "event", *within, path)

    assert report["events"] == 10
    assert report["tables"][0]["rows"][0]["last_ns"] == 19 * S


def test_a_filter_says_which_events_count(tmp_path: Path) -> None:
    """Also by event, though the index has the counts of all."""
    path = write(tmp_path / "a.kcap", EVENTS, chunk_rows=7)
    for words in (("--by", "event"), ("--by", "event", "--times"), ("--by", "event,process")):
        report = stats(*words, "-w", "ps.name = 'p0' and evt.name = 'exec'", path)
        assert report["events"] == 2
    assert run("stats", "-w", "evt.name ==", path).exit_code == 2


@pytest.mark.parametrize(
    "where",
    ["evt.name startswith 'e'", "not evt.name = 'exec'", "exists(evt.name)", "event = 'no'"],
)
def test_a_filter_on_names_alone_is_answered_by_the_index(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads no chunk, and says what a reading of all chunks says."""
    path = write(tmp_path / "a.kcap", make_events(500), chunk_rows=100)
    read = stats("--by", "event", "-w", f"{where} and not seq = -5", path)
    monkeypatch.setattr(CaptureReader, "view", None)

    assert stats("--by", "event", "-w", where, path) == read
    result = run("stats", "--by", "event", "-w", "not seq = -5", path)
    assert result.exit_code == 1, "negative control: a filter on more than names reads chunks"


def test_captures_are_counted_together(tmp_path: Path, foreign: Path) -> None:
    """Of any formats; the total is the sum."""
    own = write(tmp_path / "a.kcap", EVENTS)
    alone = stats("--by", "event", foreign)
    both = stats("--by", "event", own, foreign)

    assert both["events"] == 30 + alone["events"]
    parts = [Counter(counts_of(alone)), Counter(counts_of(stats("--by", "event", own)))]
    assert counts_of(both) == parts[0] + parts[1]


def test_damage_is_told(tmp_path: Path) -> None:
    """What can't be read is not counted, said, and the exit code is 3."""
    path = write(tmp_path / "a.kcap", EVENTS, chunk_rows=10)
    data = bytearray(path.read_bytes())
    index = opened(bytes(data)).index()
    assert index is not None
    data[int(index.table[1]["offset"]) + 40] ^= 0xFF
    path.write_bytes(bytes(data))
    result = run("stats", "--by", "process", path)

    assert result.exit_code == 3
    assert "20 events" in result.stdout
    assert "damaged 10 events" in result.stderr
    assert stats("--by", "process", path, code=3)["losses"]


def test_recorded_losses_are_no_failure(tmp_path: Path) -> None:
    """What was lost long ago does not change the exit code."""
    path = write(tmp_path / "a.kcap", EVENTS.with_before([Loss("lost", 3, "then")]))
    assert stats("--by", "process", path)["losses"] == {}


def test_what_people_see(tmp_path: Path) -> None:
    """Aligned tables; missing values, empty text and what could steer a terminal are told."""
    rows: list[dict[str, Any]] = [
        {"ts": 0, "event": "\x1b[31m", "pid": 1},
        {"ts": S, "event": ""},
        {"ts": S, "event": "-"},
        {"event": "x" * 200},
        {"ts": 2 * S, "pid": 2},
    ]
    path = write(tmp_path / "a.kcap", make_batch(rows))
    result = run("stats", "--by", "event", "--sort", "name", "--times", path)

    assert result.stdout.splitlines()[1:] == [
        "",
        "count  percent                     first                      last  event",
        f"-----  -------  {'-' * 24}  {'-' * 24}  {'-' * 80}",
        '    1     20.0  1970-01-01T00:00:01.000Z  1970-01-01T00:00:01.000Z  ""',
        "    1     20.0  1970-01-01T00:00:00.000Z  1970-01-01T00:00:00.000Z  \\x1b[31m",
        '    1     20.0  1970-01-01T00:00:01.000Z  1970-01-01T00:00:01.000Z  "-"',
        f"    1     20.0                         -                         -  {'x' * 79}…",
        "    1     20.0  1970-01-01T00:00:02.000Z  1970-01-01T00:00:02.000Z  -",
    ]
    assert run("stats", path).stdout.count(": no event has one") == 3


def test_nothing_to_count(tmp_path: Path) -> None:
    """A capture without events has a heading and no tables."""
    path = write(tmp_path / "a.kcap")
    for words in ((), ("--by", "event"), ("--by", "process")):
        result = run("stats", *words, path)
        assert (result.exit_code, result.stdout) == (0, f"{path}: 0 events\n")
        assert stats(*words, path)["events"] == 0


def test_a_pipe_that_closes_is_no_error(closed: Path, tmp_path: Path) -> None:
    """As for every verb whose reader has seen enough."""
    done = shell(f"kcap stats -n 0 --by ord {closed} | head -1", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "by", "most"),
    [
        ("scap/full_capture.scap", "destination", ("172.17.0.4:80",)),
        ("tracee/tracee_dns_events_gotypes_2025-04.jsonl.gz", "dns", ("a.root-servers.net",)),
        ("fibratus/v1.6.0-test.kcap", "destination", ("20.150.95.100:443",)),
    ],
)
def test_real_captures(name: str, by: str, most: tuple[str], data: Callable[[str], Path]) -> None:
    """The most frequent value in captures of other tools, as those tools show it."""
    rows = stats("--by", by, data(name))["tables"][0]["rows"]
    assert next(tuple(row["values"]) for row in rows if row["values"] != [None]) == most


@pytest.mark.parametrize("name", ["scap/full_capture.scap", "fibratus/v1.6.0-test.kcap"])
def test_counts_are_those_of_sql(name: str, data: Callable[[str], Path], tmp_path: Path) -> None:
    """DuckDB groups the same events into the same counts and times."""
    pytest.importorskip("duckdb")
    own = tmp_path / "own.kcap"
    assert run("import", data(name), "-o", own).exit_code == 0
    columns = "event, process_name, fd_type" if "scap" in name else "event, process_name, arg_dip"
    sql = (
        f"SELECT {columns}, count(*) AS n, min(ts_ns) AS first, max(ts_ns) AS last FROM events "
        "WHERE kind IS DISTINCT FROM 'state' GROUP BY ALL"
    )
    result = run("query", "--json", sql, own)
    assert result.exit_code == 0, result.output
    expected = {tuple(row) for row in json.loads(result.stdout)["rows"]}

    rows = stats("--by", columns.replace(" ", ""), "-n", "0", own)["tables"][0]["rows"]
    found = {(*row["values"], row["count"], row["first_ns"], row["last_ns"]) for row in rows}
    assert len(rows) > 50
    assert found == expected


def test_no_vector_is_too_much(fixtures: Path) -> None:
    """Good, damaged and hostile captures are counted or refused, and never more than they hold."""
    paths = sorted(fixtures.glob("vectors/*/*.kcap"))
    codes = Counter[int]()
    for path in paths:
        result = run("stats", "--by", "event,ord", path)
        assert "internal error" not in result.stderr, path
        codes[result.exit_code] += 1

    assert set(codes) == {0, 1, 3}
    assert len(paths) > 200
