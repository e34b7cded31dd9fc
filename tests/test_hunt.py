"""``kcap hunt``: what is found is said in one order, and what can't be looked into is said, too."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import run, shell
from support import FILE_ID, SOURCE, capture, opened
from test_state import make_batch
from tracee_support import DNS, OPENED

from kcap.format import scan
from kcap.format.reader import CaptureReader
from kcap.format.record import Kind
from kcap.format.writer import CaptureWriter
from kcap.hunt.search import is_searched
from kcap.model.batch import Batch
from kcap.model.builder import Field, RecordBuilder
from kcap.model.classes import TypeClass
from kcap.model.side import Snapshot

START = 1_700_000_000_000_000_000
C2, LOADER = "192.0.2.7", "ab" * 32
ROWS: list[dict[str, Any]] = [
    {"event": "execve", "exe": "/tmp/.x", "process_name": ".x", "user": "root"},
    {"event": "connect", "fd_name": f"10.0.0.5:4711->{C2}:443", "process_name": ".x"},
    {"event": "connect", "fd_name": "10.0.0.5:4712->192.0.2.8:443"},
    {"event": "sendto", "fd_name": f"10.0.0.5:4711->{C2}:443", "cmdline": f"nc {C2} 443"},
]


def rows(*, at: int = 0) -> list[dict[str, Any]]:
    """Events a second apart."""
    made = []
    for i, row in enumerate(ROWS, at):
        said = {"ts": START + i * 10**9, "ord": i, "pid": 40 + i - at, "kind": "event"}
        made.append({**said, **row})
    return made


@pytest.fixture
def ioc(tmp_path: Path) -> Path:
    """A file of indicators."""
    path = tmp_path / "ioc.txt"
    path.write_text(f"/tmp/.x\n{C2} # C2\n192.0.2.0/24\nevil.example\n")
    return path


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A capture with something to find."""
    path = tmp_path / "host.kcap"
    path.write_bytes(capture([make_batch(rows())], chunk_rows=2))
    return path


def hunt(*words: str | Path, code: int = 0) -> list[dict[str, Any]]:
    """The hits of a run, from JSON."""
    result = run("hunt", "--json", *words)
    assert result.exit_code == code, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def brief(hits: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(h["ord"], h["column"], h["indicator"]) for h in hits]


FOUND = [
    (0, "exe", "/tmp/.x"),
    (1, "fd_name", C2),
    (1, "fd_name", "192.0.2.0/24"),
    (2, "fd_name", "192.0.2.0/24"),
    (3, "cmdline", C2),
    (3, "fd_name", C2),
    (3, "cmdline", "192.0.2.0/24"),
    (3, "fd_name", "192.0.2.0/24"),
]


def test_lines(host: Path, ioc: Path) -> None:
    """A hit is a line: where, when, what, who, which value, which indicator and its comment."""
    result = run("hunt", "--ioc", ioc, host)
    lines = result.stdout.splitlines()
    assert len(lines) == len(FOUND)
    assert lines[0].split("  ") == [
        *(str(host), "2023-11-14T22:13:20.000000000Z", "execve", ".x(40)", "root"),
        *("exe=/tmp/.x", "path /tmp/.x"),
    ]
    assert lines[1].split("  ")[3:] == [
        *(".x(41)", "-", f"fd_name=10.0.0.5:4711->{C2}:443", f"ip {C2}", "# C2"),
    ]
    assert result.stderr == "kcap: 8 hits: 3 of 4 indicators, in 1 of 1 capture\n"


def test_json(host: Path, ioc: Path) -> None:
    """An object says all that a line says, and where the indicator was given."""
    hits = hunt("--ioc", ioc, host)
    assert brief(hits) == FOUND
    assert hits[1] == {
        "capture": str(host),
        "ts": "2023-11-14T22:13:21.000000000Z",
        "ts_ns": START + 10**9,
        "ord": 1,
        "event": "connect",
        "kind": "event",
        "pid": 41,
        "process_name": ".x",
        "user": None,
        "column": "fd_name",
        "value": f"10.0.0.5:4711->{C2}:443",
        "part": C2,
        "indicator": C2,
        "type": "ip",
        "label": "C2",
        "ioc_file": str(ioc),
        "ioc_line": 2,
    }


def test_order(tmp_path: Path, host: Path, ioc: Path) -> None:
    """Captures come as given, in each the events in order, of one event the indicators as given."""
    other = tmp_path / "other.kcap"
    other.write_bytes(capture([make_batch(rows(at=100))]))
    hits = hunt("--ioc", ioc, other, host)
    assert [h["capture"] for h in hits] == [str(other)] * 8 + [str(host)] * 8
    assert brief(hits)[8:] == FOUND
    assert [h["ord"] for h in hits[:8]] == [100 + n for n, _, _ in FOUND]
    reverse = tmp_path / "reverse.txt"
    reverse.write_text(f"192.0.2.0/24\n{C2}\n")
    second = tmp_path / "second.txt"
    second.write_text("/tmp/.x\n")
    hits = hunt("--ioc", reverse, "--ioc", second, host)
    assert [h["indicator"] for h in hits if h["ord"] == 1] == ["192.0.2.0/24", C2]
    assert hunt("--ioc", ioc, other, host, "-n", "11") == hunt("--ioc", ioc, other, host)[:11]
    assert hunt("--ioc", ioc, host, "-n", "0") == []


def test_interval(host: Path, ioc: Path) -> None:
    """With an interval only its events count."""
    start, end = str(START + 10**9), str(START + 3 * 10**9)
    hits = hunt("--ioc", ioc, host, "--start", start, "--end", end)
    assert brief(hits) == FOUND[1:4]
    assert brief(hunt("--ioc", ioc, host, "--start", end)) == FOUND[4:]


def test_summary(tmp_path: Path, host: Path, ioc: Path) -> None:
    """A summary counts by indicator and capture, with the first and the last time."""
    other = tmp_path / "a.kcap"
    other.write_bytes(capture([make_batch(rows(at=50)[:2])]))
    found = hunt("--summary", "--ioc", ioc, host, other)
    assert [(f["indicator"], f["capture"], f["hits"], f["events"]) for f in found] == [
        *(("/tmp/.x", str(path), 1, 1) for path in (host, other)),
        *((C2, str(host), 3, 2), (C2, str(other), 1, 1)),
        *(("192.0.2.0/24", str(host), 4, 3), ("192.0.2.0/24", str(other), 1, 1)),
    ]
    assert [found[2][n] for n in ("first_ns", "last_ns")] == [START + n * 10**9 for n in (1, 3)]
    lines = run("hunt", "--summary", "--ioc", ioc, host, other).stdout.splitlines()
    assert lines[0].split() == ["events", "first", "last", "capture", "indicator"]
    assert lines[3].split()[-4:] == ["ip", C2, "#", "C2"]
    assert len(lines) == 7
    assert run("hunt", "--summary", "--ioc", ioc, host, "-n", "3").exit_code == 2


def test_nothing_found(host: Path, tmp_path: Path) -> None:
    """Where nothing is found nothing is printed, and that is no failure."""
    path = tmp_path / "none.txt"
    path.write_text("198.51.100.1\n")
    for more in ((), ("--summary",), ("--summary", "--json"), ("--exit-code",)):
        result = run("hunt", "--ioc", path, host, *more)
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr == "kcap: 0 hits: 0 of 1 indicator, in 0 of 1 capture\n"


def damaged(host: Path) -> Path:
    """A capture whose first chunk is damaged."""
    data = bytearray(host.read_bytes())
    index = opened(bytes(data)).index()
    assert index is not None
    data[int(index.table[0]["offset"]) + int(index.table[0]["length"]) - 20] ^= 1
    path = host.with_name("damaged.kcap")
    path.write_bytes(data)
    return path


def test_exit_codes(host: Path, ioc: Path, tmp_path: Path) -> None:
    """4 where something was found, if asked; 3 where nothing was, but not all could be read."""
    assert run("hunt", "--ioc", ioc, host, "--exit-code").exit_code == 4
    broken = damaged(host)
    result = run("hunt", "--json", "--ioc", ioc, broken)
    assert result.exit_code == 3
    assert brief([json.loads(line) for line in result.stdout.splitlines()]) == FOUND[3:]
    assert "damaged 2 events" in result.stderr
    assert run("hunt", "--ioc", ioc, broken, "--exit-code").exit_code == 4
    only = tmp_path / "only.txt"
    only.write_text("/tmp/none-of-it*\n")
    assert run("hunt", "--ioc", only, broken, "--exit-code").exit_code == 3


def test_bad_captures(host: Path, ioc: Path, tmp_path: Path) -> None:
    """One capture that can't be read ends the hunt; with --lenient the others are searched."""
    bad = tmp_path / "bad.kcap"
    bad.write_text("no capture")
    result = run("hunt", "--json", "--ioc", ioc, host, bad, host)
    assert (result.exit_code, len(result.stdout.splitlines())) == (1, 8)
    assert "bad.kcap: no capture that kcap can read" in result.stderr
    result = run("hunt", "--json", "--ioc", ioc, bad, host, "--lenient")
    assert (result.exit_code, len(result.stdout.splitlines())) == (3, 8)
    assert "bad.kcap was passed over" in result.stderr
    for some in ((bad,), (bad, tmp_path / "none")):
        result = run("hunt", "--ioc", ioc, *some, "--lenient")
        assert result.exit_code == 1
        assert "no capture that kcap can read" in result.stderr


def test_bad_indicators(host: Path, tmp_path: Path) -> None:
    """A line that is no indicator is named; with --lenient it is passed over, exit code 3."""
    path = tmp_path / "bad.txt"
    path.write_text(f"{C2}\n" + "nothing\n" * 7)
    result = run("hunt", "--ioc", path, host)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "bad.txt: 'nothing' is no indicator at line 2: expected" in result.stderr
    assert "--lenient" in result.stderr
    result = run("hunt", "--ioc", path, host, "--lenient")
    assert (result.exit_code, len(result.stdout.splitlines())) == (3, 3)
    assert "kcap: and 2 more" in result.stderr
    path.write_text("# none\n")
    result = run("hunt", "--ioc", path, host)
    assert result.exit_code == 1
    assert "there is no indicator in it" in result.stderr
    path.write_text(f"type,ioc\nmutex,x\nip,{C2}\n")
    result = run("hunt", "--ioc", path, host)
    assert result.exit_code == 0
    assert "not looked for: 1 mutex" in result.stderr
    for words in (("--ioc", "-"), ("--ioc", tmp_path / "none"), ("--ioc", tmp_path), ()):
        assert run("hunt", *words, host).exit_code in (1, 2)
    assert run("hunt", "--ioc", "-", host).exit_code == 2


def test_output(host: Path, ioc: Path, tmp_path: Path) -> None:
    """Hits go to a file that is whole or not there, and replaces none unasked."""
    target = tmp_path / "hits.jsonl"
    assert run("hunt", "--json", "--ioc", ioc, host, "-o", target).stdout == ""
    assert len(target.read_text().splitlines()) == 8
    assert run("hunt", "--ioc", ioc, host, "-o", target).exit_code == 1
    assert run("hunt", "--ioc", ioc, host, "-o", target, "--force", "-n", "1").exit_code == 0
    assert len(target.read_text().splitlines()) == 1


def test_long_and_strange_values(tmp_path: Path, ioc: Path) -> None:
    """Of a long value a line shows what is around the hit; nothing in it steers a terminal."""
    path = tmp_path / "long.kcap"
    long = "x " * 5000 + f"\x1b[2J {C2}" + " y" * 5000
    path.write_bytes(capture([make_batch([{"cmdline": long, "kind": "event"}])]))
    lines = run("hunt", "--ioc", ioc, path).stdout.splitlines()
    assert all(len(line) < 300 and C2 in line and "\x1b" not in line for line in lines)
    assert "…x x" in lines[0]
    assert hunt("--ioc", ioc, path)[0]["value"] == long


def table(found: list[dict[str, Any]]) -> Batch:
    """A table of a state."""
    builder = RecordBuilder()
    names = list(found[0])
    classes = [TypeClass.I64 if name == "pid" else TypeClass.STR for name in names]
    layout = builder.layout([Field(n, c) for n, c in zip(names, classes, strict=True)])
    for row in found:
        builder.add(layout, [row[name] for name in names])
    return builder.finish()


def test_what_was_before(tmp_path: Path, ioc: Path) -> None:
    """Connections that were open before the first event are found, once, with their process."""
    fds = table([{"pid": 7, "name": f"10.0.0.5:1->{C2}:443"}, {"pid": 8, "name": "/a"}])
    processes = table([{"pid": 7, "name": "ssh", "exe": "/tmp/.x"}])
    state = Snapshot({"fds": fds, "processes": processes})
    first, second = (make_batch(rows(at=at)[2:3]) for at in (0, 10))
    path = tmp_path / "state.kcap"
    sides = [first.with_before([SOURCE, state]), second.with_before([state])]
    path.write_bytes(capture(sides))
    hits = hunt("--ioc", ioc, path)
    said = [(h["event"], h["kind"], h["pid"], h["process_name"], h["indicator"]) for h in hits]
    assert said == [
        ("fds", "snapshot", 7, "ssh", C2),
        ("fds", "snapshot", 7, "ssh", "192.0.2.0/24"),
        ("processes", "snapshot", 7, "ssh", "/tmp/.x"),
        ("connect", "event", 40 + 2, None, "192.0.2.0/24"),
        ("connect", "event", 40 + 2, None, "192.0.2.0/24"),
    ]
    piped = shell(f"cat {path} | kcap hunt --json --ioc {ioc} -", tmp_path)
    assert [json.loads(line) for line in piped.stdout.splitlines()] == [
        {**hit, "capture": "-"} for hit in hits
    ]
    assert all(h["kind"] == "event" for h in hunt("--ioc", ioc, path, "--start", str(START)))
    data = bytearray(path.read_bytes())
    at = next(o for o, kind in records(bytes(data)) if kind == Kind.STATE)
    data[at + 40] ^= 1
    path.write_bytes(data)
    result = run("hunt", "--json", "--ioc", ioc, path)
    assert (result.exit_code, len(result.stdout.splitlines())) == (3, 5)
    assert "what was known before" in result.stderr


def records(data: bytes) -> list[tuple[int, int]]:
    found = opened(data).scanner().records()
    return [(r.offset, r.header.kind) for r in found if isinstance(r, scan.Record)]


def test_artifacts(tmp_path: Path) -> None:
    """Artifacts are found by hash and path; also those that a stream has."""
    out = io.BytesIO()
    writer = CaptureWriter(out, file_id=FILE_ID)
    manifest = writer.blob([b"MZ evil"], path="/tmp/dropper.exe", ord=3)
    writer.blob([b"good"], path="/bin/good", ord=4)
    writer.close()
    path, ioc = tmp_path / "blobs.kcap", tmp_path / "hashes.txt"
    path.write_bytes(out.getvalue())
    assert manifest.sha256 is not None
    ioc.write_text(f"{manifest.sha256.upper()}\ndropper.exe\n{'0' * 64}\n")
    hits = hunt("--ioc", ioc, path)
    assert [(h["event"], h["ord"], h["column"], h["value"]) for h in hits] == [
        ("artifact", 3, "sha256", manifest.sha256),
        ("artifact", 3, "path", "/tmp/dropper.exe"),
    ]
    assert hunt("--ioc", ioc, path, "--start", "2000-01-01T00:00:00Z") == []
    piped = shell(f"cat {path} | kcap hunt --ioc {ioc} -", tmp_path)
    expected = run("hunt", "--ioc", ioc, path).stdout.replace(str(path), "-")
    assert (piped.returncode, piped.stdout.decode()) == (0, expected)
    piped = shell(f"cat {path} | kcap hunt --start 2000-01-01 --ioc {ioc} -", tmp_path)
    assert (piped.returncode, piped.stdout) == (0, b"")
    damaged = bytearray(path.read_bytes())
    at = next(o for o, kind in records(bytes(damaged)) if kind == Kind.BLOB_MANIFEST)
    damaged[at + 40] ^= 1
    path.write_bytes(damaged)
    assert run("hunt", "--ioc", ioc, path).exit_code == 3
    assert shell(f"cat {path} | kcap hunt --ioc {ioc} -", tmp_path).returncode == 3


def test_foreign(tmp_path: Path, foreign: Path) -> None:
    """A foreign file gives the hits of its import."""
    ioc = tmp_path / "passwd.txt"
    ioc.write_text("/etc/passwd\n")
    made = tmp_path / "made.kcap"
    assert run("import", foreign, "-o", made).exit_code == 0
    hits = [h | {"capture": ""} for h in hunt("--ioc", ioc, foreign)]
    assert hits == [h | {"capture": ""} for h in hunt("--ioc", ioc, made)]
    assert [(h["column"], h["pid"]) for h in hits] == [
        ("arg_pathname", OPENED["hostProcessId"])
    ] * 2
    foreign.write_text(foreign.read_text() + "{broken\n" + foreign.read_text())
    assert run("hunt", "--ioc", ioc, foreign).exit_code == 1
    assert len(hunt("--ioc", ioc, foreign, "--lenient", code=3)) == 4


def test_all_vectors(fixtures: Path, ioc: Path) -> None:
    """Whatever is wrong with a capture, a hunt ends with what could be read or with its error."""
    ioc.write_text("/tmp/*\nexample.com\n::/0\n0.0.0.0/0\n*a*\n")
    codes: dict[str, set[int]] = {}
    for path in sorted(fixtures.glob("vectors/*/*.kcap")):
        result = run("hunt", "--json", "--ioc", ioc, path)
        assert "internal error" not in result.output, path
        codes.setdefault(path.parent.name, set()).add(result.exit_code)
    assert codes["valid"] == {0}
    assert codes["recoverable"] <= {0, 3}
    assert 3 in codes["recoverable"]
    assert codes["must_reject"] <= {0, 1, 3}


def test_real_captures(data: Callable[[str], Path], tmp_path: Path) -> None:
    """In real captures a hunt counts what a query counts."""
    made = tmp_path / "dns.kcap"
    assert run("import", data(DNS), "-o", made).exit_code == 0
    ioc = tmp_path / "ioc.txt"
    ioc.write_text("google.com\n172.31.75.171\n")
    found = {f["indicator"]: f["events"] for f in hunt("--summary", "--ioc", ioc, made)}
    texts = [f'CAST("{name}" AS VARCHAR)' for name in _text_columns(made)]
    for indicator, pattern in (
        ("google.com", r"(?i)(^|[^\w-])google\.com($|[^\w.-]|\.($|[^\w-]))"),
        ("172.31.75.171", r"\b172\.31\.75\.171\b"),
    ):
        held = " OR ".join(f"regexp_matches({text}, '{pattern}')" for text in texts)
        sql = f"SELECT count(*) FROM events WHERE {held}"
        assert int(run("query", sql, made, "--format", "csv").stdout.split()[1]) == found[indicator]


def _text_columns(path: Path) -> list[str]:
    with path.open("rb") as stream:
        columns = CaptureReader(stream, str(path)).columns()
    return [name for name, cls in columns.items() if is_searched(name, cls)]
