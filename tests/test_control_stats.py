"""``kcap stats --live``, and the report of a recording that it shows."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import EVENTS, run

from kcap.model.batch import EMPTY, Batch, coded
from kcap.model.side import Heartbeat, Loss, SourceInfo
from kcap.model.stream import StreamInfo
from kcap.replay.pipeline import Summary
from kcap.tools import control, stats_live
from kcap.tools.attend import Attendant, family
from kcap.tools.control import ANSWER_BYTES, Control
from kcap.tools.status import FIELDS, TOP, Output, Status

INFO = StreamInfo("live", "kcap-bpf", (), live=True)


def status_of(*batches: Batch, summary: Summary | None = None, output: Output | None = None) -> Any:
    """The report of a recording that got some batches."""
    made = Status(INFO, pid=7, pids=lambda: [os.getpid()], since_ns=10**18)
    for batch in batches:
        made.write(batch)
    made.tick(summary or Summary(), output or Output("out.kcap", 5))
    return made.report()


def named(names: list[str]) -> Batch:
    """Events of these names."""
    column = coded(names, np.arange(len(names)))
    assert column is not None
    return Batch(len(names), {"event": column})


def beat(**details: Any) -> Batch:
    return EMPTY.with_before((Heartbeat(1, 1, 3, "s", details),))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where recorders have their sockets in this test."""
    found = tmp_path / "kcap"
    monkeypatch.setattr(control, "folders", lambda: [found])
    return found


@contextlib.contextmanager
def recorder(folder: Path, report: Any = None, *, pid: int | None = None) -> Iterator[Control]:
    """Somebody who answers as a recorder does."""
    done = threading.Event()
    with Control(folder) as made:
        if pid is not None:
            made.path = made.path.rename(folder / f"{pid}.sock")

        def serve() -> None:
            while not done.wait(0.002):
                made.serve(lambda: status_of(EVENTS) if report is None else report)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield made
        finally:
            done.set()
            thread.join()


def test_a_report_has_the_documented_names() -> None:
    """Every name is explained, every explained name is there, and all of it is JSON."""
    report = status_of(EVENTS)
    assert set(report) == set(FIELDS)
    assert json.loads(json.dumps(report)) == report


def test_the_names_are_documented() -> None:
    """docs/control.md explains each name, as the program does."""
    text = (Path(__file__).parent.parent / "docs" / "control.md").read_text("utf-8")
    assert [f"| `{name}` | {what} |" for name, what in FIELDS.items()] == [
        line for line in text.splitlines() if re.match(r"\| `[a-z_]+` \| ", line)
    ]


def test_events_are_counted_by_name() -> None:
    """The names and their numbers are those of the batches, and together all events."""
    batch = named(["a", "b", "a", "a", "c"])
    report = status_of(batch, batch.slice(1, 3), beat(), EVENTS)
    assert report["events_by_name"] == {"a": 4, "b": 2, "c": 1}
    assert len(status_of(named([str(n) for n in range(TOP + 5)]))["events_by_name"]) == TOP


def test_what_is_lost_is_told_by_kind() -> None:
    """Numbers where there are numbers, findings where there are none, and each in words."""
    losses = [
        Loss("lost", 5, "full"),
        Loss("lost", 7, "full, too"),
        Loss("blind", None, "stopped"),
        Loss("damaged", None, "truncated"),
    ]
    summary = Summary(events_in=30, events_out=10, losses=losses)
    report = status_of(beat(waiting_bytes=77, filtered=100), summary=summary)
    assert (report["lost"], report["blind"], report["damaged"], report["torn"]) == (12, 1, 1, 0)
    assert report["filtered"] == 120
    assert report["ring_waiting_bytes"] == 77
    assert [text.partition(":")[0] for text in report["losses"]] == [
        "lost 5 events", "lost 7 events", "blind", "damaged"
    ]  # fmt: skip
    assert status_of()["ring_waiting_bytes"] is None, "this source can't tell"


def test_rates_are_over_the_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events and bytes a second are those between looks, not those since the begin."""
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    made = Status(INFO, pid=7, pids=list, since_ns=0)
    for events, size in ((0, 0), (100, 1000), (300, 3000)):
        made.tick(Summary(events_in=events, events_out=events), Output("out", size))
        now_s += 2
    now_s -= 2
    report = made.report()
    assert (report["events_per_s"], report["bytes_per_s"]) == (100, 1000)


def test_a_report_fits_into_an_answer() -> None:
    """The longest names, paths and reasons leave it below what the socket gives out."""
    names = [f"{n:04}" + "é" * 60_000 for n in range(100)]
    lists = dict.fromkeys(("unavailable", "cannot_see", "refused", "attached"), ["é" * 140] * 500)
    texts = dict.fromkeys(("note", "case", "operator", "filter", "selection"), "é" * 5000)
    details = {**lists, **texts}
    batch = named(names).with_before(
        (SourceInfo("c", details=details), Heartbeat(1, 1, details=details))
    )
    losses = [Loss("lost", 2**60, "é" * 800, event="e" * 60_000) for _ in range(5000)]
    report = status_of(
        batch, summary=Summary(losses=losses), output=Output("/" + "é" * 5000, 2**60)
    )
    sink = {
        "sink": "é" * 500,
        "error": "é" * 500,
        "refused": {f"{i}é" * 200: 2**60 for i in range(99)},
    }
    made = Status(INFO, pid=7, pids=list, since_ns=10**18, sinks=lambda: [sink] * 99)
    made.write(batch)
    made.tick(Summary(losses=losses), Output("/" + "é" * 5000, 2**60))
    assert len(json.dumps(made.report())) < ANSWER_BYTES
    assert len(made.report()["sinks"]) > 1
    assert len(json.dumps(report)) < ANSWER_BYTES


def test_sinks_are_told() -> None:
    """How each sink does is in the report and on the screen, what went wrong included."""
    said = {"sink": "amqp://b/", "state": "running", "taken": 1234, "waiting": 5, "refused": {}}
    bad = {**said, "state": "gave up", "error": "no\x1b route", "refused": {"a": 2, "b": 1}}
    made = Status(INFO, pid=7, pids=list, since_ns=10**18, sinks=lambda: [said, bad])

    report = made.report()

    assert report["sinks"] == [said, bad]
    screen = "\n".join(stats_live._table(report))
    assert "amqp://b/: 1,234 delivered, 5 waiting\n" in screen
    assert "5 waiting, 3 refused, gave up, no\\x1b route" in screen


def test_the_only_recorder_is_found(folder: Path) -> None:
    """Without a word, with a process id, and with the socket: the same recorder answers."""
    with recorder(folder) as made:
        for words in ([], [str(os.getpid())], [str(made.path)]):
            done = run("stats", "--live", *words, "--json", "-n", "1")
            assert done.exit_code == 0, done.output
            assert json.loads(done.stdout)["pid"] == 7


def test_several_recorders_are_listed(folder: Path) -> None:
    """Who gives no process id where two run gets both, with what they write."""
    with recorder(folder, pid=41), recorder(folder):
        done = run("stats", "--live")
        assert done.exit_code == 2
        assert "2 recorders run" in done.stderr
        assert re.search(r"\n  41  since .*out\.kcap\n", done.stderr)
        assert run("stats", "--live", "41", "-n", "1").exit_code == 0
        assert run("stats", "--live", "42", "-n", "1").exit_code == 1


def test_no_recorder_is_said_so(folder: Path) -> None:
    """Where none runs, or there is no folder yet, the error says how to start one."""
    for words in ([], ["41"]):
        done = run("stats", "--live", *words)
        assert done.exit_code == 1
        assert "kcap record" in done.stderr
        assert "root alone" in done.stderr
        folder.mkdir(mode=0o700, exist_ok=True)


@pytest.mark.parametrize("words", [["--by", "event"], ["-w", "pid = 1"], ["a", "b"]])
def test_live_refuses_what_it_does_not_do(words: list[str]) -> None:
    """Options of captures, and two recorders at once, are wrong usage."""
    assert run("stats", "--live", *words).exit_code == 2


def test_a_capture_is_still_needed_without_live() -> None:
    """`kcap stats` alone is wrong usage, and says what would be right."""
    done = run("stats")
    assert done.exit_code == 2
    assert "CAPTURE" in done.stderr


def test_a_pipe_gets_lines(folder: Path) -> None:
    """Each reading is a line with time, events, bytes and losses; no escapes for a screen."""
    with recorder(folder):
        done = run("stats", "--live", "-n", "3", "--interval", "100ms")
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:]{8}Z  0 events  0\.0/s  5 B ", x) for x in lines)
    assert "\x1b" not in done.stdout


def test_a_screen_gets_a_table() -> None:
    """What runs, where it writes, the counters, the names and what is not seen."""
    source = SourceInfo("c", details={"unavailable": ["fields of a\x1b[31m file"]})
    report = status_of(
        EMPTY.with_before((source,)),
        named(["openat", "kill"]),
        summary=Summary(losses=[Loss("blind", None, "evil\x1b[2Jname")]),
    )
    text = "\n".join(stats_live._table(report))
    assert text.startswith("recorder 7, kcap ")
    assert "writes out.kcap" in text
    assert re.search(r"\nevents +0  0\.0/s\n", text)
    assert "  1  kill\n  1  openat\n" in text
    assert "not in this kernel: fields of a" in text
    assert "\x1b" not in text


def test_a_table_of_another_version_is_shown_too() -> None:
    """A recorder that tells less, or other things, is no reason to fail."""
    for report in ({}, {"pid": 1, "events": None, "now_ns": "x", "details": {"refused": ["a"]}}):
        assert "recorder" in "\n".join(stats_live._table(report))
        assert "events" in stats_live._line(report)


def test_the_end_of_a_recorder_is_no_failure(folder: Path) -> None:
    """Who watches a recorder that ends is told so, with exit code 0."""
    with contextlib.ExitStack() as running:
        running.enter_context(recorder(folder))
        threading.Timer(0.3, running.close).start()
        done = run("stats", "--live", "--interval", "100ms")
    assert done.exit_code == 0
    assert done.stdout.splitlines()
    assert "the recorder has ended" in done.stderr


def test_all_processes_of_a_recorder_are_found() -> None:
    """Its children and theirs, of any thread, are looked at; nobody else's."""
    script = "sleep 30 & sleep 31 & echo; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        shell.stdout.readline()
        found = family(shell.pid)
        for pid in found:
            os.kill(pid, signal.SIGKILL)
    assert len(found) == 3
    assert family(2**22 + 1) == {2**22 + 1}, "there is no such process"


def test_an_attendant_tells_findings_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was noticed is in the summary, in the capture and on standard error."""
    said: list[Loss] = []
    attendant = Attendant(INFO, said.extend, None)
    with (tmp_path / "out").open("xb", buffering=0) as stream:
        stream.write(b"some bytes")
        output = Output("out", 10, stream.fileno())
        summary = Summary()
        with contextlib.closing(attendant.begin()):
            attendant.check(summary, output)
            assert summary.exit_code == 0
            os.truncate(tmp_path / "out", 3)
            for _ in range(3):
                attendant.check(summary, output)
    assert said == summary.losses
    assert [loss.kind for loss in said] == ["damaged"]
    assert summary.exit_code == 3
    assert capsys.readouterr().err.count("truncated at byte 3") == 1
