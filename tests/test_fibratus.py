"""Fibratus captures as users have them: all events, names, processes, and what they become."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import fibratus_support as fs
import numpy as np
import pytest
import zstandard
from cli_support import run

from kcap.errors import NotACaptureError
from kcap.model.batch import Batch
from kcap.opening import open_source
from kcap.readers.fibratus import FibratusReader
from kcap.state import State

Data = Callable[[str], Path]

SHOWN = {
    "CloseHandle": 16739,
    "CreateHandle": 16323,
    "RegOpenKey": 9924,
    "RegQueryValue": 5904,
    "RegQueryKey": 2263,
    "ReadFile": 2178,
    "WriteFile": 985,
    "OpenProcess": 891,
    "CloseFile": 678,
    "CreateFile": 529,
    "SetFileInformation": 259,
    "TerminateThread": 127,
    "Recv": 105,
    "UnloadImage": 102,
    "CreateThread": 86,
    "LoadImage": 70,
    "Send": 61,
    "EnumDirectory": 32,
    "RegSetValue": 14,
    "DeleteFile": 13,
    "RegCreateKey": 10,
    "OpenThread": 9,
    "Disconnect": 6,
    "Connect": 5,
    "TerminateProcess": 4,
    "RenameFile": 4,
    "CreateProcess": 2,
    "RegDeleteValue": 2,
    "RegDeleteKey": 1,
}
STATE = {
    "EnumImage": 9950,
    "RegKCBRundown": 3196,
    "EnumThread": 1821,
    "ReleaseFile": 495,
    "EnumProcess": 232,
    "FileRundown": 38,
    "RegCreateKCB": 26,
}


@pytest.fixture(scope="module")
def real(data: Data) -> list[Batch]:
    """The batches of the live capture."""
    with data(fs.REAL).open("rb") as stream:
        return list(FibratusReader(stream, "real").batches())


@pytest.fixture(scope="module")
def resolved(real: list[Batch]) -> tuple[State, list[Batch]]:
    """The same after an import's state has followed them, and that state."""
    state = State()
    return state, [state.update(batch, resolve=True) for batch in real]


def counts(batches: list[Batch], kind: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    for batch in batches:
        pairs = zip(batch.array("event").to_pylist(), batch.array("kind").to_pylist(), strict=True)
        found.update(name for name, of in pairs if of == kind)
    return dict(found)


def test_every_event_has_its_name(real: list[Batch]) -> None:
    """The live capture's events by name; records without one get their type's."""
    assert sum(batch.rows for batch in real) == 73_084
    assert counts(real, "event") == SHOWN
    assert counts(real, "state") == STATE
    assert fs.losses(real) == []


def test_handles_are_a_snapshot(real: list[Batch]) -> None:
    """The handle section comes before the first event, all of it."""
    (snapshot,) = [side for side in real[0].before if hasattr(side, "tables")]
    table = snapshot.tables["handles"]
    kinds = Counter(table.array("type").to_pylist())

    assert table.rows == 20_614
    assert kinds.most_common(3) == [("Event", 8272), ("Key", 2029), ("Semaphore", 1856)]
    assert set(table.array("machine").to_pylist()) == {"fv-az140-576"}


def test_most_events_have_a_known_process(resolved: tuple[State, list[Batch]]) -> None:
    """56,945 of 57,326 shown events; the others are of processes nobody described before."""
    _, batches = resolved
    shown, unknown = 0, Counter[int]()
    for batch in batches:
        event = np.array(batch.array("kind").to_pylist()) == "event"
        missing = event & ~batch.mask("process_name")
        shown += int(event.sum())
        unknown.update(batch.numpy("pid", -1)[missing].tolist())

    assert shown == 57_326
    assert unknown == {5496: 373, 3536: 7, 3756: 1}


def test_good_process_state_is_never_replaced_by_worse(
    resolved: tuple[State, list[Batch]],
) -> None:
    """The second enumeration's bogus state and the creator's on CreateProcess change nothing."""
    state, batches = resolved
    registry, created = state.process(100), state.process(7012)
    names = {n for b in batches for n in b.array("process_name").to_pylist()}

    assert registry is not None
    assert created is not None
    assert (registry.name, registry.ppid) == ("Registry", 4)
    assert (created.name, created.ppid, created.exit_code) == ("wsl.exe", 6540, -1)
    assert created.cmdline == "wsl -u root -e ls"
    assert created.exe is None  # the attached state is its creator's
    assert created.parent_key is not None
    assert not names & {".", ""}


def test_attached_state_tells_where_a_process_works(
    resolved: tuple[State, list[Batch]],
) -> None:
    """The working directory stands only in the attached state, where that is the process's own."""
    state, _ = resolved
    service = state.process(1508)

    assert service is not None
    assert service.cwd == "C:\\Windows\\system32\\"
    assert service.user == "NT AUTHORITY\\NETWORK SERVICE"


def test_attached_state_is_kept(real: list[Batch]) -> None:
    """234 states with 4,563 variables and 19,181 handles, however many a process has."""
    states = variables = handles = 0
    for row in fs.rows(real):
        states += "ext_ps_x2Epid__i64" in row
        for name, value in row.items():
            if name.startswith("ext_ps_x2Eenvs"):
                variables += len(json.loads(value))
            elif name.startswith("ext_ps_x2Ehandles"):
                handles += len(json.loads(value))

    assert (states, variables, handles) == (234, 4563, 19_181)


def test_times_and_numbers_stay_dirty(real: list[Batch]) -> None:
    """File order is kept: neither times nor numbers rise all the way."""
    ts = np.concatenate([batch.numpy("ts", 0) for batch in real])
    seq = np.concatenate([batch.numpy("seq", -1) for batch in real])
    ords = np.concatenate([batch.numpy("ord", -1) for batch in real])

    assert int((np.diff(ts) < 0).sum()) == 3452
    assert seq[:54].tolist() == sorted(seq[:54].tolist())
    assert int((seq[:200] == 0).sum()) == 54
    assert ords.tolist() == list(range(73_084))
    assert ts[0] == 1_660_600_588_343_374_400


def test_the_order_of_parameters_says_nothing(real: list[Batch]) -> None:
    """One shape for each set of parameters, not one for each order that a hash table gave."""
    shapes = {row["shape"] for row in fs.rows(real) if "ext_ps_x2Epid__i64" not in row}

    assert len(shapes) < 100


def test_the_source_says_what_the_events_are(real: list[Batch]) -> None:
    """Host, version, and at the end provider, number and description of every type."""
    first, last = fs.sources(real)[0], fs.sources(real)[-1]

    assert first.id == last.id
    assert first.host == "fv-az140-576"
    assert first.details["version"] == "1.0"
    assert last.details["events"]["OpenProcess"] == {
        "category": "process",
        "description": "Opens the process handle",
        "id": 5,
        "provider": "e02a841c-75a3-4fa7-afc8-ae09cf9b7f23",
    }
    assert set(last.details["events"]) == {*SHOWN, *STATE}


@pytest.mark.parametrize("name", fs.SMALL)
def test_small_captures_are_read_whole(name: str, data: Data) -> None:
    """100 CreateFile events, two handles; the one whose frame never ends is torn."""
    batches = fs.read(data(name).read_bytes())
    found = fs.rows(batches)
    kinds = [loss.kind for loss in fs.losses(batches)]

    assert [row["event"] for row in found] == ["CreateFile"] * 100
    assert {row["ext_meta__json"] for row in found} == {'{"foo":"bar","fooz":"barz"}'}
    assert fs.snapshots(batches)[0].tables["handles"].rows == 2
    assert kinds == (["torn"] if name == fs.CUT else [])
    assert found[0]["ts_raw"].startswith("20")  # a zone that is not UTC
    assert found[0]["arg_file_name"].endswith("user32.dll")


def test_the_same_events_whatever_the_compression(data: Data) -> None:
    """Decompressed or compressed anew, the origin and all rows are the same."""
    raw = data(fs.SMALL[4]).read_bytes()
    bare = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    want = fs.rows(fs.read(raw))

    assert fs.rows(fs.read(bare)) == want
    assert fs.rows(fs.read(zstandard.compress(bare, 19))) == want
    assert (
        fs.rows(fs.read(zstandard.compress(bare[:5000]) + zstandard.compress(bare[5000:]))) == want
    )


VERBS: dict[str, list[str]] = {
    "info": [],
    "cat": [],
    "tree": [],
    "timeline": [],
    "replay": [],
    "verify": [],
    "import": ["-o", "{out}"],
    "export": ["-o", "{out}.parquet"],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", fs.PRE_RELEASE)
def test_captures_of_before_1_0_are_refused(
    verb: str, name: str, data: Data, tmp_path: Path
) -> None:
    """Every verb ends with exit code 1 and one clear line."""
    more = [word.format(out=tmp_path / "out.kcap") for word in VERBS[verb]]
    result = run(verb, data(name), *more)

    assert result.exit_code == 1
    assert result.stdout == ""
    line, *hint = result.stderr.splitlines()
    assert line.startswith(f"kcap: {data(name)}: ")
    assert "capture" in line
    assert all(text.startswith("hint: ") for text in hint)
    assert not list(tmp_path.glob("out.kcap*"))


def test_import_gives_a_capture_that_holds_all(data: Data, tmp_path: Path) -> None:
    """Imported, verified, printed and drawn: everything is there, and the state with it."""
    out = tmp_path / "real.kcap"

    assert run("import", data(fs.REAL), "-o", out).exit_code == 0
    assert run("verify", "--deep", out).exit_code == 0
    printed = run("cat", out)
    assert printed.exit_code == 0
    assert len(printed.stdout.splitlines()) == 57_326
    tree = run("tree", out)
    assert tree.exit_code == 0
    assert "6568 wsl -u root -e ls" in tree.stdout
    assert tree.stdout == run("tree", data(fs.REAL)).stdout
    with_state = run("cat", "--state", "--format", "jsonl", "-n", "1", out)
    first: dict[str, Any] = json.loads(with_state.stdout)
    assert (first["event"], first["kind"]) == ("EnumProcess", "state")

    state, again = State(), State()
    for path, into in ((out, state), (data(fs.REAL), again)):
        with closing(open_source(path)) as source:
            for batch in source.batches():
                into.update(batch)
    left, right = state.handles(), again.handles()
    assert left is not None
    assert right is not None
    assert len(left) > 20_000
    assert left.rows() == right.rows()


def test_a_capture_that_is_cut_is_torn(data: Data, tmp_path: Path) -> None:
    """Half a capture: every flushed event, exit code 3, for import and for what it made."""
    raw = data(fs.REAL).read_bytes()
    path, out = tmp_path / "half.cap", tmp_path / "half.kcap"
    path.write_bytes(raw[: len(raw) // 2])

    result = run("import", path, "-o", out)

    assert result.exit_code == 3
    assert "torn: the zstd data ends early" in result.stderr
    assert "23,283 events" in result.stderr
    with closing(open_source(out)) as source:
        assert sum(batch.rows for batch in source.batches()) == 23_283


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    """Both formats are called .kcap; a Fibratus capture is none of ours by any name."""
    path = tmp_path / "events.kcap"
    path.write_bytes(fs.packed([fs.plain([fs.record()])]))
    assert run("cat", path).stdout.count("CreateFile") == 1
    assert run("import", path, "-o", tmp_path / "ours.kcap").exit_code == 0
    with closing(open_source(tmp_path / "ours.kcap")) as source:
        assert source.info.format == "kcap"
    assert not FibratusReader.sniff(b"\x89KCAP")
    with pytest.raises(NotACaptureError):
        fs.read(b"no capture at all")
