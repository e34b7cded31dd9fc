"""What takes part in a run beside the console: filaments, transformers, sinks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from badinput_support import ROOT
from cli_support import run
from hypothesis import given
from hypothesis import strategies as st
from live_support import recording
from sink_support import Response, peer
from support import batch_of

import kcap
from kcap.errors import KcapError
from kcap.filter import Filter
from kcap.model.batch import Batch, constant
from kcap.model.classes import TypeClass
from kcap.model.stream import StreamInfo
from kcap.replay.limited import Limited
from kcap.tools import outlets

COUNT = 30
WHOLE = batch_of([(1000 + i, {}) for i in range(COUNT)])


class Cut:
    """Events cut at these rows; every third only describes what was there."""

    info = StreamInfo("cut", "cut")

    def __init__(self, cuts: Sequence[int]) -> None:
        self._cuts = sorted({0, *cuts, COUNT})

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        for start, stop in zip(self._cuts, self._cuts[1:], strict=False):
            for row in range(start, stop):
                kind = "state" if row % 3 == 0 else "event"
                yield WHOLE.slice(row, row + 1).adding({"kind": constant(TypeClass.STR, kind, 1)})

    def close(self) -> None:
        """Nothing to let go of."""


@given(st.lists(st.integers(0, COUNT), max_size=5), st.integers(0, COUNT))
def test_a_limit_counts_events_however_they_come(cuts: list[int], count: int) -> None:
    rows = [row for batch in Limited(Cut(cuts), count).batches() for row in batch.to_pylist()]

    events = [row["ord"] for row in rows if row["kind"] == "event"]
    assert events == [n for n in range(COUNT) if n % 3][:count]
    assert not rows or count == 0 or rows[-1]["kind"] == "event" or len(events) < count


def test_what_is_recorded_is_what_somebody_looks_at() -> None:
    where, one = Filter.of("ps.name = 'a'"), Filter.of("ps.name = 'b' and ps.pid = 1")

    def looking(console: bool, *filters: Filter | None) -> str | None:
        made = outlets.Outlets(console, filters=list(filters))
        found = made.looking(where)
        return None if found is None else found.text

    assert looking(True) == where.text
    assert looking(False, one) == one.text
    assert looking(False, where, where) == where.text
    assert looking(True, one) == f"({one.text}) or ({where.text})"
    assert looking(False, one, None) is None
    old = Filter.of("kevt.pid = 3")
    assert looking(False, one, old) is None, "the same names mean other things in the two"


def test_recording_as_root_needs_no_extra() -> None:
    """What a sink would need is not there, and nothing asks for it."""
    code = (
        "import sys\n"
        "for name in ('jinja2', 'pika', 'httpx', 'confluent_kafka', 'msgpack'):\n"
        "    sys.modules[name] = None\n"
        "from kcap.tools import apart\n"
        "apart.load()\n"
        "import kcap.writers.jsonl"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_an_unknown_sink_filament_or_transformer_is_refused_before_anything_begins(
    tmp_path: Path,
) -> None:
    out = tmp_path / "o.kcap"
    for words, said in (
        (["--sink", "gopher://x"], "there is no sink 'gopher'"),
        (["--sink", "http://x?methd=GET"], "there is no option methd"),
        (["--transform", "remov=a"], "remov"),
    ):
        result = run("record", "-o", out, *words)
        assert result.exit_code == 1
        assert said in result.stderr
        assert not out.exists()
    result = run("run", "-f", "wach_files")
    assert (result.exit_code, "watch_files" in result.stderr) == (1, True), result.stderr


def test_a_filament_has_standard_output_for_itself(tmp_path: Path, fixtures: Path) -> None:
    """Else the order of its text and the events would depend on batches."""
    words = ["replay", fixtures / "first.kcap", "-f", "watch_files"]
    for more in (["--format", "line"], ["--view", "execsnoop"], ["--sink", "console:"]):
        result = run(*words, *more)
        assert (result.exit_code, "send events to -o FILE" in result.stderr) == (2, True), more
    result = run(*words, "--format", "jsonl", "-o", tmp_path / "o.jsonl")
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 61
    assert "execve" not in result.stdout


@pytest.mark.root
def test_what_is_recorded_is_sent_along_once_and_in_order(tmp_path: Path) -> None:
    """Each event of the capture, transformed; and none of what the courier does."""
    capture = tmp_path / "c.kcap"
    with peer() as server:
        url = f"http://{server.place}/?batch=100"
        with recording(capture, "--sink", url, "--transform", "tags=site:lab") as running:
            for _ in range(30):
                subprocess.run(["/bin/true"], check=True)
            couriers = _couriers(running.process.pid)
            time.sleep(1)
        bodies = b"".join(r.plain.rstrip(b"\n") + b"\n" for r in server.requests).splitlines()
    sent = [json.loads(line) for line in bodies]
    with kcap.open(capture) as made:
        held = made.to_arrow(columns=["origin", "ord", "pid", "kind"]).to_pylist()
        assert "tags" not in json.dumps(sorted(made.columns))
    events = [row for row in held if row["kind"] != "state"]

    assert [(e["origin"], e["ord"]) for e in sent] == [(e["origin"], e["ord"]) for e in events]
    assert len(sent) >= 30
    assert all("lab" in line.decode() for line in bodies)
    assert len(couriers) == 1
    assert not couriers & {row["pid"] for row in held if row["kind"] != "state"}


def _couriers(pid: int) -> set[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = {int(c) for c in children if b"guard import child" in _cmdline(c)}
    for child in found:
        status = Path(f"/proc/{child}/status").read_text()
        assert "Seccomp:\t2" in status
        assert "NoNewPrivs:\t1" in status
        assert f"Uid:\t{os.getuid()}" not in status
    return found


def _cmdline(pid: str) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.root
def test_a_sink_that_refuses_does_not_end_a_recording(tmp_path: Path) -> None:
    """The capture is whole, the exit code and the last lines say what the sink did not get."""
    capture = tmp_path / "c.kcap"
    with peer(lambda _: Response(401)) as server:
        url = f"http://{server.place}/"
        with recording(capture, "--sink", url, codes=(3,)) as running:
            for _ in range(5):
                subprocess.run(["/bin/true"], check=True)
            time.sleep(1.2)
            for _ in range(5):
                subprocess.run(["/bin/true"], check=True)
    assert "the recording goes on" in running.said
    assert "a sink gets nothing more" in running.said
    result = run("verify", capture)
    assert result.exit_code == 0, result.output
    with kcap.open(capture) as made:
        rows = made.to_arrow(columns=["event", "exe"]).to_pylist()
    assert sum("exec" in r["event"] and (r["exe"] or "").endswith("/true") for r in rows) >= 10


@pytest.mark.root
def test_more_sinks_than_the_kernel_can_leave_out_are_refused(tmp_path: Path) -> None:
    words = [w for n in range(5) for w in ("--sink", f"http://127.0.0.1:{n + 1}/")]
    result = run("record", "-o", tmp_path / "c.kcap", *words)

    assert result.exit_code == 1
    assert "at most 4" in result.stderr


@pytest.mark.root
def test_a_filament_prints_in_place_of_the_console(tmp_path: Path) -> None:
    """Live: what it prints and nothing else, in a process without rights, until the run ends."""
    filament = tmp_path / "mine.py"
    filament.write_text(
        '"""Says who executes."""\n'
        "def on_init():\n    set_filter(\"evt.name = 'execve'\")\n"
        "def on_next_event(event):\n    print('saw', event['name'])\n"
        "def on_stop():\n"
        "    status = open('/proc/self/status').read().split('\\n')\n"
        "    print([s for s in status if s[:7] in ('CapEff:', 'Seccomp')][:2])\n"
    )
    os.chmod(tmp_path, 0o755)  # noqa: PTH101
    process = subprocess.Popen(
        [sys.executable, "-m", "kcap.tools", "run", "-f", str(filament), "--duration", "2"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None:
        subprocess.run(["/bin/true"], check=True)
        time.sleep(0.05)
    out, errors = process.communicate(timeout=20)

    assert process.returncode == 0, errors
    *lines, last = out.splitlines()
    assert len(lines) > 5
    assert set(lines) == {"saw execve"}
    assert last == "['CapEff:\\t0000000000000000', 'Seccomp:\\t2']"


def test_aside_gives_up_one_sink_and_keeps_the_others() -> None:
    class Given:
        def __init__(self, fails: bool) -> None:
            self.rows, self._fails, self.closed = 0, fails, 0

        def write(self, batch: Batch) -> None:
            if self._fails:
                raise KcapError("no", hint="try")
            self.rows += batch.rows

        def close(self) -> None:
            self.closed += 1

    good, bad = Given(False), Given(True)
    aside = outlets.Aside(outlets.Outlets(sinks=[bad, good]))
    aside.write(WHOLE)
    aside.write(WHOLE)
    aside.close()

    assert (good.rows, good.closed, bad.rows) == (2 * COUNT, 1, 0)
    assert [(loss.kind, "no" in loss.reason) for loss in aside.losses] == [("skipped", True)]
