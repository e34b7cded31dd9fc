"""The reader of .scap files: what comes out of whole files, through it and through the verbs."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from cli_support import lines_of, run
from scap_support import (
    Stream,
    block,
    event,
    i64,
    machine,
    opened,
    process,
    process_list,
    scap,
    section,
    u32,
    user,
)

import kcap
from kcap.model.batch import concat
from kcap.model.side import Loss, Snapshot, SourceInfo
from kcap.readers import scap_tables
from kcap.readers.scap import ScapReader

READ, CLOSE = 6, 4
SIMPLE = scap(
    process_list(9, process(9, tid=100, pid=100, ptid=1, comm="cat", exe="/bin/cat")),
    opened("/etc/passwd", ts=1000),
    event(READ, i64(3), u32(8), ts=1010),
    event(READ + 1, i64(8), b"root:x:0", ts=1030),
    event(CLOSE, i64(3), ts=1040),
)


def reader(data: bytes, **options: Any) -> ScapReader:
    """A reader of some bytes."""
    return ScapReader(io.BytesIO(data), "x.scap", **options)


def rows(data: bytes, **options: Any) -> list[dict[str, Any]]:
    """All events of a file."""
    return concat(list(reader(data, **options).batches())).to_pylist()


def sides(data: bytes, kind: type, **options: Any) -> list[Any]:
    """What stands beside the events, of one kind."""
    batches = reader(data, **options).batches()
    return [side for batch in batches for side in batch.before if isinstance(side, kind)]


def test_calls_and_halves() -> None:
    """A read is one event, the open's exit and the close's enter are halves; in file order."""
    found = rows(SIMPLE)

    assert [(r["event"], r.get("direction"), r["seq"]) for r in found] == [
        ("open", "exit", 1),
        ("read", None, 3),
        ("close", "enter", 4),
    ]
    assert [r["ord"] for r in found] == [0, 2, 3]
    assert [r["direction"] for r in rows(SIMPLE, raw_pairs=True)] == [
        "exit",
        "enter",
        "exit",
        "enter",
    ]


def test_identity_is_the_same_however_calls_are_kept() -> None:
    """A joined call is the event that its exit is: same origin, same place."""
    pairs = {(r["origin"], r["ord"]) for r in rows(SIMPLE, raw_pairs=True)}

    assert {(r["origin"], r["ord"]) for r in rows(SIMPLE)} < pairs


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
def test_compressed_files(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """gzip needs no suffix; the origin is that of the content."""
    path = tmp_path / "capture"
    path.write_bytes(pack(SIMPLE))

    assert lines_of("cat", path)[1]["arg_data__bin"] == "cm9vdDp4OjA="
    assert {line["origin"] for line in lines_of("cat", path)} == {rows(SIMPLE)[0]["origin"]}


def test_the_machine() -> None:
    """The source tells of the machine, and the snapshot what ran on it; both before the events."""
    batches = list(reader(SIMPLE).batches())

    source, snapshot = batches[0].before[:2]
    assert isinstance(source, SourceInfo)
    assert (source.host, source.collector) == ("box", "scap")
    assert source.details["cpus"] == 4
    assert isinstance(snapshot, Snapshot)
    (told,) = snapshot.tables["processes"].to_pylist()
    assert (told["pid"], told["name"], told["machine"]) == (100, "cat", "box")


def test_a_repeated_section() -> None:
    """A second file behind the first: numbers go on, its machine and processes are others."""
    other = section() + machine("other") + process_list(9, process(9, tid=7, pid=7, comm="sh"))
    data = SIMPLE + other + opened("/b", tid=7)

    found = rows(data)

    assert [(r["event"], r["seq"], r["host"]) for r in found] == [
        ("open", 1, "box"),
        ("read", 3, "box"),
        ("close", 4, "box"),
        ("open", 5, "other"),
    ]
    assert [s.host for s in sides(data, SourceInfo)] == ["box", "other"]
    assert len({r["source"] for r in found}) == 2
    assert [s.tables["processes"].to_pylist()[0]["pid"] for s in sides(data, Snapshot)] == [100, 7]


def test_an_unknown_block_starts_no_section() -> None:
    """A block that nobody knows between the halves of a call changes neither call nor state."""
    halves = [event(READ, i64(3), u32(8)), event(READ + 1, i64(8), b"x")]
    data = scap(process_list(9, process(9)), halves[0], block(0x301, b"new"), halves[1])

    assert [r.get("direction") for r in rows(data)] == [None]
    assert len(sides(data, Snapshot)) == 1
    assert sides(data, SourceInfo)[-1].details["unknown_blocks"] == {"0x301": 1}


def test_state_beyond_the_limit_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that found no room are counted beside the snapshot of those that did."""
    monkeypatch.setattr(scap_tables, "TASKS_MAX", 2)
    data = scap(process_list(9, *[process(9, tid=i, pid=i) for i in range(5)]), opened("/a"))

    assert [(s.kind, s.count) for s in sides(data, Loss)] == [("skipped", 3)]
    assert len(sides(data, Snapshot)[0].tables["processes"].to_pylist()) == 2


def test_halves_of_different_sections_stay_apart() -> None:
    """An enter at the end of one file is not joined with an exit at the start of the next."""
    data = scap(event(READ, i64(3), u32(8))) + scap(event(READ + 1, i64(8), b"x"))

    assert [r["direction"] for r in rows(data)] == ["enter", "exit"]


def test_unknown_types_are_carried_and_counted(tmp_path: Path) -> None:
    """Their parameters stay as bytes, and the source says how many there were."""
    path = tmp_path / "new.scap"
    path.write_bytes(scap(*(event(5000 + i % 2, b"\x01\x02") for i in range(3))))

    found = lines_of("cat", path)

    assert [r["event"] for r in found] == ["unknown_5000", "unknown_5001", "unknown_5000"]
    assert {r["arg_0__bin"] for r in found} == {"AQI="}
    last = sides(path.read_bytes(), SourceInfo)[-1]
    assert last.details["unknown_types"] == {"5000": 2, "5001": 1}
    result = run("import", path, "-o", tmp_path / "new.kcap")
    assert result.exit_code == 0
    info = json.loads(run("info", tmp_path / "new.kcap", "--json").stdout)
    assert info["types"] == {"unknown_5000": 2, "unknown_5001": 1}


def test_a_file_without_events() -> None:
    """The tables alone are a capture of nothing."""
    data = scap(process_list(9, process(9, tid=1, pid=1)))

    assert rows(data) == []
    assert [s.host for s in sides(data, SourceInfo)] == ["box"]
    assert len(sides(data, Snapshot)) == 1
    assert sides(data, Loss) == []


def test_events_of_a_pipe_come_as_they_arrive() -> None:
    """However the bytes arrive, the events are the same."""
    for step in (1, 7, 100):
        stream = Stream(SIMPLE, step)
        found = concat(list(ScapReader(stream, "-").batches())).to_pylist()

        assert found == rows(SIMPLE)


def test_users_have_names(tmp_path: Path) -> None:
    """The user list of the file gives the names, not the host that reads it."""
    path = tmp_path / "users.scap"
    data = scap(
        user_list(user(2, 4711, "zoe")),
        process_list(9, process(9, tid=100, pid=100, comm="cat", uid=4711)),
        opened("/a"),
    )
    path.write_bytes(data)

    told = sides(data, Snapshot)[0].tables["processes"].to_pylist()[0]

    assert (told["uid"], told["user"]) == (4711, "zoe")


def user_list(*entries: bytes) -> bytes:
    """A block of users."""
    return block(0x220, b"".join(entries))


def test_a_pcapng_file_is_none_of_ours(tmp_path: Path) -> None:
    """It starts alike, but what follows is an interface description."""
    path = tmp_path / "x.pcapng"
    path.write_bytes(section(1, 0) + block(1, bytes(8)))

    result = run("cat", path)

    assert result.exit_code == 0, "it is read as what it is: packets, of which there are none"
    assert result.stdout == ""
    assert run("cat", "--raw-pairs", path).exit_code == 1


def test_only_scap_has_pairs(foreign: Path, closed: Path, tmp_path: Path) -> None:
    """--raw-pairs is refused where calls are one event anyway."""
    for path in (foreign, closed):
        result = run("cat", path, "--raw-pairs")
        assert result.exit_code == 1
        assert "no pairs of enter and exit" in result.stderr
    path = tmp_path / "x.scap"
    path.write_bytes(SIMPLE)
    assert len(lines_of("cat", path, "--raw-pairs")) == 4
    assert run("import", path, "--raw-pairs", "-o", tmp_path / "x.kcap").exit_code == 0
    with kcap.open(tmp_path / "x.kcap") as capture:
        assert capture.to_arrow(["ord"]).num_rows == 4


def test_an_import_can_be_repeated(tmp_path: Path, data: Callable[[str], Path]) -> None:
    """Equal bytes, and joined calls are shown as the file itself is."""
    path = data("scap/curl_google.scap")
    for name in ("a.kcap", "b.kcap"):
        done = run("import", path, "-o", tmp_path / name, "--canonical")
        assert done.exit_code == 0

    assert (tmp_path / "a.kcap").read_bytes() == (tmp_path / "b.kcap").read_bytes()
    assert lines_of("cat", tmp_path / "a.kcap") == lines_of("cat", path)


def test_lines_end_with_the_result(tmp_path: Path) -> None:
    """What file a call was about and what it gave stand behind its parameters."""
    path = tmp_path / "x.scap"
    calls = [opened("/etc/passwd"), event(CLOSE, i64(3)), event(CLOSE + 1, i64(-9))]
    path.write_bytes(scap(process_list(9, process(9, tid=100, pid=100)), *calls))

    first, second = run("cat", path).stdout.splitlines()

    assert first.endswith("name➜ /etc/passwd, fd_name➜ /etc/passwd, retval➜ 3)")
    assert second.endswith("(fd➜ 3, fd_name➜ /etc/passwd, retval➜ -9)")
