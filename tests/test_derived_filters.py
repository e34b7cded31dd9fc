"""Derived events in filters and on the command line: found where they are named, never stored."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import run
from derived_support import OPEN, Event, recording
from hypothesis import given
from hypothesis import strategies as st
from support import capture, opened

from kcap import selection
from kcap.capture import Capture
from kcap.filter import Filter
from kcap.readers.live.selection import select
from kcap.replay.chosen import chosen
from kcap.replay.derived import derivation, named


def where_rows(data: bytes, text: str) -> list[Event]:
    """What a filter finds in a capture."""
    source, stages = chosen(opened(data), where=Filter.of(text))
    found: list[Event] = []
    for batch in source.batches():
        for stage in stages:
            batch = stage.process(batch)  # noqa: PLW2901
        found += batch.to_pylist()
    return found


# filters


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("evt.name = 'security_file_open'", {"security_file_open"}),
        ("eventName in ('execve', 'close')", {"execve"}),
        ("evt.name startswith 'security_socket_co'", {"security_socket_connect"}),
        ("evt.name imatches 'MAGIC*'", {"magic_write"}),
        ("not evt.name = 'magic_write'", {"magic_write"}),
        ("derived_from = 'unlink'", {"security_inode_unlink"}),
        ("evt.name != 'magic_write'", set()),
        ("evt.category = 'file'", set()),
        ("ps.name = 'magic_write'", set()),
        ("exists(evt.name)", set()),
    ],
)
def test_what_a_filter_names(text: str, asked: set[str]) -> None:
    """A filter brings in the events whose names it compares with, and no others."""
    assert named([Filter.of(text)]) == asked
    assert (derivation([Filter.of(text)]) is None) == (not asked)


def many(count: int = 40) -> bytes:
    """A capture of ours in chunks of a few events."""
    events: list[tuple[str, Event]] = []
    for i in range(count):
        path = {"pathname": f"/tmp/{i}", "path_arg": f"{i}"}
        events.append(("openat", {**OPEN, **path, "$retval": i % 3 - 1}))
        events.append(("close", {"fd": i, "$retval": 0}))
    events.append(("sched_process_exec", {"pathname": "/bin/sh", "prev_comm": "a", "$retval": 0}))
    return capture([recording(events)], chunk_rows=8)


MANY = many()
_OPERATORS = st.sampled_from(["and", "or"])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("evt.name = 'security_file_open'", 27),
        ("evt.name = 'security_file_open' and args.syscall_pathname = '7'", 1),
        ("evt.name = 'security_file_open' and args.pathname = '/tmp/7'", 1),
        ("evt.name = 'security_file_open' and args.path_arg = '7'", 0),
        ("evt.name in ('security_file_open', 'openat') and args.pathname = '/tmp/7'", 2),
        ("evt.name = 'security_file_open' and args.flags = 0x8020", 1),
        ("evt.name = 'security_bprm_check' and ps.name = 'a'", 1),
        ("evt.name = 'security_bprm_check' and ps.parent.name = 'a'", 0),
        ("derived_from = 'sched_process_exec'", 3),
        ("evt.category = 'file'", 0),
        ("args.pathname = '/tmp/7'", 1),
        ("evt.name = 'magic_write'", 0),
    ],
)
def test_filters_find_derived_events(text: str, count: int) -> None:
    """A filter finds them in a capture, whichever chunks its index lets it leave out."""
    data = many()
    rows = where_rows(data, text)
    assert len(rows) == count
    assert in_passing(data, text) == rows
    with Capture(opened(data)) as found:
        assert [r for b in found.batches(where=text) for r in b.to_pylist()] == rows
        table = found.to_arrow(where=text)
        assert table.num_rows == count
        if "derived_from" in table.column_names:
            assert sum(v is not None for v in table["derived_from"].to_pylist()) == sum(
                "derived_from" in row for row in rows
            )


_LEAVES = st.sampled_from(
    [
        "evt.name = 'security_file_open'",
        "evt.name in ('openat', 'security_bprm_check')",
        "evt.name startswith 'security_'",
        "evt.name != 'close'",
        "derived_from = 'openat'",
        "args.pathname = '/tmp/7'",
        "args.pathname in ('/tmp/8', '/bin/sh')",
        "args.syscall_pathname = '7'",
        "args.path_arg = '8'",
        "args.flags = 0x8000",
        "retval = 0",
        "ps.name = 'a'",
        "pid = 5",
        "evt.category = 'file'",
        "evt.seq > 40",
    ]
)
_TEXTS = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        inner.map("not ({})".format), st.builds("({} {} {})".format, inner, _OPERATORS, inner)
    ),
    max_leaves=4,
)


def in_passing(data: bytes, text: str) -> list[Event]:
    """What a filter finds in a capture that comes through a pipe: no index, all of it read."""
    source, stages = chosen(opened(data, pipe=True), where=Filter.of(text))
    return [row for b in source.batches() for row in stages[0].process(b).to_pylist()]


@given(_TEXTS)
def test_the_index_hides_nothing(text: str) -> None:
    """A capture with an index gives what it gives in passing, whatever is asked."""
    assert where_rows(MANY, text) == in_passing(MANY, text)


def test_an_index_without_views_hides_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: where only recorded names count, chunks with views stay unread."""
    text = "evt.name = 'security_file_open'"
    monkeypatch.setattr(selection, "derived_values", lambda _, values_of: values_of)
    assert len(where_rows(MANY, text)) < len(in_passing(MANY, text))


def test_chunks_without_base_events_stay_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The index tells by the base event which chunks can have a derived one."""
    events = [("close", {"fd": 1, "$retval": 0})] * 64 + [("openat", {**OPEN, "$retval": 3})] * 8
    reader = opened(capture([recording(events)], chunk_rows=8))
    read: list[int] = []
    whole, lazily = reader.chunk, reader.view
    monkeypatch.setattr(reader, "chunk", lambda n, c=None: (read.append(n), whole(n, c))[1])
    monkeypatch.setattr(reader, "view", lambda n: (read.append(n), lazily(n))[1])
    source, _ = chosen(reader, where=Filter.of("evt.name = 'security_file_open'"))
    assert sum(batch.rows for batch in source.batches()) == 8
    assert set(read) == {8}


def test_an_alert_says_what_it_is() -> None:
    """The number of an alert has its text in filters."""
    data = capture([recording([("mprotect", {"prot": 5, "prev_prot": 7, "$retval": 0})])])
    text = "evt.name = 'mem_prot_alert' and args.alert = 'Protection changed from W+E to E!'"
    assert len(where_rows(data, text)) == 1
    assert where_rows(data, text.replace("W+E to E!", "E to W+E!")) == []


# the command line


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A capture of ours in a file."""
    path = tmp_path / "ours.kcap"
    path.write_bytes(many())
    return path


def test_cat(ours: Path) -> None:
    """Without a word of them there are none; with --derived, and where -w names one, there are."""
    assert len(run("cat", str(ours)).stdout.splitlines()) == 81
    assert len(run("cat", "--derived", str(ours)).stdout.splitlines()) == 81 + 26 + 3
    one = run("cat", "-w", "evt.name = 'security_file_open'", str(ours))
    assert len(one.stdout.splitlines()) == 27
    both = run("cat", "--derived", "-w", "evt.category = 'file'", str(ours))
    assert len(both.stdout.splitlines()) == 27


def test_nothing_derived_is_stored(ours: Path, tmp_path: Path) -> None:
    """A copy has the base events of those that the filter names, once each."""
    text = "evt.name in ('security_file_open', 'openat', 'security_bprm_check')"
    stored = []
    for verb in (["filter"], ["cat", "--format", "kcap"]):
        out = tmp_path / f"{verb[0]}.kcap"
        run(*verb, "-w", text, "-o", str(out), str(ours))
        with Capture(opened(out.read_bytes())) as found:
            assert "derived_from" not in found.columns
            stored.append(found.info.types)
    assert stored == [{"openat": 40, "sched_process_exec": 1}] * 2
    refused = run("cat", "--derived", "--format", "kcap", "-o", str(tmp_path / "x"), str(ours))
    assert refused.exit_code == 2
    assert "never stored" in refused.stderr


def test_stats_and_export(ours: Path, tmp_path: Path) -> None:
    """Counts are those of derived events too, and tables have their columns."""
    counted = run("stats", "-w", "evt.name = 'security_file_open'", str(ours))
    assert " 27 events" in counted.stdout.replace("\n", " ")
    out = tmp_path / "x.csv"
    run("export", "--derived", "-o", str(out), str(ours))
    lines = out.read_text().splitlines()
    assert len(lines) == 1 + 81 + 29
    assert {"derived_from", "arg_syscall_pathname"} <= set(lines[0].split(","))


def test_replay(ours: Path) -> None:
    """More events than there were are no part of them."""
    plain, more = run("replay", str(ours)), run("replay", "--derived", str(ours))
    assert plain.stderr.startswith("kcap: 81 events replayed\n")
    assert more.stderr.startswith("kcap: 110 events replayed\n")
    one = run("replay", "-w", "evt.name = 'magic_write'", str(ours))
    assert one.stderr == "kcap: 0 of 81 events replayed\n"


# recording


@pytest.mark.parametrize(
    ("text", "events", "demanded"),
    [
        ("evt.name = 'security_sb_mount' and ps.name = 'x'", {"mount"}, {"event", "process_name"}),
        (
            "evt.name = 'security_bprm_check' and ps.name = 'x' and uid = 5",
            {"execve", "execveat", "sched_process_exec"},
            {"event", "process_name", "uid"},
        ),
        ("evt.name in ('connect', 'socket_dup')", {"connect", "dup", "dup2", "dup3"}, {"event"}),
    ],
)
def test_what_is_recorded_for_them(text: str, events: set[str], demanded: set[str]) -> None:
    """A recording for derived events has what they are made of."""
    wanted = select(where=Filter.of(text))
    assert wanted.events == events
    assert set(wanted.demands) == demanded
