"""Going on with a replay that was interrupted: nothing is skipped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest
from cli_support import run
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from support import batch_of, capture, make_events

from kcap.errors import BadInputError, KcapError
from kcap.replay.pipeline import Summary
from kcap.replay.resume import Checkpoint, Confirmed, Place, Run
from kcap.tools import resuming
from kcap.tools.resuming import Progress

WORDS = ("replay", "host.kcap", "--format", "jsonl")
RESUMED = (*WORDS, "-o", "out.jsonl", "--resume", "place.json")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with a capture of twelve chunks."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "host.kcap").write_bytes(capture([make_events(60)], chunk_rows=5))
    return tmp_path


class KilledError(KcapError):
    """Stands for the end of the process."""


@contextmanager
def killed(after: int, *, saved: bool) -> Iterator[None]:
    """End runs after so many batches, before or after they note their place."""
    count = 0
    inner = Progress.__call__

    def call(self: Progress, summary: Summary) -> bool:
        nonlocal count
        count += 1
        if count == after and not saved:
            raise KilledError("killed")
        ends = inner(self, summary)
        if count == after:
            raise KilledError("killed")
        return ends

    with (
        mock.patch.object(resuming, "_SAVED_S", 0.0),
        mock.patch.object(Progress, "__call__", call),
    ):
        yield


def place() -> dict[str, Any]:
    """What the file says of the place."""
    found: dict[str, Any] = json.loads(Path("place.json").read_text())["place"]
    return found


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--start", "#7", "--end", "#52"),
        ("-n", "33"),
        *(("--format", form) for form in ("line", "cef", "tracee-json")),
    ],
)
def test_wherever_it_is_interrupted(words: tuple[str, ...], saved: bool, host: Path) -> None:
    """However often a run is ended, and whatever it left behind: in the end the output is whole."""
    whole = run(*WORDS, *words).stdout
    for after in (1, 2, 2):
        with killed(after, saved=saved):
            assert run(*RESUMED, *words).exit_code == 1
        assert not place()["done"]
        # What a process that was killed had written beyond the place.
        with (host / "out.jsonl").open("ab") as stream:
            stream.write(b'{"half a li')
    before = place()["row"]
    assert before > 15 or not saved

    result = run(*RESUMED, *words)

    assert result.exit_code == 0, result.output
    assert (host / "out.jsonl").read_text() == whole
    assert place()["done"]
    assert place()["events_out"] == whole.count("\n")
    assert run(*RESUMED, *words).exit_code == 0
    assert (host / "out.jsonl").read_text() == whole


def test_without_going_on_it_is_not_whole(host: Path) -> None:
    """The control: what an interrupted run leaves differs, and the place is what mends it."""
    whole = run(*WORDS).stdout
    with killed(3, saved=True):
        assert run(*RESUMED).exit_code == 1
    assert (host / "out.jsonl").read_text() != whole
    found = json.loads((host / "place.json").read_text())
    found["place"]["row"] += 5
    (host / "place.json").write_text(json.dumps(found))

    assert run(*RESUMED).exit_code == 0

    assert len((host / "out.jsonl").read_text()) < len(whole)


def test_a_filter_that_finds_nothing_for_long_goes_on_too(host: Path) -> None:
    """The place is that of the input: what was looked at in vain is not looked at again."""
    with killed(6, saved=True):
        assert run(*RESUMED, "-w", "evt.name = 'nothing'").exit_code == 1
    assert (place()["row"], place()["events_out"]) == (30, 0)
    with killed(1, saved=True):
        assert run(*RESUMED, "-w", "evt.name = 'nothing'").exit_code == 1
    assert place()["row"] == 35
    assert not (host / "out.jsonl").exists()


def test_a_process_that_is_killed(tmp_path: Path, kcap: Callable[..., Any]) -> None:
    """SIGKILL in the middle, of the real thing: the next run makes the output whole."""
    events = batch_of([(10**18 + i * 10_000_000, {"fd": i}) for i in range(1000)])
    (tmp_path / "host.kcap").write_bytes(capture([events]))
    whole = kcap(*WORDS).stdout
    command = [sys.executable, "-m", "kcap.tools", *RESUMED, "--speed", "5"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not _row(tmp_path / "place.json"):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    row = _row(tmp_path / "place.json")
    assert 0 < row < 1000
    part = (tmp_path / "out.jsonl").read_bytes()
    assert part != whole

    assert kcap(*RESUMED).returncode == 0

    assert (tmp_path / "out.jsonl").read_bytes() == whole
    assert (tmp_path / "place.json").stat().st_mode & 0o077 == 0


def _row(path: Path) -> int:
    return int(json.loads(path.read_text())["place"]["row"]) if path.exists() else 0


class _Inbox(BaseHTTPRequestHandler):
    """Takes what is posted; says that it has it."""

    lines: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        self.lines.extend(self.rfile.read(int(self.headers["Content-Length"])).splitlines())
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (its name there)
        """Nothing."""


def test_a_server_gets_each_event_at_least_once(host: Path) -> None:
    """What the server had not confirmed when the run ended is sent again, by its own name."""
    _Inbox.lines = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Inbox) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        words = (*RESUMED[:-4], "--sink", f"http://127.0.0.1:{server.server_address[1]}/events")
        try:
            with killed(5, saved=True):
                result = run(*words, "-o", "out.jsonl", "--resume", "place.json")
                assert result.exit_code == 1
            result = run(*words, "-o", "out.jsonl", "--resume", "place.json")
            assert result.exit_code == 0, result.output
        finally:
            server.shutdown()
            thread.join()

    whole = run(*WORDS).stdout.splitlines()
    got = [json.loads(line)["ord"] for line in _Inbox.lines]
    assert set(got) == set(range(60))
    assert got[-1] == 59
    assert (host / "out.jsonl").read_text().splitlines() == whole


# The place


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=30),
    st.data(),
)
def test_no_place_is_ahead_of_any_output(sizes: list[int], data: st.DataObject) -> None:
    """Outputs lag behind by any amount: the place is the last that all of them have reached."""
    has = [0, 0]
    found = Confirmed([lambda: has[0], lambda: has[1]])
    handed, last = 0, -1
    places: list[tuple[int, int]] = []
    for row, size in enumerate(sizes):
        handed += size
        found.note([handed, handed * 2], Place(row))
        places.append((handed, row))
        has[0] = data.draw(st.integers(has[0], handed))
        has[1] = data.draw(st.integers(has[1], handed * 2))
        reached = [r for h, r in places if h <= has[0] and h * 2 <= has[1]]
        place_ = found.place()
        assert (None if place_ is None else place_.row) == (reached[-1] if reached else None)
        assert place_ is None or place_.row >= last
        last = -1 if place_ is None else place_.row


def test_outputs_that_do_not_lag_have_every_place() -> None:
    """Without a server the last place is it."""
    found = Confirmed([])
    assert found.place() is None
    found.note([], Place(3))
    found.note([], Place(5))
    assert found.place() == Place(5)


def test_the_file_is_never_half_written(tmp_path: Path) -> None:
    """A place that can't be written leaves the one before; a private file, replaced as a whole."""
    path = tmp_path / "place.json"
    checkpoint = Checkpoint(str(path), Run({"file_id": "a", "content": None}, {}))
    assert checkpoint.load() == Place()
    checkpoint.save(Place(5, sizes={"a": 3}))
    before = path.read_bytes()
    full = mock.patch("os.fsync", side_effect=OSError(28, "No space left on device"))
    with full, pytest.raises(KcapError, match="No space left"):
        checkpoint.save(Place(6))
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o600
    assert checkpoint.load() == Place(5, sizes={"a": 3})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"kcap_resume": 1}',
        b'{"kcap_resume": 1, "capture": {}, "options": {}, "place": {"row": -1}}',
        b'{"kcap_resume": 1, "capture": {}, "options": {}, "place": {"row": "a"}}',
        b'{"kcap_resume": 1, "capture": {}, "options": {}, "place": {"other": 1}}',
        b'{"kcap_resume": 1, "capture": [], "options": 3, "place": {}}',
        b'{"kcap_resume": 1, "capture": {}, "options": {}, "place": {"sizes": {"a": -1}}}',
        b'{"kcap_resume": 1, "capture": {}, "options": {}, "place": {"done": 1}}',
        b" " * 2_000_000,
    ],
)
def test_what_is_no_place_is_refused(content: bytes, host: Path) -> None:
    """With the file's name and what to do; nothing is written anywhere."""
    (host / "place.json").write_bytes(content)

    result = run(*RESUMED)

    assert result.exit_code == 1
    assert result.stderr.startswith("kcap: place.json: ")
    assert "internal" not in result.stderr
    assert not (host / "out.jsonl").exists()
    with pytest.raises(BadInputError):
        Checkpoint("place.json", Run({}, {})).load()


# Another run


def test_another_run_is_refused(host: Path) -> None:
    """Another capture, filter, format or output: the file is not for it, and says what differs."""
    with killed(2, saved=True):
        run(*RESUMED)
    before = (host / "out.jsonl").read_bytes()
    other = host / "other.kcap"
    other.write_bytes(capture([make_events(60)], chunk_rows=5, file_id=b"0" * 16))

    def differing(*words: str) -> str:
        result = run(*words, "--resume", "place.json")
        assert result.exit_code == 1
        return result.stderr

    assert "--where differs" in differing(*RESUMED[:-2], "-w", "evt.name = 'x'")
    assert "--output differs" in differing(*WORDS, "-o", "other.jsonl")
    assert "--format differs" in differing("replay", "host.kcap", "-o", "out.jsonl")
    said = differing("replay", "other.kcap", *RESUMED[2:-2], "--end", "#5")
    assert "the capture, --end differ" in said
    assert (host / "out.jsonl").read_bytes() == before


def test_another_key_in_the_same_file_is_another_run(host: Path) -> None:
    """Half of the tokens would not be those of the other half; the key itself is kept nowhere."""
    key = host / "redact.key"
    assert run("redact", "--new-key", key).exit_code == 0
    secret = key.read_bytes()
    redact = json.dumps({"columns": ["process_name"], "key-file": str(key)})
    words = (*RESUMED, "--transform", f"redact={redact}")
    with killed(2, saved=True):
        run(*words)
    key.unlink()
    assert run("redact", "--new-key", key).exit_code == 0

    other = run(*words)

    assert (other.exit_code, "--transform differs" in other.stderr) == (1, True), other.stderr
    kept = (host / "place.json").read_text()
    assert secret.decode().rpartition(":")[2].strip() not in kept
    # With the first key again it goes on to the end.
    key.write_bytes(secret)
    assert run(*words).exit_code == 0
    assert place()["done"]


@pytest.mark.usefixtures("host")
def test_another_option_of_a_sink_is_another_run() -> None:
    """What decides what a server gets must be the same; how it is reached need not be."""
    words = ("replay", "host.kcap", "-n", "0", "--resume", "place.json", "--sink")
    sink = "syslog+udp://127.0.0.1:9?facility="
    assert run(*words, f"{sink}user").exit_code == 0
    assert run(*words, f"{sink}user&timeout=5").exit_code == 0
    other = run(*words, f"{sink}daemon")
    assert other.exit_code == 1
    assert "--sink differs" in other.stderr


def test_a_capture_that_was_closed_in_the_meantime_is_the_same() -> None:
    """A recording has its id from the start, its hash only at the end."""
    open_ = Run({"file_id": "a", "content": None}, {"where": "x"})
    closed = Run({"file_id": "a", "content": "hash"}, {"where": "x"})

    assert open_.differing(closed) == []
    assert closed.differing(open_) == ["the capture"]
    assert closed.differing(Run({"file_id": "a", "content": "other"}, {})) == [
        "the capture",
        "--where",
    ]
    foreign = Run({"file_id": None, "content": None}, {})
    assert foreign.differing(Run({"file_id": None, "content": "b"}, {})) == ["the capture"]


def test_an_output_that_is_gone_is_an_error(host: Path) -> None:
    """What was written before is needed: without it the run would be a part."""
    with killed(2, saved=True):
        run(*RESUMED)
    (host / "out.jsonl").write_bytes(b"short")
    result = run(*RESUMED)
    assert result.exit_code == 1
    assert "out.jsonl: the output has 5 bytes" in result.stderr
    (host / "out.jsonl").unlink()
    assert run(*RESUMED).exit_code == 1
    (host / "place.json").unlink()
    assert run(*RESUMED).exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("--format", "kcap", "-o", "out.kcap"),
        ("--format", "csv", "-o", "out.csv"),
        ("--format", "table"),
        ("--view", "forkstat"),
        ("-f", "top_in_packets"),
        ("--sink", "file:a.jsonl"),
        ("--force",),
        ("--manifest", "run.json"),
    ],
)
def test_what_can_not_be_gone_on_with_is_wrong_usage(words: tuple[str, ...], host: Path) -> None:
    """Such runs have a memory, or an output of one piece."""
    result: Result = run("replay", "host.kcap", *words, "--resume", "place.json")

    assert result.exit_code == 2
    assert "--resume" in result.stderr
    assert not (host / "place.json").exists()


def test_no_secret_is_kept(host: Path) -> None:
    """Of options the file has digests, of sinks without their passwords."""
    sink = "https://nobody:hunter2@127.0.0.1:9/events"
    words = ("replay", "host.kcap", "--sink", sink, "-n", "0", "--resume", "place.json")
    assert run(*words).exit_code == 0
    content = (host / "place.json").read_text()
    assert "hunter2" not in content
    assert "nobody" not in content


def test_standard_output_goes_on(host: Path) -> None:
    """A pipe has what was flushed into it: the rest follows."""
    words = (*WORDS, "--resume", "place.json")
    with killed(4, saved=True):
        first = run(*words).stdout
    rest = run(*words)
    assert rest.exit_code == 0
    assert first + rest.stdout == run(*WORDS).stdout
    assert sorted(p.name for p in host.iterdir()) == ["host.kcap", "place.json"]


def test_a_foreign_file_goes_on(data: Callable[[str], Path], tmp_path: Path) -> None:
    """It has no index: what is before the place is followed, not printed."""
    path, out, kept = data("scap/sample.scap"), tmp_path / "out.jsonl", tmp_path / "place.json"
    words = ("replay", path, "--format", "jsonl", "-o", out, "--resume", kept, "--speed", "0.2")
    whole = run("replay", path, "--format", "jsonl").stdout
    with killed(9, saved=True), mock.patch("kcap.tools.pace.time.sleep"):
        assert run(*words).exit_code == 1
    assert 0 < out.stat().st_size < len(whole)

    assert run(*words[:-2]).exit_code == 0
    assert out.read_text() == whole
