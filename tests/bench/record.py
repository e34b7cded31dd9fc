"""Recording this host: kcap beside bpftrace, perf and forkstat.

``python tests/bench/record.py`` prints the tables, with ``--write`` they go into
docs/benchmarks.md. Needs root. The recorders take turns, forwards and then backwards; every figure
is the median of its turns. What a recorder costs is counted as CPU, not by the clock: its own (user
and system, its children's included) while the work lasts and until it has caught up, its own from
start to end, and what it adds to the work's, because programs in the kernel run on the time of
whoever calls it: "both" is what recording costs the host, its own and what it adds. The work's is
taken from getrusage(2), a running recorder's from the scheduler's statistics: both count
microseconds, while /proc's clock ticks are a twentieth of the work. tracefs is mounted in a mount
namespace that ends with this program.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import page

ROOT: Final = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from workload_support import Fact, Workloads, facts  # noqa: E402  # the tests' own file

TICKS: Final = os.sysconf("SC_CLK_TCK")
READY_S: Final = 4.0
"""After so long every recorder listens; they have no common way to say so."""

STARTED_S: Final = 60.0
"""So long one may take that does say so, on a busy machine."""

SETTLED_S: Final = 1.5
"""After so long a recorder has caught up with work that is over."""

SMALL: Final = 20
"""With ``--small`` everything is done this many times less."""

Seen = Callable[[Path, list[Fact]], tuple[int, int]]
"""Of a recorder's output and of what was done: how much of that it has, how much it lost."""


class UnfitError(Exception):
    """A recorder that does not run on this host."""


class Work(NamedTuple):
    """What is done while others watch."""

    name: str
    commands: list[list[str]]
    """Started together."""
    watches: list[Watch]


class Watch(NamedTuple):
    """A recorder, with the events that the work is about."""

    name: str
    command: list[str]
    seen: Seen
    tells: str
    """What it has of such an event."""
    says: bytes = b""
    """What it writes to standard error when it records; empty where nothing tells."""


class Cost(NamedTuple):
    """What a turn took, in seconds of CPU; and what was seen."""

    work_s: float
    own_s: float
    whole_s: float
    seen: int
    lost: int


def cpu_s(pid: int) -> float:
    """CPU of a process and of all that it has started, user and system.

    Of those that it has waited for only clock ticks are known; a recorder has none while it runs.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    mine = sum(map(int, fields[13:15])) / TICKS
    for task in Path(f"/proc/{pid}/task").iterdir():
        mine += int((task / "schedstat").read_text().split()[0]) / 1e9
    started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return mine + sum(cpu_s(int(each)) for each in started)


def turn(work: Work, watch: Watch | None) -> Cost:
    """Do some work once, watched.

    Args:
        work: What to do.
        watch: The recorder; None for none.

    Returns:
        What it took.
    """
    if watch is None:
        return Cost(do(work)[0], 0, 0, 0, 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = started(watch, folder)
        try:
            before_s = cpu_s(process.pid)
            work_s, done = do(work)
            time.sleep(SETTLED_S)
            own_s = cpu_s(process.pid) - before_s
            process.send_signal(signal.SIGINT)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        return Cost(work_s, own_s, usage.ru_utime + usage.ru_stime, *watch.seen(folder, done))


def started(watch: Watch, folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            watch.command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    time.sleep(READY_S)
    deadline_s = time.monotonic() + STARTED_S
    while watch.says not in (folder / "err").read_bytes() and time.monotonic() < deadline_s:
        time.sleep(0.1)
    if watch.says:
        time.sleep(1)  # system calls are the last that it looks at
    if process.poll() is not None:
        said = (folder / "err").read_text(errors="replace")
        raise UnfitError(f"{watch.name}: exit code {process.returncode}: {said}")
    return process


def do(work: Work) -> tuple[float, list[Fact]]:
    """Do some work.

    Args:
        work: What to do.

    Returns:
        Its CPU in seconds, and what it says that it did.

    Raises:
        RuntimeError: A program of it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    outputs = [tempfile.TemporaryFile() for _ in work.commands]  # noqa: SIM115  # closed below
    running = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output)
        for command, output in zip(work.commands, outputs, strict=True)
    ]
    done: list[Fact] = []
    for process, output in zip(running, outputs, strict=True):
        if process.wait():
            raise RuntimeError(f"{work.name}: exit code {process.returncode}")
        with output:
            output.seek(0)
            done += facts(output.read().decode())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done


def _executed(done: list[Fact]) -> dict[int, str]:
    """Processes and their command lines."""
    return {fact["child"]: " ".join(fact["argv"]) for fact in done if fact["did"] == "exec"}


def _opened(done: list[Fact]) -> set[str]:
    return {fact["path"] for fact in done if fact["did"] == "openat"}


def seen_by_kcap(folder: Path, done: list[Fact]) -> tuple[int, int]:
    """Executions with all their arguments, opens with their path; what was lost."""
    import kcap as library

    lines, paths = _executed(done), _opened(done)
    with warnings.catch_warnings(), library.open(folder / "r.kcap") as capture:
        warnings.simplefilter("ignore")  # losses are counted below
        names = {"event", "pid", "cmdline", "arg_pathname", "arg_path_arg"}
        rows = capture.to_arrow(names & set(capture.schema.names)).to_pylist()
        lost = sum(x.count or 0 for x in capture.info.losses if x.kind == "lost")
    found = 0
    for row in rows:
        if row["event"] in ("exec", "sched_process_exec"):
            found += row["pid"] in lines and row.get("cmdline") == lines[row["pid"]]
        else:
            found += row.get("arg_path_arg") in paths
    return found, lost


def seen_by_tracepoints(folder: Path, done: list[Fact]) -> tuple[int, int]:
    """Executions with their path; what was lost."""
    import kcap as library

    lines = _executed(done)
    with library.open(folder / "r.kcap") as capture:
        rows = capture.to_arrow(["pid", "arg_cmdpath"], where="evt.name = 'sched_process_exec'")
        lost = sum(x.count or 0 for x in capture.info.losses if x.kind == "lost")
    told = ((row["pid"], row["arg_cmdpath"]) for row in rows.to_pylist())
    return sum(lines.get(pid, "").split(" ")[0] == path for pid, path in told), lost


def seen_by_bpftrace(folder: Path, done: list[Fact]) -> tuple[int, int]:
    """Lines ``x PID TEXT`` of executions and ``o PID … PATH`` of opens; complaints of loss.

    Told with ``-f json``, each is the text of an object.
    """
    lines, paths = _executed(done), _opened(done)
    found = lost = 0
    with (folder / "out").open(errors="replace") as output:
        for told in output:
            line = told
            if told.startswith("{"):
                item = json.loads(told)
                if item["type"] == "lost_events":
                    lost += item["data"]["events"]
                line = item["data"] if item["type"] == "printf" else ""
            kind, _, rest = line.rstrip("\n").partition(" ")
            pid, _, text = rest.partition(" ")
            if kind == "o":
                found += text.rpartition(" ")[2] in paths
            elif kind == "x" and pid.isdecimal() and int(pid) in lines:
                found += text in (lines[int(pid)], lines[int(pid)].split()[0])
    said = (folder / "err").read_text(errors="replace") + (folder / "out").read_text(
        errors="replace"
    )
    complaints = [line.split() for line in said.splitlines() if line.startswith("Lost ")]
    return found, lost + sum(int(words[1]) for words in complaints)


def seen_by_perf(folder: Path, done: list[Fact]) -> tuple[int, int]:
    """Records of the processes that did it: perf has no paths of opens, and no arguments."""
    command = ["perf", "script", "-i", "p.data", "-F", "pid,event", "--show-lost-events"]
    output = subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout.decode()
    lines = [line.split() for line in output.splitlines()]
    children, openers = set(_executed(done)), {f["pid"] for f in done if f["did"] == "openat"}
    found = 0
    for words in lines:
        if len(words) > 1 and words[0].isdecimal():
            wanted = children if "exec" in words[1] else openers
            found += int(words[0]) in wanted
    lost = sum(int(words[-1]) for words in lines if "LOST" in " ".join(words))
    return found, lost


def seen_by_forkstat(folder: Path, done: list[Fact]) -> tuple[int, int]:
    """Executions whose line has the program's name; it knows of no loss."""
    lines = _executed(done)
    found = 0
    for line in (folder / "out").read_text(errors="replace").splitlines():
        words = line.split(None, 3)
        if len(words) == 4 and words[1] == "exec" and words[2].isdecimal():
            program = lines.get(int(words[2]), "").split(" ")[0]
            found += bool(program) and program in words[3]
    return found, 0


def kcap(name: str, tells: str, *words: str, seen: Seen = seen_by_kcap) -> Watch:
    """A recording by kcap, with more words for ``kcap record``."""
    limit = ("--duration", "15m")  # it ends by itself where this program was killed
    command = [sys.executable, "-m", "kcap.tools", "record", "-o", "r.kcap", *limit, *words]
    return Watch(name, command, seen, tells, b"kcap: recording with")


def bpftrace(name: str, tells: str, *probes: str, form: str = "text") -> Watch:
    """A bpftrace program."""
    command = ["bpftrace", "-f", form, "-e", " ".join(probes)]
    return Watch(name, command, seen_by_bpftrace, tells)


def perf(name: str, tells: str, *events: str) -> Watch:
    """A recording by perf, of the whole machine."""
    chosen = [word for event in events for word in ("-e", event)]
    return Watch(name, ["perf", "record", "-q", "-a", "-o", "p.data", *chosen], seen_by_perf, tells)


EXEC: Final = (
    'tracepoint:sched:sched_process_exec { printf("x %d %s\\n", pid, str(args->filename)); }'
)
ARGV: Final = 'tracepoint:syscalls:sys_enter_execve { printf("x %d ", pid); join(args->argv); }'
OPEN: Final = (
    "tracepoint:syscalls:sys_enter_openat { @name[tid] = args->filename; }"
    " tracepoint:syscalls:sys_exit_openat /@name[tid]/"
    ' { printf("o %d %s\\n", pid, str(@name[tid])); delete(@name[tid]); }'
)
WHOLE_OPEN: Final = (
    "tracepoint:syscalls:sys_enter_openat { @name[tid] = args->filename;"
    " @flags[tid] = args->flags; @mode[tid] = args->mode; @dir[tid] = args->dfd; }"
    " tracepoint:syscalls:sys_exit_openat /@name[tid]/"
    ' { printf("o %d %llu %d %d %d %d %d %llu %s %d %d %d %d %s\\n", pid, nsecs, cpu, tid,'
    " curtask->real_parent->tgid, uid, gid, cgroup, comm, @dir[tid], @flags[tid], @mode[tid],"
    " args->ret, str(@name[tid]));"
    " delete(@name[tid]); delete(@flags[tid]); delete(@mode[tid]); delete(@dir[tid]); }"
)
FULL_OPEN: Final = WHOLE_OPEN.replace(
    '%d %s\\n", pid', '%d %u %u %u %llu %llu %llu %d %s\\n", pid'
).replace(
    " str(@name[tid]));",
    " curtask->cred->euid.val, curtask->nsproxy->mnt_ns->ns.inum,"
    " curtask->nsproxy->pid_ns_for_children->ns.inum, curtask->start_boottime,"
    " curtask->group_leader->start_boottime, curtask->real_parent->start_boottime,"
    " curtask->sessionid, str(@name[tid]));",
)
PERF_EXEC, PERF_OPEN = "sched:sched_process_exec", "syscalls:sys_enter_openat"


def all_work(programs: Workloads, folder: Path, small: bool) -> list[Work]:
    """The work, and who watches it.

    Args:
        programs: The programs that do it.
        folder: Where they open files.
        small: Do less.

    Returns:
        What to measure, in order.
    """
    less = SMALL if small else 1

    def burst(count: int) -> list[str]:
        return [programs.path("burst"), programs.child, str(count // less)]

    opens = [programs.path("opens"), str(folder), str(100_000 // less)]
    # So long that neither a recorder's idle seconds nor the first use of its memory count.
    long_opens = [programs.path("opens"), str(folder), str(1_000_000 // less)]
    full_watch = bpftrace("bpftrace, what it can of ours", "path, result, 17 fields", FULL_OPEN)
    burst_watches = [
        kcap("kcap, default", "path, argv, identity", "--source", "bpf"),
        kcap(
            "kcap, executions alone",
            "path, argv, identity",
            *("--source", "bpf", "--events", "sched_process_exec"),
        ),
        *(
            kcap(f"kcap --source {name}", "path", "--source", name, seen=seen_by_tracepoints)
            for name in ("perf", "tracefs")
        ),
        kcap("kcap --source proc", "argv where /proc still has it", "--source", "proc"),
        bpftrace("bpftrace, sched_process_exec", "path", EXEC),
        bpftrace("bpftrace, execve's argv", "argv", ARGV),
        perf("perf record", "path", PERF_EXEC),
        Watch(
            "forkstat",
            ["forkstat", "-l", "-e", "exec"],
            seen_by_forkstat,
            "argv where /proc still has it",
        ),
    ]
    open_watches = [
        kcap("kcap", "path, result, flags, identity", "--source", "bpf", "--events", "openat"),
        bpftrace("bpftrace, path alone", "path", OPEN),
        bpftrace("bpftrace, who and result too", "path, result, 10 fields", WHOLE_OPEN),
        full_watch,
        bpftrace("the same, -f json", "path, result, 17 fields", FULL_OPEN, form="json"),
        perf("perf record", "a pointer", PERF_OPEN),
    ]
    both = "sched_process_exec,sched_process_fork,sched_process_exit,openat,close"
    both_watches = [
        kcap("kcap, with close", "as above", "--source", "bpf", "--events", both),
        kcap("kcap", "as above", "--source", "bpf", "--events", both.removesuffix(",close")),
        bpftrace("bpftrace", "path", EXEC, OPEN),
        perf("perf record", "path of executions", PERF_EXEC, PERF_OPEN),
    ]
    return [
        Work(f"{5000 // less:,} short-lived processes", [burst(5000)], burst_watches),
        Work(f"{100_000 // less:,} opens", [opens], open_watches),
        Work(f"{1_000_000 // less:,} opens", [long_opens], [open_watches[0], full_watch]),
        Work(
            f"{2000 // less:,} short-lived processes beside {100_000 // less:,} opens",
            [burst(2000), opens],
            both_watches,
        ),
    ]


def measured(work: Work, turns: int) -> str:
    """Let the recorders take turns.

    Args:
        work: What is done.
        turns: How often each watches.

    Returns:
        A Markdown table.
    """
    watches = [watch for watch in work.watches if _is_here(watch)]
    order: list[Watch | None] = [None, *watches]
    costs: dict[str, list[Cost]] = {}
    for number in range(turns):
        for watch in list(order) if number % 2 == 0 else order[::-1]:
            try:
                cost = turn(work, watch)
            except UnfitError as error:
                print(f"not measured: {error}", file=sys.stderr)
                order.remove(watch)
                continue
            name = watch.name if watch else ""
            costs.setdefault(name, []).append(cost)
            print(f"{work.name}: {name or 'nobody'}: {cost}", file=sys.stderr, flush=True)
    watches = [watch for watch in watches if watch in order]
    alone_s = statistics.median(cost.work_s for cost in costs[""])
    lines = [
        f"### {work.name}\n",
        "| recorder | seen | lost | it has | CPU, recorder | start to end | CPU, work | | both |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| nobody | | | | | | {alone_s:.2f} s | | |",
    ]
    for watch in watches:
        middle = [statistics.median(values) for values in zip(*costs[watch.name], strict=True)]
        work_s, own_s, whole_s, seen, lost = middle
        lines.append(
            f"| {watch.name} | {seen:,.0f} | {lost:,.0f} | {watch.tells} | {own_s:.2f} s"
            f" | {whole_s:.2f} s | {work_s:.2f} s | {work_s / alone_s:.2f} x"
            f" | {own_s + max(0.0, work_s - alone_s):.2f} s |"
        )
    return "\n".join([*lines, ""])


def _is_here(watch: Watch) -> bool:
    here = shutil.which(watch.command[0]) is not None
    if not here:
        print(f"no {watch.command[0]}: {watch.name} is not measured", file=sys.stderr)
    return here


def report(turns: int, *, small: bool = False, only: str = "") -> str:
    """All tables.

    Args:
        turns: How often each recorder watches each work.
        small: Do less.
        only: Only works whose title begins so.

    Returns:
        Markdown.
    """
    parts = [f"Linux {platform.release()}, {os.cpu_count()} CPUs; medians of {turns} turns.\n"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "opened")
        folder.mkdir()
        programs = Workloads(Path(name))
        wanted = [w for w in all_work(programs, folder, small) if w.name.startswith(only)]
        parts += [measured(work, turns) for work in wanted]
    return "\n".join(parts)


def apart(words: Sequence[str]) -> None:
    """Go on in a mount namespace of its own that has tracefs, which bpftrace and perf need."""
    if os.environ.get("KCAP_BENCH_APART"):
        return
    script = (
        "test -d /sys/kernel/tracing/events || mount -t tracefs tracefs /sys/kernel/tracing;"
        ' exec "$@"'
    )
    command = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, *words]
    os.execvpe(command[0], command, {**os.environ, "KCAP_BENCH_APART": "1"})


def main() -> None:
    """Measure, print, and write the page where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into the page")
    parser.add_argument("--turns", type=int, default=3, help="turns of each recorder")
    parser.add_argument("--small", action="store_true", help="see that it runs; no figures")
    parser.add_argument("--only", default="", help="only works whose title begins so")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("only root may record")
    apart(sys.argv)
    text = report(options.turns, small=options.small, only=options.only)
    print(text)
    if options.write and not options.only:
        page.put("record.py", text)


if __name__ == "__main__":
    main()
