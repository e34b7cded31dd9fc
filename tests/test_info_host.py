"""What a capture says of its host: tables that are kept, copied, and shown."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cli_support import run
from support import capture, make_events, opened

from kcap.model.batch import EMPTY
from kcap.model.side import Snapshot, SourceInfo
from kcap.readers.live.baseline import Baseline, take
from kcap.state import State

HERE = SourceInfo("kcap-bpf", host="here", boot_id="boot", origin="00" * 16)


@pytest.fixture(scope="module")
def now() -> Baseline:
    """The host as it is."""
    return take(HERE)


def recorded(taken: Baseline) -> bytes:
    """A capture of a recording with this baseline, and events."""
    return capture([make_events(30).with_before(taken.sides())])


def test_a_capture_keeps_every_table(now: Baseline) -> None:
    """What is written is read, and verifies; the state follows what it knows."""
    data = recorded(now)
    (found,) = [s for b in opened(data).batches() for s in b.before if isinstance(s, Snapshot)]

    assert {n: t.to_pylist() for n, t in found.tables.items()} == {
        n: t.to_pylist() for n, t in now.tables.items()
    }
    state = State()
    state.update(EMPTY.with_before(now.sides()))
    assert state.process(os.getpid()) is not None
    assert state.descriptor(os.getpid(), 0) is not None


def test_copies_of_whole_recordings_keep_the_tables(now: Baseline, tmp_path: Path) -> None:
    """A merged capture has those of each host; a repaired one is the same; a filtered one none."""
    other = take(SourceInfo("kcap-bpf", host="there", boot_id="other boot", origin="11" * 16))
    (tmp_path / "a.kcap").write_bytes(recorded(now))
    (tmp_path / "b.kcap").write_bytes(recorded(other))
    both = tmp_path / "both.kcap"
    assert run("merge", tmp_path / "a.kcap", tmp_path / "b.kcap", "-o", both).exit_code == 0
    again = tmp_path / "again.kcap"
    assert run("merge", both, "-o", again).exit_code == 0

    for file in (both, again):
        hosts = json.loads(run("info", "--host", "--json", file).stdout)["hosts"]
        assert sorted(one["host"] for one in hosts) == ["here", "there"]
        for one in hosts:
            assert len(one["tables"]["mounts"]) == now.tables["mounts"].rows
            assert one["tables"]["interfaces"]
    assert run("recover", both, "-o", tmp_path / "r.kcap").exit_code == 0
    assert (tmp_path / "r.kcap").read_bytes() == both.read_bytes()
    some = ("filter", tmp_path / "a.kcap", "-w", "not ps.pid = 99", "-o", tmp_path / "f.kcap")
    assert run(*some).exit_code == 0
    filtered = opened((tmp_path / "f.kcap").read_bytes()).batches()
    tables = [set(s.tables) for b in filtered for s in b.before if isinstance(s, Snapshot)]
    assert all("mounts" not in names for names in tables), "no event refers to them"


def test_info_shows_the_host(tmp_path: Path) -> None:
    """As text and as JSON, of a file and of a stream; terminal codes of the host are escaped."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(b"ev\x1b[2Jil:x:0:0::/:/bin/sh\n")
    (tmp_path / "etc/ld.so.preload").write_text("/lib/evil.so\n")
    told = {"case": "C-12", "operator": "ann", "note": "first look"}
    taken = take(HERE, etc=str(tmp_path / "etc"), recording=told)
    file = tmp_path / "a.kcap"
    file.write_bytes(recorded(taken))

    shown = run("info", "--host", file)
    assert shown.exit_code == 0
    for line in (
        "host           here",
        "ld.so.preload  /lib/evil.so",
        "case           C-12",
        "operator       ann",
        "users (1)",
    ):
        assert line in shown.stdout
    assert "\x1b" not in shown.stdout
    assert "127.0.0.1/8" in shown.stdout
    assert run("info", "--host", "-", input=file.read_bytes()).stdout == shown.stdout

    (one,) = json.loads(run("info", "--host", "--json", file).stdout)["hosts"]
    assert one["details"]["note"] == "first look"
    assert one["tables"]["users"] == [
        {"uid": 0, "name": "ev\x1b[2Jil", "gid": 0, "home": "/", "shell": "/bin/sh"}
    ]
    assert run("info", "--host", "--hash", file).exit_code == 2


def test_info_of_a_capture_without_a_host(tmp_path: Path) -> None:
    """An import has no tables of the host, and says so; a damaged STATE is damage."""
    file = tmp_path / "a.kcap"
    file.write_bytes(capture())
    shown = run("info", "--host", file)
    assert shown.exit_code == 0
    assert "no tables of the host" in shown.stdout
    file.write_bytes(capture([make_events(3)]))
    assert "nothing is known of a host" in run("info", "--host", file).stdout

    data = bytearray(capture())
    states = (opened(bytes(data)).footer.totals)["states"]  # type: ignore[union-attr]
    data[states[0][0] + 60] ^= 0xFF
    file.write_bytes(data)
    shown = run("info", "--host", file)
    assert shown.exit_code == 3
    assert "STATE" in shown.stderr


@pytest.mark.root
def test_a_recording_says_who_made_it_and_why(tmp_path: Path) -> None:
    """Case, operator and note, the filter and the command; what is too long is refused."""
    told = ("--case", "C-12", "--operator", "ann", "--note", "before the reboot")
    words = ("record", "--source", "proc", "-o", tmp_path / "a.kcap", "--duration", "0.3")
    done = run(*words, *told, "-w", "evt.name = 'exec'")
    assert done.exit_code == 0, done.output

    (one,) = json.loads(run("info", "--host", "--json", tmp_path / "a.kcap").stdout)["hosts"]
    details = one["details"]
    assert [details[name] for name in ("case", "operator", "note", "filter")] == [
        "C-12",
        "ann",
        "before the reboot",
        "evt.name = 'exec'",
    ]
    assert {"command_line", "kcap", "kernel", "cpus"} <= set(details)
    assert {"mounts", "interfaces", "users"} <= set(one["tables"])
    too_long = run("record", "-o", tmp_path / "b.kcap", "--note", "x" * 4097)
    assert too_long.exit_code == 2
    assert "more than 4,096 characters" in too_long.stderr


def test_queries_see_the_host(now: Baseline, tmp_path: Path) -> None:
    """Every table of the snapshot is one under 'host', of all captures; a damaged one is a loss."""
    pytest.importorskip("duckdb")
    other = take(SourceInfo("kcap-bpf", host="there", boot_id="other boot", origin="11" * 16))
    files = [tmp_path / "a.kcap", tmp_path / "b.kcap"]
    for file, taken in zip(files, (now, other), strict=True):
        file.write_bytes(recorded(taken))

    for name, table in now.tables.items():
        sql = f"SELECT machine, count(*) AS n FROM host.{name} GROUP BY ALL ORDER BY ALL"
        done = run("query", "-f", "jsonl", sql, *files)
        assert done.exit_code == 0, done.output
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert [row["machine"] for row in found] == ["boot", "other boot"]
        assert found[0]["n"] == table.rows
    whole = run("query", "--json", "FROM host.interfaces", files[0])
    assert "127.0.0.1/8" in whole.stdout
    assert run("query", "FROM host.nothing", files[0]).exit_code == 1

    data = bytearray(files[0].read_bytes())
    footer = opened(bytes(data)).footer
    assert footer is not None
    data[footer.totals["states"][0][0] + 60] ^= 0xFF
    files[0].write_bytes(data)
    damaged = run("query", "FROM host.users", *files)
    assert damaged.exit_code == 3
    assert "damaged" in damaged.stderr
