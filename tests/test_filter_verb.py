"""``kcap filter``: what is wanted is copied as it is, and nothing tells of the rest."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from cli_support import run, shell
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import batch_of, make_events, opened, read, rows_of
from test_merge import Given, divided
from test_state import HOST, event, fork, make_batch

from kcap.format.writer import CaptureWriter
from kcap.model.batch import Batch, Column, concat, constant, without_state
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.replay import needed
from kcap.replay.needed import Needed
from kcap.replay.pipeline import Pipeline
from kcap.state import State, fds, handles, processes, threads, users
from kcap.state.fds import Target
from kcap.state.handles import Handle
from kcap.state.processes import Process
from kcap.state.threads import Thread

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
MINE = SourceInfo("test", host="mine", boot_id="boot", origin="0a" * 16)
OTHER = SourceInfo("test", host="other", boot_id="other", origin="0b" * 16)
NS = 1_700_000_000_000_000_000
HASHED = "0b" * 16


def events(
    records: list[dict[str, Any]], *, source: SourceInfo = MINE, first: int = 0, **columns: Any
) -> Batch:
    """Events with these arguments, and columns of one value."""
    batch = batch_of([(NS + (first + i) * 1000, record) for i, record in enumerate(records)])
    envelope = {"source": source.id, "origin": source.origin, **columns}
    made = {
        name: constant(TypeClass.I64 if isinstance(v, int) else TypeClass.STR, v, batch.rows)
        for name, v in envelope.items()
    }
    made["ord"] = Column(TypeClass.I64, pa.array(np.arange(first, first + batch.rows)))
    return batch.adding(made)


def written(batches: list[Batch], **options: Any) -> tuple[io.BytesIO, CaptureWriter]:
    """A capture that is not closed yet."""
    out = io.BytesIO()
    writer = CaptureWriter(out, **options)
    for batch in batches:
        writer.write(batch)
    return out, writer


def saved(path: Path, batches: list[Batch], **options: Any) -> Path:
    """A closed capture in a file."""
    out, writer = written(batches, **options)
    writer.close()
    path.write_bytes(out.getvalue())
    return path


def uncovered(data: bytes) -> bytes:
    """A file and all that is compressed in it."""
    found = [data]
    at = data.find(ZSTD_MAGIC)
    while at >= 0:
        try:
            stream = zstandard.ZstdDecompressor().decompressobj()
            found.append(stream.decompress(data[at:]))
        except zstandard.ZstdError:
            pass  # four bytes that only look like a frame
        at = data.find(ZSTD_MAGIC, at + 1)
    return b"\0".join(found)


_PLACES = (
    "argv environment path dns bytes nested name column exe cmdline event user container state_row"
    " process thread fd handle username source blob blob_path blob_details"
)
SECRETS = {n: f"{i:02}hidden{i:02}" for i, n in enumerate(_PLACES.split())}
"""A secret for each place; no two begin alike, so that no dictionary shares their beginnings."""


def planted(path: Path) -> Path:
    """A capture with a secret in every place that can hold text, none of them of process 1."""
    s = SECRETS
    mine = events([{"pathname": f"/tmp/{i}"} for i in range(5)], pid=1, ppid=7, event="open")
    other = [
        events(
            [
                {"argv": ["curl", s["argv"]], "env": [f"TOKEN={s['environment']}"]},
                {"pathname": f"/home/{s['path']}", "query": f"{s['dns']}.example"},
                {"data": s["bytes"].encode(), "nested": {"a": [s["nested"]]}, s["column"]: 1},
            ],
            first=5,
            pid=2,
            process_name=s["name"],
            exe=f"/bin/{s['exe']}",
            cmdline=f"x {s['cmdline']}",
            event=s["event"],
            user=s["user"],
            container_id=s["container"],
        ),
        events([{"cmdline": s["state_row"]}], first=8, pid=3, kind="state"),
        events([{"pathname": "/etc/passwd"}], first=9, pid=4, source=OTHER),
    ]
    last = events([{"pathname": "/tmp/last"}], first=10, pid=1, ppid=7, event="open")
    machine = State.machine(MINE)
    table = [
        Process(1, "k1", "k7", 7, "mine"),
        Process(2, "k2", "k1", 1, "other", cmdline=s["process"]),
        Process(7, "k7", None, 0, "parent"),
    ]
    start = Snapshot(
        {
            "processes": processes.to_batch([(machine, table)]),
            "threads": threads.to_batch([(machine, [Thread(2, 2, details=s["thread"])])]),
            "fds": fds.to_batch([(machine, [fds.Descriptor(2, 1, *Target("file", s["fd"]))])]),
            "handles": handles.to_batch([(machine, [Handle(2, 4, name=s["handle"])])]),
            "users": users.to_batch([(machine, {5: s["username"]})]),
        }
    )
    sides: list[Side] = [
        MINE,
        SourceInfo(
            OTHER.collector, OTHER.host, OTHER.boot_id, OTHER.origin, (), {"x": s["source"]}
        ),
        start,
        Loss("lost", 3, "ring full", source=MINE.id),
    ]
    whole = [mine.with_before(sides), concat(other), last]
    out, writer = written(whole)
    writer.blob([b"kept bytes"], path="/bin/kept", origin=MINE.origin, ord=1)
    details = {"note": s["blob_details"]}
    writer.blob(
        [s["blob"].encode()], path=s["blob_path"], origin=MINE.origin, ord=5, details=details
    )
    writer.close()
    path.write_bytes(out.getvalue())
    return path


def kept_by(path: Path) -> set[str]:
    """The secrets that are in any decompressed byte of a file."""
    plain = uncovered(path.read_bytes())
    return {name for name, secret in SECRETS.items() if secret.encode() in plain}


@pytest.mark.parametrize("state", ["needed", "none"])
@pytest.mark.parametrize(
    "words", [["-w", "ps.pid = 1"], ["-n", "5"], ["--canonical", "-w", "ps.pid = 1"]]
)
def test_no_secret_of_what_was_left_out_is_in_any_byte_of_the_copy(
    tmp_path: Path, words: list[str], state: str
) -> None:
    """Twenty and more secrets are in the input, none of them in the copy."""
    source = planted(tmp_path / "in.kcap")
    assert kept_by(source) == set(SECRETS)

    result = run("filter", *words, "--state", state, source, "-o", tmp_path / "out.kcap")

    assert result.exit_code == 0, result.output
    assert kept_by(tmp_path / "out.kcap") == set()
    assert b"kept bytes" in uncovered((tmp_path / "out.kcap").read_bytes())


def test_all_state_holds_the_secrets_of_the_state(tmp_path: Path) -> None:
    """What `--state all` keeps is found by the same search: the negative control."""
    source = planted(tmp_path / "in.kcap")

    run("filter", "-w", "ps.pid = 1", "--state", "all", source, "-o", tmp_path / "out.kcap")

    in_state = {"state_row", "process", "thread", "fd", "handle", "username"}
    assert kept_by(tmp_path / "out.kcap") == in_state


def test_the_filter_itself_is_not_in_the_copy(tmp_path: Path) -> None:
    """Who filters a secret away does not write it down."""
    source = planted(tmp_path / "in.kcap")
    where = f"ps.pid = 1 and not file.path contains '{SECRETS['path']}'"

    result = run("filter", "-w", where, source, "-o", tmp_path / "out.kcap")

    assert result.exit_code == 0, result.output
    assert kept_by(tmp_path / "out.kcap") == set()


@given(
    chunk=st.sampled_from([1, 7, 64]),
    where=st.sampled_from(
        [
            "file.path = '/tmp/3'",
            "file.path contains '1' or evt.arg[fd] = 4",
            "evt.arg[big] > 0",
            "not file.path startswith '/tmp'",
        ]
    ),
    state=st.sampled_from(["needed", "all", "none"]),
)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_events_keep_every_value(tmp_path: Path, chunk: int, where: str, state: str) -> None:
    """What cat shows of the input by a filter is what it shows of the copy, however chunked."""
    source = saved(tmp_path / "in.kcap", [make_events(200)], chunk_rows=chunk)
    out = tmp_path / "out.kcap"

    result = run("filter", "--force", "-w", where, "--state", state, source, "-o", out)

    assert result.exit_code == 0, result.output
    for form in ("jsonl", "line"):
        shown = run("cat", "--format", form, out)
        assert shown.exit_code == 0
        assert shown.stdout == run("cat", "--format", form, "-w", where, source).stdout
        assert shown.stdout == run("cat", "--format", form, "-w", where, out).stdout
    assert run("verify", out).exit_code == 0
    batches, losses = read(out.read_bytes())
    assert not losses
    whole = dict(enumerate(rows_of([make_events(200)])))
    ords = [row["ord"] for b in batches for row in b.to_pylist()]
    assert rows_of(batches) == [whole[o] for o in ords]  # type: ignore[index]


def test_what_was_left_out_and_lost_is_counted(tmp_path: Path) -> None:
    """Info shows the events that were left out, by source, and the losses of the input."""
    source = planted(tmp_path / "in.kcap")
    run("filter", "-w", "ps.pid = 1", source, "-o", tmp_path / "out.kcap")

    shown = run("info", tmp_path / "out.kcap")

    assert shown.exit_code == 0
    assert "lost 3 events: ring full" in shown.stdout
    assert "filtered 3 events: left out of this copy" in shown.stdout  # of MINE
    assert "filtered 1 event: left out of this copy" in shown.stdout  # of OTHER
    assert "other" not in shown.stdout.split("events name")[0]


def tables(path: Path) -> list[Snapshot]:
    """The snapshots of a capture."""
    return [s for b in opened(path.read_bytes()).batches() for s in b.before if _is_state(s)]  # type: ignore[misc]


def _is_state(side: Side) -> bool:
    return isinstance(side, Snapshot)


def told(path: Path) -> list[dict[int, str | None]]:
    """Process ids and names in each snapshot of a capture."""
    found = []
    for snapshot in tables(path):
        assert set(snapshot.tables) == {"processes"}
        read_back = processes.from_batch(snapshot.tables["processes"])
        found.append({p.pid: p.name for all_ in read_back.values() for p in all_})
    return found


def test_needed_state_is_the_processes_of_the_events_and_their_ancestors(tmp_path: Path) -> None:
    """Process 1 and its parent 7, not 2, and one snapshot at the start."""
    source = planted(tmp_path / "in.kcap")

    run("filter", "-w", "ps.pid = 1", source, "-o", tmp_path / "out.kcap")

    assert told(tmp_path / "out.kcap") == [{1: "mine", 7: "parent"}]


def lives(rows: list[dict[str, Any]], *before: Side) -> Batch:
    """Events of processes."""
    numbered = [{**row, "ts": NS + i, "event": row["action"]} for i, row in enumerate(rows)]
    batch = make_batch(numbered, *before)
    ords = Column(TypeClass.I64, pa.array(np.arange(batch.rows)))
    return batch.adding({"ord": ords, "origin": constant(TypeClass.STR, HASHED, batch.rows)})


def starts(pid: int, name: str, start_ns: int, **more: Any) -> dict[str, Any]:
    """A process is seen, with what is known of it."""
    more = {"process_name": name, "process_start_ns": start_ns, **more}
    return event("process_rundown", pid, **more)


AGAIN = [
    starts(10, "first", 10**9),
    event("file_open", 10),
    event("process_stop", 10),
    starts(10, "second", 6 * 10**9),
    event("file_open", 10),
]
"""A process id that comes again."""


def test_a_process_id_that_comes_again_has_a_snapshot_of_its_own(tmp_path: Path) -> None:
    """The state at the second use is that of the second process."""
    source = saved(tmp_path / "in.kcap", [lives(AGAIN, HOST)])

    result = run("filter", "-w", "evt.name = 'file_open'", source, "-o", tmp_path / "out.kcap")

    assert result.exit_code == 0, result.output
    assert told(tmp_path / "out.kcap") == [{10: "first"}, {10: "second"}]
    batches, _ = read((tmp_path / "out.kcap").read_bytes())
    assert [b.rows for b in batches if b.rows] == [1, 1]


def test_a_process_that_an_event_of_the_copy_brings_up_is_not_there_before(tmp_path: Path) -> None:
    """Nothing is in the start's state that the copy's own events tell."""
    source = saved(tmp_path / "in.kcap", [lives(AGAIN[:2], HOST)])

    run("filter", "-w", "ps.pid = 10", source, "-o", tmp_path / "out.kcap")

    assert told(tmp_path / "out.kcap") == []


def test_processes_that_find_no_room_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that would be too large lacks processes; that is said, and leads to exit code 3."""
    monkeypatch.setattr(needed, "BYTES_MAX", 600)
    source = planted(tmp_path / "in.kcap")

    result = run("filter", "-w", "ps.pid = 1", source, "-o", tmp_path / "out.kcap")

    assert result.exit_code == 3
    assert "1 process found no room in the state" in result.stderr
    assert told(tmp_path / "out.kcap") == [{1: "mine"}]
    assert "found no room" in run("info", tmp_path / "out.kcap").stdout


def test_snapshots_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process id comes again too often, the last snapshot stays, and that is said."""
    monkeypatch.setattr(needed, "SNAPSHOTS_MAX", 1)
    again = [*AGAIN, event("process_stop", 10), starts(10, "third", 12 * 10**9)]
    source = saved(tmp_path / "in.kcap", [lives([*again, event("file_open", 10)], HOST)])

    result = run("filter", "-w", "evt.name = 'file_open'", source, "-o", tmp_path / "out.kcap")

    assert result.exit_code == 3
    assert told(tmp_path / "out.kcap") == [{10: "first"}, {10: "second"}]


PIDS = st.integers(10, 13)
STEPS = st.lists(
    st.one_of(
        st.builds(starts, PIDS, st.sampled_from("abc"), st.integers(1, 3).map(lambda n: n * 10**9)),
        st.builds(starts, PIDS, st.just("child"), st.just(4 * 10**9), ppid=PIDS),
        st.builds(fork, PIDS, PIDS, st.integers(5, 9).map(lambda n: n * 10**9)),
        st.builds(lambda pid: event("process_stop", pid), PIDS),
        st.builds(lambda pid: event("file_open", pid), PIDS),
        st.builds(lambda pid, ppid: event("file_open", pid, ppid=ppid), PIDS, PIDS),
    ),
    max_size=25,
)


class _Chosen:
    """A stage that keeps the events of a name."""

    def process(self, batch: Batch) -> Batch:
        return batch.take(
            np.array(
                [i for i, a in enumerate(batch.array("action").to_pylist()) if a == "file_open"],
                np.int32,
            )
        )


def gathered(batches: list[Batch]) -> list[tuple[int, dict[int, Process]]]:
    """The snapshots for the opened files of a stream."""
    found = Needed()
    source = Given(batches)
    Pipeline(source, [found], state=found.state, stages=[found, _Chosen()]).run()
    return [
        (
            at,
            {
                p.pid: p
                for all_ in processes.from_batch(s.tables["processes"]).values()
                for p in all_
            },
        )
        for at, s in found.snapshots()
    ]


@given(STEPS, st.lists(st.integers(0, 25), max_size=5))
@settings(max_examples=60, deadline=None)
def test_who_is_needed_depends_on_the_events_alone(
    steps: list[dict[str, Any]], cuts: list[int]
) -> None:
    """However the stream is cut, the snapshots are what following single events tells."""
    whole = lives(steps, HOST) if steps else Batch(0, {}, (HOST,))
    singly = divided(whole, list(range(25)))

    found = gathered(divided(whole, cuts))

    assert found == gathered(singly)
    state = State()
    held: dict[int, Process] = {}
    expected: dict[int, Process] = {}
    for batch in singly:
        state.update(batch)
        for row in batch.to_pylist():
            for pid in (row["pid"], row.get("ppid")) if row["action"] == "file_open" else ():
                for known in _line(state, pid, held):
                    expected.setdefault(known.pid, known)
    first: dict[int, Process] = {}
    for _, table in found:
        first = {**table, **first}
    assert first == expected


def _line(state: State, pid: Any, held: dict[int, Process]) -> Iterator[Process]:
    """A process and its ancestors, up to one that is known already."""
    wanted = None
    while (known := None if pid is None else state.process(pid)) is not None:
        mine = held.get(known.pid)
        if wanted not in {None, known.process_key}:
            return
        if mine is not None and mine.process_key == known.process_key:
            return
        held[known.pid] = known
        yield known
        pid, wanted = known.ppid, known.parent_key


def test_a_pipe_is_read_twice_too(tmp_path: Path) -> None:
    """From standard input comes the copy that comes from a file."""
    source = planted(tmp_path / "in.kcap")
    words = ["--canonical", "-w", "ps.pid = 1", "-o"]
    run("filter", source, *words, tmp_path / "file.kcap")

    piped = run("filter", "-", *words, tmp_path / "pipe.kcap", input=source.read_bytes())

    assert piped.exit_code == 0, piped.output
    assert (tmp_path / "pipe.kcap").read_bytes() == (tmp_path / "file.kcap").read_bytes()
    assert b"kept bytes" in uncovered((tmp_path / "pipe.kcap").read_bytes())


def test_in_a_shell(tmp_path: Path) -> None:
    """A real pipe on both sides; the copy is private."""
    planted(tmp_path / "in.kcap")
    os.umask(0o022)

    done = shell("cat in.kcap | kcap filter - -w 'ps.pid = 1' -o - | kcap info -", tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"filtered 3 events" in done.stdout
    assert run("filter", tmp_path / "in.kcap", "-o", tmp_path / "out.kcap").exit_code == 0
    assert stat.S_IMODE((tmp_path / "out.kcap").stat().st_mode) == 0o600


def test_times_and_numbers(tmp_path: Path) -> None:
    """--start, --end and -n choose as cat chooses; a copy that ends early says so."""
    source = saved(tmp_path / "in.kcap", [make_events(100)])
    bounds = ["--start", str(NS + 20_000), "--end", str(NS + 60_000), "-n", "13"]

    result = run("filter", *bounds, source, "-o", tmp_path / "out.kcap")

    assert result.exit_code == 0, result.output
    copied = run("cat", "--format", "jsonl", tmp_path / "out.kcap").stdout
    assert copied == run("cat", "--format", "jsonl", *bounds, source).stdout
    assert copied.count("\n") == 13
    assert "ends at a number of events" in run("info", tmp_path / "out.kcap").stdout


def test_a_number_of_events_counts_no_state_records(tmp_path: Path) -> None:
    """-n with --state all gives that many events, and all state records."""
    source = planted(tmp_path / "in.kcap")

    run("filter", "-n", "7", "--state", "all", source, "-o", tmp_path / "out.kcap")

    batches, _ = read((tmp_path / "out.kcap").read_bytes())
    assert sum(b.rows for b in batches) == 8
    assert sum(without_state(b).rows for b in batches) == 7


def test_damage_in_the_input_is_said(tmp_path: Path) -> None:
    """A damaged chunk leads to exit code 3, and the copy knows of it."""
    source = saved(tmp_path / "in.kcap", [make_events(300)], chunk_rows=100)
    data = bytearray(source.read_bytes())
    entry = opened(bytes(data)).index().table[1]  # type: ignore[union-attr]
    data[int(entry["offset"]) + int(entry["length"]) // 2] ^= 1
    source.write_bytes(data)

    result = run("filter", "-w", "file.path = '/tmp/3'", source, "-o", tmp_path / "out.kcap")

    assert result.exit_code == 3
    assert "damaged" in result.stderr
    assert "damaged" in run("info", tmp_path / "out.kcap").stdout


@pytest.mark.parametrize("words", [["-w", "ps.nme = 'x'"], ["-w", "ps.name ="], []])
def test_bad_usage_writes_nothing(tmp_path: Path, words: list[str]) -> None:
    """A filter that is none, or no output, is a usage error."""
    source = saved(tmp_path / "in.kcap", [make_events(5)])

    output = ["-o", str(tmp_path / "o.kcap")] if words else []

    result = run("filter", *words, source, *output)

    assert result.exit_code == 2
    assert not (tmp_path / "o.kcap").exists()


def test_an_existing_copy_stays(tmp_path: Path) -> None:
    """Without --force nothing is replaced."""
    source = saved(tmp_path / "in.kcap", [make_events(5)])
    (tmp_path / "out.kcap").write_bytes(b"precious")

    result = run("filter", source, "-o", tmp_path / "out.kcap")

    assert result.exit_code == 1
    assert (tmp_path / "out.kcap").read_bytes() == b"precious"
    assert run("filter", "--force", source, "-o", tmp_path / "out.kcap").exit_code == 0


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("scap/full_capture.scap", "evt.name = 'open'"),
        ("scap/full_capture.scap", "ps.name contains 's' and not evt.category = 'file'"),
        ("tracee/tracee_event_dump_2022-10.jsonl.gz", "ps.name contains 's'"),
        ("fibratus/v1.6.0-test.kcap", "ps.parent.name = 'go.exe' and evt.category = 'file'"),
    ],
)
def test_real_captures(data: Any, tmp_path: Path, name: str, where: str) -> None:
    """On the copy of a foreign capture a filter finds what it found in the input, with names."""
    source, out = data(name), tmp_path / "out.kcap"

    result = run("filter", "-w", where, source, "-o", out)

    assert result.exit_code == run("cat", source).exit_code, result.output
    shown = run("cat", "-w", where, source).stdout
    assert shown.count("\n") > 10
    assert run("cat", "-w", where, out).stdout == shown
    assert run("cat", out).stdout == shown
