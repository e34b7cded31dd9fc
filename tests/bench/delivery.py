"""A steady load to a bulk endpoint: what kcap takes while it sends each event on.

``python tests/bench/delivery.py`` prints the table, with ``--write`` it goes into
docs/benchmarks.md. As root the load is a program that opens files at a steady rate, which kcap
watches live; and for everybody it is a capture of real events, spaced evenly and replayed at their
own speed. The endpoint answers as Elasticsearch does, in a process of its own that is not counted.
CPU is that of kcap's processes together, pipeline and courier, over the time of the load; memory is
the most that they had, with pages that they share counted in each (RSS) and once (PSS).
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import page
import pyarrow as pa
import record
import sysdig
from steady import memory_bytes
from workloads import ROOT

from kcap.format.reader import CaptureReader
from kcap.format.writer import CaptureWriter
from kcap.model.batch import Column
from kcap.model.classes import TypeClass

SECONDS: Final = 30
RATES: Final = (2_000, 10_000)
COPIES: Final = 9
"""Of sysdig's sample: enough events for the higher rate."""

STARTED_S: Final = 3.0
"""What a run may take until its events flow, which is not counted."""

BEGIN_NS: Final = 1_700_000_000 * 10**9
SEED_CPU: Final = "3-6 %"
SEED_MEMORY: Final = "170 MB"
RSS: Final = re.compile(rb"^Rss:\s+(\d+) kB", re.MULTILINE)


class Sink(NamedTuple):
    """A way to send events."""

    name: str
    url: str
    """With ``PORT`` in it."""


SINKS: Final = (
    Sink("Elasticsearch bulk", "elasticsearch+http://127.0.0.1:PORT/?index=kcap"),
    Sink("HTTP, JSON lines, gzip", "http://127.0.0.1:PORT/events?body=ndjson&gzip=yes"),
)


class Taken(NamedTuple):
    """What a turn took."""

    events_per_s: float
    """That the endpoint got."""
    cpu_percent: float
    """Of one processor."""
    courier_percent: float
    """Of that, the courier's."""
    rss_bytes: int
    pss_bytes: int


class Endpoint(http.server.BaseHTTPRequestHandler):
    """Takes bulk requests and JSON lines, and says on GET how many events it got."""

    protocol_version = "HTTP/1.1"
    got = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/_bulk"):
            count = body.count(b"\n") // 2
            items = b",".join([b'{"create":{"status":201}}'] * count)
            answer = b'{"took":1,"errors":false,"items":[' + items + b"]}"
        else:
            import gzip

            count, answer = gzip.decompress(body).count(b"\n"), b"{}"
        Endpoint.got += count
        self._answer(answer)

    def do_GET(self) -> None:
        self._answer(json.dumps(Endpoint.got).encode())

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def endpoint() -> Iterator[int]:
    """The endpoint in a process of its own; gives its port."""
    command = [sys.executable, __file__, "--endpoint"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def got(port: int) -> int:
    """Events that the endpoint has."""
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
        return int(answer.read())


def timed(source: Path, target: Path, rate: int) -> None:
    """Copy a capture, its events spaced evenly.

    Args:
        source: A capture.
        target: Where the copy goes.
        rate: Events a second.
    """
    count = 0
    with source.open("rb") as stream, target.open("wb") as out:
        writer = CaptureWriter(out, file=str(target))
        for batch in CaptureReader(stream, str(source)).batches():
            at = np.arange(count, count + batch.rows, dtype=np.int64)
            times = Column(TypeClass.I64, pa.array(BEGIN_NS + at * 10**9 // rate))
            writer.write(batch.adding({"ts": times}) if batch.rows else batch)
            count += batch.rows
        writer.close()
    assert count >= rate * SECONDS, "too few events"


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += family(int(child))
    return found


def is_courier(pid: int) -> bool:
    """Whether a process speaks to the server."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return b"courier" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def rss_bytes(pid: int) -> int:
    """The memory of a process, pages that it shares included."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        found = RSS.search(Path(f"/proc/{pid}/smaps_rollup").read_bytes())
        return int(found[1]) * 1024 if found else 0
    return 0


def turn(words: list[str], load: list[str] | None, port: int, seconds: int) -> Taken:
    """Let kcap send events for some time.

    Args:
        words: The command.
        load: What makes events, None where they come by themselves.
        port: The endpoint's.
        seconds: How long is measured.

    Returns:
        What it took.
    """
    command = [sys.executable, "-m", "kcap.tools", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT, env=env)
        )
        stack.callback(process.kill)
        time.sleep(STARTED_S)
        if load is not None:
            made = stack.enter_context(subprocess.Popen(load, stdout=subprocess.DEVNULL))
            stack.callback(made.kill)
            time.sleep(STARTED_S)
        couriers = [pid for pid in family(process.pid) if is_courier(pid)]
        assert len(couriers) == 1, couriers
        begun_s, before = time.monotonic(), got(port)
        cpu_s, courier_s = record.cpu_s(process.pid), record.cpu_s(couriers[0])
        rss = pss = 0
        while time.monotonic() - begun_s < seconds:
            time.sleep(1)
            rss = max(rss, sum(map(rss_bytes, family(process.pid))))
            pss = max(pss, memory_bytes(process.pid))
        passed_s = time.monotonic() - begun_s
        used_s = record.cpu_s(process.pid) - cpu_s
        used_by_courier_s = record.cpu_s(couriers[0]) - courier_s
        taken = got(port) - before
        assert process.poll() is None, "the run ended before the time was over"
        process.send_signal(signal.SIGINT)
        process.wait(60)
    share = 100 / passed_s
    return Taken(taken / passed_s, share * used_s, share * used_by_courier_s, rss, pss)


def report(turns: int, seconds: int, folder: Path) -> str:
    """The table.

    Args:
        turns: How often each is measured.
        seconds: How long each time.
        folder: Where files may be put.

    Returns:
        Markdown.
    """
    lines = [
        (
            f"Linux {platform.release()}, {os.cpu_count()} CPUs; medians of {turns} turns of"
            f" {seconds} s. The document: {SEED_CPU} of a core, {SEED_MEMORY}.\n"
        ),
        "| load | to | events/s delivered | CPU | of that the courier | RSS | PSS |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, sink, words, load in works(folder, seconds):
        found = []
        for _ in range(turns):
            with endpoint() as port:
                url = sink.url.replace("PORT", str(port))
                found.append(turn([*words, "--sink", url], load, port, seconds))
            print(name, sink.name, found[-1], file=sys.stderr, flush=True)
        rate, cpu, courier, rss, pss = map(statistics.median, zip(*found, strict=True))
        lines.append(
            f"| {name} | {sink.name} | {rate:,.0f} | {cpu:.1f} % | {courier:.1f} %"
            f" | {rss / 1e6:.0f} MB | {pss / 1e6:.0f} MB |"
        )
    return "\n".join([*lines, ""])


def works(folder: Path, seconds: int) -> Iterator[tuple[str, Sink, list[str], list[str] | None]]:
    """What is measured: name, sink, command, what makes events."""
    if os.geteuid() == 0:
        program = str(record.Workloads(folder).path("steady"))
        absent = folder / "absent"
        absent.mkdir()
        run = ["run", "--source", "bpf", "--events", "openat", "--format", "null"]
        long = str(seconds + 60)
        for rate in RATES:
            load = [program, str(absent), str(rate), long]
            yield f"live, {rate:,} opens/s", SINKS[0], run, load
    if sysdig.SAMPLE.exists():
        sample = sysdig.copied(folder, COPIES)
        for rate in RATES:
            capture = folder / f"{rate}.kcap"
            timed(sample.pairs, capture, rate)
            words = ["replay", "--speed", "1", "--format", "null", str(capture)]
            for sink in SINKS:
                yield f"replay at its own speed, {rate:,} events/s", sink, words, None


def main() -> None:
    """Measure, print, and write the page where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    parser.add_argument("--turns", type=int, default=3, help="turns of each")
    parser.add_argument("--seconds", type=int, default=SECONDS - 8, help="that are measured")
    parser.add_argument("--endpoint", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.endpoint:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
        print(server.server_port, flush=True)
        server.serve_forever()
    if not 1 <= options.seconds <= SECONDS - 8:
        parser.error(f"--seconds: 1 to {SECONDS - 8}, so that the load does not end before")
    with tempfile.TemporaryDirectory() as folder:
        text = report(options.turns, options.seconds, Path(folder))
    print(text)
    if options.write:
        page.put("delivery.py", text)


if __name__ == "__main__":
    main()
