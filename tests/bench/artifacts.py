"""What recorded artifacts cost: executed and written files, a pipe, packets.

``python tests/bench/artifacts.py`` prints the tables, with ``--write`` they go into
docs/benchmarks.md. Needs root, and four minutes. The recorders take turns, forwards and then
backwards; every figure is the median of its turns. The work's time is from its start to its end,
its CPU from getrusage(2); a recorder's is that of all its processes, by the scheduler's statistics,
while the work lasts and until all of them are idle.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import page
import record  # knows where the tests' own files are
from record import cpu_s
from workload_support import Fact, Workloads, facts

KCAP: Final = (sys.executable, "-m", "kcap.tools")
LIMIT: Final = ("--duration", "15m")
"""It ends by itself where this program was killed."""

STARTED_S: Final = 60.0
BEGUN_S: Final = 1.0
"""System calls are the last that a recorder looks at, after it has said that it records."""

QUIET_S: Final = 0.3
IDLE: Final = 0.2
"""A recorder that took less of a processor for so long has caught up."""

SETTLED_S: Final = 60.0
SMALL: Final = 20
"""With ``--small`` everything is done this many times less."""

Count = Callable[[Path, list[Fact]], "Seen"]


class Seen(NamedTuple):
    """Of a recorder's output: what it has of the work, and what it says is missing."""

    captured: float
    missing: float


class Work(NamedTuple):
    """What is done while others watch."""

    name: str
    unit: str
    command: list[str]
    watches: list[Watch]
    folder: Path
    """What it writes to; empty when it begins, as to overwrite a file is to wait for the disk."""


class Watch(NamedTuple):
    """A recorder."""

    name: str
    command: list[str]
    says: bytes
    """What it writes to standard error when it records."""
    seen: Count


class Cost(NamedTuple):
    """What a turn took, in seconds; and what was seen."""

    wall_s: float
    work_s: float
    own_s: float
    captured: float
    missing: float
    written_bytes: float


def artifacts(folder: Path) -> Iterator[dict[str, Any]]:
    """The artifacts of a recording."""
    command = [*KCAP, "artifacts", "list", "--json", "r.kcap"]
    done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, check=False)
    if done.returncode not in {0, 3}:
        raise RuntimeError(done.stderr.decode())
    yield from map(json.loads, done.stdout.splitlines())


def lost(folder: Path) -> int:
    """What a recording says it lost."""
    import kcap

    with kcap.open(folder / "r.kcap") as capture:
        return sum(each.count or 0 for each in capture.info.losses if each.kind == "lost")


def events(folder: Path, where: str, columns: list[str]) -> list[dict[str, Any]]:
    """Events of a recording."""
    import kcap

    with kcap.open(folder / "r.kcap") as capture:
        names = [name for name in columns if name in capture.schema.names]
        found: list[dict[str, Any]] = capture.to_arrow(names, where=where).to_pylist()
    return found


def executions(folder: Path, done: list[Fact]) -> Seen:
    """Executions of the work's processes; those with their hash, where any has one."""
    pids = {fact["child"] for fact in done}
    rows = events(folder, "evt.name = 'sched_process_exec'", ["pid", "arg_exe_sha256"])
    mine = [row for row in rows if row["pid"] in pids]
    hashed = [row for row in mine if row.get("arg_exe_sha256")]
    return Seen(len(hashed or mine), len(pids) - len(hashed or mine))


def files(folder: Path, _: list[Fact]) -> Seen:
    """Artifacts that are the work's files, each with all its bytes."""
    mine = [each for each in artifacts(folder) if "/carried-" in (each["path"] or "")]
    return Seen(sum(each["complete"] for each in mine), sum(not each["complete"] for each in mine))


def streams(folder: Path, _: list[Fact]) -> Seen:
    """Bytes that went through the work's pipe, in MiB."""
    mine = [
        each
        for each in artifacts(folder)
        if each["kind"] == "read" and each["details"].get("process_name") == "carries"
    ]
    missing = sum(each["missing_bytes"] for each in mine)
    return Seen((sum(each["size"] for each in mine) - missing) / 2**20, missing / 2**20)


def packets(folder: Path, done: list[Fact]) -> Seen:
    """Sightings of the work's packets: each is sent and received."""
    port = done[0]["port"]
    rows = events(folder, f"evt.name = 'net_packet' and net.dport = {port}", ["pid"])
    return Seen(len(rows), lost(folder))


def nothing(_: Path, __: list[Fact]) -> Seen:
    """A recorder of other things."""
    return Seen(0, 0)


def tcpdump(folder: Path, _: list[Fact]) -> Seen:
    """What tcpdump says: packets that it wrote, and that the kernel dropped."""
    said = (folder / "err").read_text()
    [captured] = re.findall(r"(\d+) packets? captured", said)
    [dropped] = re.findall(r"(\d+) packets? dropped by kernel", said)
    return Seen(int(captured), int(dropped))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(record.ROOT)}


def _kcap(name: str, count: Count, *words: str) -> Watch:
    command = [*KCAP, "record", "--source", "bpf", *LIMIT, "-o", "r.kcap", *words]
    return Watch(name, command, b"kcap: recording with", count)


def _tcpdump(name: str, *words: str) -> Watch:
    command = ["tcpdump", "-i", "lo", "-Z", "root", "-w", "p.pcap", *words]
    return Watch(name, command, b"listening on", tcpdump)


def all_work(programs: Workloads, folder: Path, *, small: bool) -> list[Work]:
    """The work, and who watches it.

    Args:
        programs: The programs that do it.
        folder: Where they write files.
        small: Do less.

    Returns:
        What to measure, in order.
    """
    less = SMALL if small else 1
    burst, carries = programs.path("burst"), programs.path("carries")
    count, megabytes, datagrams = 2000 // less, 256 // less, 100_000 // less
    executed = [
        _kcap("kcap record", executions),
        _kcap("--artifacts exec:hash", executions, "--artifacts", "exec:hash"),
        _kcap("--artifacts exec", executions, "--artifacts", "exec"),
    ]
    written = [
        _kcap("kcap record", nothing),
        _kcap("--artifacts write", files, "--artifacts", "write"),
    ]
    passed = [
        _kcap("kcap record", nothing),
        _kcap("--artifacts read:type=pipe", streams, "--artifacts", "read:type=pipe,max:1G"),
    ]
    seen = [
        _kcap("kcap record", nothing),
        _kcap("network, headers", packets, "--artifacts", "network,pcap-snaplen:headers"),
        _kcap("network, max", packets, "--artifacts", "network,pcap-snaplen:max"),
        _tcpdump("tcpdump -s 64", "-s", "64"),
        _tcpdump("tcpdump"),
    ]
    return [
        Work(
            f"{count:,} executions, static",
            "",
            [burst, programs.child, str(count)],
            executed,
            folder,
        ),
        Work(
            f"{count:,} executions, /bin/true",
            "",
            [burst, "/bin/true", str(count)],
            executed,
            folder,
        ),
        Work(
            f"{count:,} written files",
            "",
            [carries, "files", str(folder), str(count)],
            written,
            folder,
        ),
        Work(
            f"{megabytes} MiB in a pipe",
            " MiB",
            [carries, "pipe", str(megabytes << 20)],
            passed,
            folder,
        ),
        Work(f"{datagrams:,} datagrams", "", [carries, "packets", str(datagrams)], seen, folder),
    ]


def do(work: Work) -> tuple[float, float, list[Fact]]:
    """Do some work.

    Args:
        work: What to do.

    Returns:
        How long it took and its CPU, in seconds; and what it says that it did.
    """
    before, begun_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryFile() as output:
        subprocess.run(work.command, stdin=subprocess.DEVNULL, stdout=output, check=True)
        wall_s = time.perf_counter() - begun_s
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        output.seek(0)
        done = facts(output.read().decode())
    return wall_s, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done


def turn(work: Work, watch: Watch | None) -> Cost:
    """Do some work once, watched.

    Args:
        work: What to do.
        watch: The recorder; None for none.

    Returns:
        What it took.
    """
    for written in work.folder.iterdir():
        written.unlink()
    if watch is None:
        wall_s, work_s, _ = do(work)
        return Cost(wall_s, work_s, 0, 0, 0, 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = _started(watch, folder)
        try:
            before_s = cpu_s(process.pid)
            wall_s, work_s, done = do(work)
            own_s = _settled(process.pid) - before_s
            process.send_signal(signal.SIGINT)
            process.wait(STARTED_S)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        size = sum(each.stat().st_size for each in folder.iterdir() if each.name != "err")
        return Cost(wall_s, work_s, own_s, *watch.seen(folder, done), size)


def _started(watch: Watch, folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            watch.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=err,
            cwd=folder,
            env=_environment(),
        )
    deadline_s = time.monotonic() + STARTED_S
    while watch.says not in (folder / "err").read_bytes():
        if process.poll() is not None or time.monotonic() > deadline_s:
            process.kill()
            process.wait()
            raise RuntimeError((folder / "err").read_text(errors="replace"))
        time.sleep(0.05)
    time.sleep(BEGUN_S)
    return process


def _settled(pid: int) -> float:
    """CPU of a recorder when it has caught up."""
    deadline_s = time.monotonic() + SETTLED_S
    used_s = cpu_s(pid)
    while time.monotonic() < deadline_s:
        time.sleep(QUIET_S)
        now_s = cpu_s(pid)
        if now_s - used_s < IDLE * QUIET_S:
            return now_s
        used_s = now_s
    return used_s


def measured(work: Work, turns: int) -> str:
    """Let the recorders take turns.

    Args:
        work: What is done.
        turns: How often each watches.

    Returns:
        A Markdown table.
    """
    watches: list[Watch | None] = [None]
    watches += [watch for watch in work.watches if shutil.which(watch.command[0])]
    costs: dict[str, list[Cost]] = {}
    turn(work, None)  # into the page cache
    for number in range(turns):
        for watch in watches[:: -1 if number % 2 else 1]:
            name = watch.name if watch else "nobody"
            costs.setdefault(name, []).append(turn(work, watch))
            print(f"{work.name}: {name}: {costs[name][-1]}", file=sys.stderr, flush=True)
    lines = [
        f"### {work.name}\n",
        "| recorder | captured | missing | CPU, recorder | time, work | | CPU, work | | written |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    alone = _middle(costs["nobody"])
    for watch in watches:
        cost = _middle(costs[watch.name if watch else "nobody"])
        times = f"{cost.wall_s:.2f} s | {cost.wall_s / alone.wall_s:.2f} x"
        times += f" | {cost.work_s:.2f} s | {cost.work_s / alone.work_s:.2f} x"
        if watch is None:
            lines.append(f"| nobody | | | | {times} | |")
            continue
        captured = f"{cost.captured:,.0f}{work.unit} | {cost.missing:,.0f}{work.unit}"
        if watch.seen is nothing:
            captured = "|"
        lines.append(
            f"| {watch.name} | {captured} | {cost.own_s:.2f} s | {times}"
            f" | {cost.written_bytes / 2**20:,.1f} MiB |"
        )
    return "\n".join([*lines, ""])


def _middle(costs: list[Cost]) -> Cost:
    return Cost._make(statistics.median(values) for values in zip(*costs, strict=True))


def report(turns: int, *, small: bool = False, only: str = "") -> str:
    """All tables.

    Args:
        turns: How often each recorder watches each work.
        small: Do less.
        only: Work whose name has this.

    Returns:
        Markdown.
    """
    parts = [f"Linux {platform.release()}, {os.cpu_count()} CPUs; medians of {turns} turns.\n"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "written")
        folder.mkdir()
        works = all_work(Workloads(Path(name)), folder, small=small)
        parts += [measured(work, turns) for work in works if only in work.name]
    return "\n".join(parts)


def main() -> None:
    """Measure, print, and write the page where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into the page")
    parser.add_argument("--turns", type=int, default=2, help="turns of each recorder")
    parser.add_argument("--small", action="store_true", help="see that it runs; no figures")
    parser.add_argument(
        "--only", default="", help="only work whose name has this; not with --write"
    )
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("only root may record")
    if options.only and options.write:
        parser.error("the page has all of it")
    text = report(options.turns, small=options.small, only=options.only)
    print(text)
    if options.write:
        page.put("artifacts.py", text)


if __name__ == "__main__":
    main()
