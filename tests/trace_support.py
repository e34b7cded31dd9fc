"""Recordings through tracepoints: in this process, and by ``kcap record``."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import SkipTest

from live_support import COMMAND, ROOT, kill_all
from workload_support import Fact

from kcap.errors import KcapError
from kcap.model.batch import Batch, concat
from kcap.model.side import Loss
from kcap.readers.live.trace.recorder import PerfRecorder, TracefsRecorder, TraceRecorder
from kcap.state import State

Row = dict[str, Any]

RECORDERS: Final[dict[str, type[TraceRecorder]]] = {
    "perf": PerfRecorder,
    "tracefs": TracefsRecorder,
}


def recorder(source: str, **options: Any) -> TraceRecorder:
    """A source; the test skips where this host refuses it."""
    try:
        return RECORDERS[source](**options)
    except KcapError as error:
        raise SkipTest(f"no {source} here: {error}") from error


class Taken:
    """What a source gave while a block ran."""

    def __init__(self, source: TraceRecorder) -> None:
        self.source = source
        self.batches: list[Batch] = []

    @property
    def rows(self) -> list[Row]:
        """The events, without what is null."""
        every = concat(self.batches).to_pylist()
        return [{k: v for k, v in row.items() if v is not None} for row in every]

    def of(self, event: str, pid: int | None = None) -> list[Row]:
        """The events of a name, and of a process."""
        return [r for r in self.rows if r["event"] == event and pid in (None, r.get("pid"))]

    def losses(self, kind: str = "lost") -> list[Loss]:
        """What was lost."""
        sides = (side for batch in self.batches for side in batch.before)
        return [side for side in sides if isinstance(side, Loss) and side.kind == kind]


@contextmanager
def recording(source: str, *, resolve: bool = False, **options: Any) -> Iterator[Taken]:
    """Record what happens in the block."""
    taken = Taken(recorder(source, **options))
    state = State()
    failures: list[BaseException] = []
    ready = threading.Event()

    def run() -> None:
        try:
            for batch in taken.source.batches():
                taken.batches.append(state.update(batch, resolve=resolve))
                ready.set()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(30)
        if not failures:
            yield taken
    finally:
        taken.source.stop()
        thread.join(30)
        taken.source.close()
    assert not thread.is_alive()
    if failures:
        raise failures[0]


@contextmanager
def recorded(path: Path, source: str, *words: str, codes: tuple[int, ...] = (0,)) -> Iterator[None]:
    """Record what happens in the block with ``kcap record``; the capture is closed behind it.

    Args:
        path: The capture.
        source: By which source.
        words: More words for the command.
        codes: The exit codes expected.

    Yields:
        Nothing; what happens then is recorded.
    """
    # It ends by itself where whoever started it was killed.
    limit = ("--duration", "15m")
    command = [*COMMAND, "record", "-o", str(path), "--source", source, *limit, *words]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        deadline_s = time.monotonic() + 120
        # The tracepoints tell before the host is looked at, which is the first that is written.
        while not (path.exists() and path.stat().st_size):
            assert running.poll() is None, running.communicate()[1]
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        yield
        running.terminate()
        said = running.communicate(timeout=120)[1]
        assert running.returncode in codes, said
    finally:
        if running.poll() is None:
            kill_all(running.pid)
            running.wait()


def check_burst(said: list[Fact], rows: list[Row], child: str) -> None:
    """See that a recording has all of a burst.

    Args:
        said: What the workload did.
        rows: The events.
        child: The program that it ran.
    """
    ran, ended, born = (
        {row[key]: row for row in rows if row["event"] == f"sched_process_{event}" and key in row}
        for event, key in (("exec", "pid"), ("exit", "tid"), ("fork", "arg_child_tid"))
    )
    name = Path(child).name
    for fact in said:
        pid = fact["child"]
        start, end = ran[pid], ended[pid]
        assert (start["arg_cmdpath"], start["process_name"]) == (child, name), start
        assert start["arg_prev_comm"] == "burst"
        assert start["exe"] == child
        assert start.get("arg_argv", fact["argv"]) == fact["argv"]
        assert end["arg_wait_status"] == fact["status"]
        assert (born[pid]["pid"], born[pid]["arg_child_pid"]) == (fact["pid"], pid)
        assert start["ts"] <= end["ts"]
