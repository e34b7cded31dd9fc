"""The views of forkstat and execsnoop: the same of every source, live and from a file."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_support import run
from hypothesis import given
from hypothesis import strategies as st
from support import capture
from test_state import HOST, Row, event, fork, make_batch

from kcap.model.batch import Batch
from kcap.model.side import Loss, Side, SourceInfo
from kcap.model.stream import StreamInfo
from kcap.readers.live.bpf.events import events as recorded_events
from kcap.replay.pipeline import Pipeline
from kcap.writers.views.execsnoop import Execsnoop
from kcap.writers.views.execsnoop import Form as ExecForm
from kcap.writers.views.forkstat import EVENTS, Forkstat, Form, duration_text
from kcap.writers.views.lifetimes import Lifetimes
from kcap.writers.views.view import Lines, View

T0 = 1_700_000_000 * 10**9  # 22:13:20
ALL = Form(events=frozenset(EVENTS))


class Given:
    """A source of given batches."""

    info = StreamInfo("given", "given")

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def batches(self) -> Any:
        return iter(self._batches)

    def close(self) -> None:
        pass


def shown(view: View, *batches: Batch, lifetimes: bool = True) -> list[str]:
    """What a view prints of batches."""
    out = io.BytesIO()
    stages = [*([Lifetimes()] if lifetimes else []), view]
    Pipeline(Given(batches), [Lines(out, view)], stages=stages).run()
    return out.getvalue().decode().splitlines()


def forkstat(*rows: Row, form: Form = ALL, before: Sequence[Side] = (HOST,)) -> list[str]:
    """forkstat's lines of some rows, without the header, spaces run together."""
    lines = shown(Forkstat(form), make_batch(rows, *before))[1:]
    return [" ".join(line.split()) for line in lines]


def execsnoop(*rows: Row, **form: Any) -> list[str]:
    """execsnoop's lines of some rows, without the header, spaces run together."""
    lines = shown(Execsnoop(ExecForm(**form)), make_batch(rows, HOST))[1:]
    return [" ".join(line.split()) for line in lines]


def stop(pid: int, ts: int, **more: Any) -> dict[str, Any]:
    return event("process_stop", pid, ts=ts, arg_exit_code=0, arg_signal_code=0, **more)


LIVES = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.integers(1, 400),
        st.integers(0, 300 * 10**9),
        st.integers(0, 255),
        st.integers(0, 64),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda life: life[1],
)


@given(LIVES, st.data())
def test_an_exit_lasts_from_its_fork_and_has_its_status(
    lives: list[tuple[int, int, int, int, int]], data: st.DataObject
) -> None:
    """Whatever overlaps, and however events are cut into batches, durations and codes are right."""
    rows, expected = [], set()
    for begin, pid, lived_ns, code, signal in lives:
        rows.append(fork(9999, pid, begin, ts=T0 + begin, cmdline="sh"))
        end = {"arg_exit_code": code, "arg_signal_code": signal}
        rows.append({**stop(pid, T0 + begin + lived_ns, cmdline="sh"), **end})
        expected.add((str(pid), str(code << 8 | signal), duration_text(lived_ns)))
    rows.sort(key=lambda row: (row["ts"], row["action"]))
    cut = data.draw(st.integers(0, len(rows)))
    parts = [make_batch(rows[:cut], HOST), make_batch(rows[cut:])]
    lines = [line.split() for line in shown(Forkstat(), *parts)[1:]]
    assert {tuple(line[2:5]) for line in lines if line[1] == "exit"} == expected
    assert sum(line[1] == "fork" for line in lines) == 2 * len(lives)
    blind = [line.split() for line in shown(Forkstat(), *parts, lifetimes=False)[1:]]
    assert {tuple(line[2:5]) for line in blind if line[1] == "exit"} != expected


def test_lines_have_forkstats_columns() -> None:
    """The columns stand where forkstat has them with ids of seven digits."""
    rows = [
        fork(10, 11, 5, ts=T0, cmdline="sh -c x"),
        event("process_start", 11, ts=T0, process_name="true", cmdline="/bin/true a b"),
        {**stop(11, T0 + 1_500_000, cmdline="/bin/true a b"), "arg_exit_code": 7},
    ]
    assert shown(Forkstat(), make_batch(rows, HOST)) == [
        "Time     Event     PID Info   Duration Process",
        "22:13:20 fork       10 parent          sh -c x",
        "22:13:20 fork       11 child           sh -c x",
        "22:13:20 exec       11                 /bin/true a b",
        "22:13:20 exit       11   1792   0.002s /bin/true a b",
    ]


def test_every_kind_of_event_has_a_line() -> None:
    """Core dumps, names, threads, tracers, users and sessions are told as forkstat does."""
    lines = forkstat(
        event("process_rename", 7, ts=T0, arg_comm="new", cmdline="old -x"),
        event("thread_start", 7, ts=T0, arg_child_pid=7, arg_child_tid=8, cmdline="t"),
        event("x", 7, ts=T0, event="ptrace", arg_tracer_pid=5, cmdline="t"),
        event("x", 7, ts=T0, event="ptrace", arg_tracer_pid=0, cmdline="t"),
        event("process_setuid", 7, ts=T0, arg_ruid=1, arg_euid=1, uid=1, user="bin", cmdline="t"),
        event("process_setuid", 7, ts=T0, arg_rgid=4, arg_egid=4, cmdline="t"),
        event("x", 7, ts=T0, event="sid", cmdline="t"),
        event("x", 7, ts=T0, event="coredump", cmdline="t"),
        {**event("thread_stop", 7, ts=T0 + 10**9, arg_exit_code=0, cmdline="t"), "tid": 8},
    )
    assert [line.partition(" ")[2] for line in lines] == [
        "comm 7 old -x -> new",
        "clone 7 parent t",
        "clone 8 thread t",
        "ptrce 7 attach t",
        "ptrce 7 detach t",
        "uid 7 bin t",
        "gid 7 4 t",
        "sid 7 7 t",
        "core 7 t",
        "exit 8 0 1.000s t",
    ]


@pytest.mark.parametrize("name", EVENTS)
def test_only_the_chosen_events_have_lines(name: str) -> None:
    """-e chooses what is shown and nothing else."""
    rows = [
        fork(1, 7, 1, ts=T0),
        event("process_start", 7, ts=T0),
        event("process_rename", 7, ts=T0, arg_comm="n"),
        event("thread_start", 7, ts=T0, arg_child_pid=7, arg_child_tid=8),
        event("x", 7, ts=T0, event="ptrace", arg_tracer_pid=5),
        event("process_setuid", 7, ts=T0, arg_ruid=1),
        event("x", 7, ts=T0, event="sid"),
        event("x", 7, ts=T0, event="coredump"),
        stop(7, T0),
    ]
    found = {line.split()[1] for line in forkstat(*rows, form=Form(events=frozenset({name})))}
    assert found == {name}
    assert {line.split()[1] for line in forkstat(*rows)} == set(EVENTS)


def test_what_failed_is_no_event() -> None:
    """A fork, exec, setuid or ptrace that failed changes nothing, so forkstat is silent."""
    assert not forkstat(
        event("process_fork", 7, ts=T0, retval=-11),
        event("process_start", 7, ts=T0, retval=-2),
        event("process_setuid", 7, ts=T0, retval=-1, arg_uid=0),
        event("process_access", 7, ts=T0, event="ptrace", arg_request=16, arg_pid=5, retval=-1),
        event("x", 7, ts=T0, event="setsid", retval=-1),
    )


def test_calls_that_return_twice_are_one_fork() -> None:
    """The return in the parent and the one in the child are a line each; vfork's is the start."""
    lines = forkstat(
        event("process_fork", 9, ts=T0, event="vfork", retval=0, ppid=7, cmdline="c"),
        event("process_fork", 7, ts=T0 + 10**9, event="vfork", retval=9, cmdline="p"),
        event("process_stop", 9, ts=T0 + 3 * 10**9, arg_status=256, cmdline="c"),
    )
    assert [line.partition(" ")[2] for line in lines] == [
        "fork 9 child c",
        "fork 7 parent p",
        "exit 9 256 3.000s c",
    ]


def test_durations_of_what_was_there_come_from_the_state() -> None:
    """A start since boot is told by the source's clocks; without them there is no duration."""
    known = {**event("process_rundown", 5, cmdline="d"), "kind": "state"}
    rows = [{**known, "process_start_ns": 2 * 10**9}, stop(5, T0, cmdline="d")]
    assert forkstat(*rows) == ["22:13:20 exit 5 0 d"]
    told = SourceInfo(HOST.collector, HOST.host, HOST.boot_id, HOST.origin, ((T0, 6 * 10**9),))
    assert told.id == HOST.id
    assert forkstat(*rows, before=[told]) == ["22:13:20 exit 5 0 4.000s d"]


def test_windows_processes_are_described_by_others() -> None:
    """A start on Windows is an event of the creator; the line is about what was created."""
    said = {"arg_pid": 50, "arg_ppid": 40, "arg_name": "b.exe", "arg_cmdline": 'b.exe "x y"'}
    start = {**event("process_start", 40, ts=T0, process_name="a.exe"), **said}
    end = {**event("process_stop", 50, ts=T0 + 10**9, arg_exit_status=1), **said}
    assert forkstat(start, end) == [
        '22:13:20 exec 50 b.exe "x y"',
        '22:13:21 exit 50 1 1.000s b.exe "x y"',
    ]
    assert execsnoop(start) == ['a.exe 50 40 0 b.exe "x y"']


@pytest.mark.parametrize(
    ("form", "line", "expected"),
    [
        (Form(), "/usr/bin/ls -l /etc/x", "/usr/bin/ls -l /etc/x"),
        (Form(base=True), "/usr/bin/ls -l /etc/x", "ls -l /etc/x"),
        (Form(short=True), "/usr/bin/ls -l /etc/x", "/usr/bin/ls"),
        (Form(short=True, base=True), "/usr/bin/ls -l /etc/x", "ls"),
        (Form(comm=True), "/usr/bin/ls -l /etc/x", "comm"),
        (Form(short=True, base=True), '"C:\\A B\\c.exe" /k', "c.exe"),
        (Form(), "a\x1b[31m", "a\\x1b[31m"),
        (Form(), "", "comm"),
    ],
)
def test_names_of_processes(form: Form, line: str, expected: str) -> None:
    """-c, -d and -s shorten the name as they say, and nothing steers the terminal."""
    row = event("process_start", 7, ts=T0, process_name="comm", cmdline=line)
    assert forkstat(row, form=form) == [f"22:13:20 exec 7 {expected}"]


def test_more_columns_stand_where_forkstat_has_them() -> None:
    """-x adds users and terminal, -g a sign before the info; header and lines stay aligned."""
    rows = [
        fork(10, 11, 5, ts=T0, cmdline="sh", uid=1, user="daemon"),
        {**stop(11, T0 + 10**9, cmdline="sh"), "arg_signal_code": 9},
    ]
    form = Form(extra=True, glyphs=True)
    assert shown(Forkstat(form), make_batch(rows, HOST)) == [
        "Time     Event     PID     UID    EUID TTY     Info   Duration Process",
        "22:13:20 fork       10  daemon       ?      ? ┬parent          sh",
        "22:13:20 fork       11  daemon       ?      ? └child           sh",
        "22:13:21 exit       11       ?       ?      ? ⇥     9   1.000s sh",
    ]


@pytest.mark.parametrize(
    ("collector", "thread", "attach"),
    [("scap", 0x2000, 11), ("tracee", 0x10000, 16), ("", 0x10000, 16)],
)
def test_numbers_mean_what_their_source_means(collector: str, thread: int, attach: int) -> None:
    """Flags and requests are numbered by each tool in its own way."""
    source = SourceInfo(collector or "test", host="h", boot_id="b")
    more = {"ts": T0, "source": source.id, "cmdline": "c"}
    rows = [
        {**event("process_fork", 7, event="clone", retval=8, arg_flags=thread), **more},
        {**event("process_fork", 7, event="clone", retval=9, arg_flags=0x11), **more},
        {**event("x", 7, event="ptrace", retval=0, arg_request=attach, arg_pid=5), **more},
    ]
    found = [line.split()[1:4] for line in forkstat(*rows, before=[source])]
    assert found == [["clone", "7", "parent"], ["fork", "7", "parent"], ["ptrce", "5", "attach"]]


def test_kernel_threads_stand_in_brackets() -> None:
    """A child of kthreadd without a command line is a kernel thread."""
    rows = [stop(7, T0, ppid=2, process_name="kworker/1:0"), stop(8, T0)]
    assert forkstat(*rows) == ["22:13:20 exit 7 0 [kworker/1:0]", "22:13:20 exit 8 0 <unknown>"]


def test_statistics_count_every_event_of_a_process() -> None:
    """-S counts what -e leaves out, too, the busiest process first."""
    rows = [
        event("process_start", 7, ts=T0, cmdline="a"),
        event("process_rename", 8, ts=T0, arg_comm="n", cmdline="b"),
        stop(8, T0, cmdline="b"),
    ]
    form = Form(events=frozenset({"exec"}), quiet=True, statistics=True)
    head, *lines = shown(Forkstat(form), make_batch(rows, HOST))
    names = head.split()
    counts = [dict(zip(names, line.split(), strict=True)) for line in lines]
    assert [c["Process"] for c in counts] == ["b", "a"]
    assert (counts[0]["Exit"], counts[0]["Comm"], counts[0]["Total"]) == ("1", "1", "2")
    assert (counts[1]["Exec"], counts[1]["Exit"], counts[1]["Total"]) == ("1", "0", "1")


def executed(argv: Sequence[str], **more: Any) -> dict[str, Any]:
    said = {"ppid": 6, "process_name": "sh", "uid": 1000, "user": "ann", "arg_argv": list(argv)}
    return {**event("process_start", 7, ts=T0), **said, **more}


def test_execsnoop_prints_bccs_columns() -> None:
    """Name, ids, result and arguments, the first of them the path that the caller gave."""
    rows = [executed(["ls", "a b"], arg_cmdpath="./ls", process_name="ls")]
    assert shown(Execsnoop(), make_batch(rows, HOST)) == [
        "PCOMM            PID     PPID    RET ARGS",
        "ls               7       6         0 ./ls a b",
    ]
    assert execsnoop(*rows, perf=True) == ["7 6 ./ls a b"]


def test_execsnoop_shows_failures_when_asked() -> None:
    """-x adds what failed, with its error; a call beside the event of its success is no second."""
    rows = [
        executed(["x"], event="execve", action="none", arg_pathname="/no", retval=-2),
        executed(["x"], event="execve", action="none", arg_pathname="/yes", retval=0),
        executed(["x"], event="sched_process_exec", arg_cmdpath="/yes"),
    ]
    assert execsnoop(*rows) == ["sh 7 6 0 /yes"]
    assert execsnoop(*rows, fails=True) == ["sh 7 6 -2 /no", "sh 7 6 0 /yes"]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"max_args": 2}, "sh 7 6 0 /bin/x a ..."),
        ({"max_args": 2, "perf": True}, "7 6 /bin/x a [...]"),
        ({"quote": True}, 'sh 7 6 0 "/bin/x" "a" "\\"q\\""'),
        ({"show_uid": True}, '1000 sh 7 6 0 /bin/x a "q"'),
        ({"time": True}, '22:13:20 sh 7 6 0 /bin/x a "q"'),
        ({"timestamp": True}, '0.000 sh 7 6 0 /bin/x a "q"'),
        ({"user": "ann"}, 'sh 7 6 0 /bin/x a "q"'),
        ({"user": "1000", "ppid": 6}, 'sh 7 6 0 /bin/x a "q"'),
    ],
)
def test_options_of_execsnoop(form: dict[str, Any], expected: str) -> None:
    """Each option does to a line what its tool does."""
    assert execsnoop(executed(["x", "a", '"q"'], arg_cmdpath="/bin/x"), **form) == [expected]


@pytest.mark.parametrize("form", [{"user": "bob"}, {"user": "0"}, {"ppid": 7}])
def test_execsnoop_leaves_out_others(form: dict[str, Any]) -> None:
    """Another user's executions, and another parent's, have no line."""
    assert not execsnoop(executed(["x"]), **form)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/bin/sh", "/s.sh", "a"], "/s.sh a"),
        (["/bin/sh", "-e", "/s.sh", "a"], "/s.sh a"),
        (["s.sh", "/s.sh"], "/s.sh /s.sh"),
    ],
)
def test_scripts_show_what_the_caller_gave(argv: list[str], expected: str) -> None:
    """What the kernel puts before a script's arguments is not the caller's."""
    assert execsnoop(executed(argv, arg_cmdpath="/s.sh")) == [f"sh 7 6 0 {expected}"]


def test_what_views_need_can_be_recorded() -> None:
    """Each event that a view asks the recorder for is one of the recorder's, and no other is."""
    known = recorded_events()
    for form in (Form(), ALL, Form(statistics=True)):
        assert set(Forkstat(form).recorded) <= known.keys()
    assert set(Forkstat(Form(events=frozenset({"comm"}))).recorded) == {"task_rename"}
    assert Forkstat(Form(statistics=True)).recorded == Forkstat(ALL).recorded
    assert set(Execsnoop(ExecForm(fails=True)).recorded) <= known.keys()
    assert Execsnoop().recorded == ["sched_process_exec"]


SAMPLES = ("tracee/tracee_event_dump_2022-10.jsonl.gz", "scap/full_capture.scap")


@pytest.mark.parametrize("name", SAMPLES)
def test_views_count_what_a_filter_counts(data: Callable[[str], Path], name: str) -> None:
    """Of other tools' captures, each exec and each exit has its line, and nothing else has."""
    path = data(name)
    found = run("cat", path, "--format", "jsonl", "--fields", "action,retval").stdout
    execs = found.count('"action":"process_start"')
    stops = found.count('"action":"process_stop"')
    assert execs > 0
    assert stops > 0
    lines = run("cat", path, "--view", "execsnoop").stdout.splitlines()
    assert len(lines) == 1 + execs
    lines = run("cat", path, "--view", "forkstat -e exit").stdout.splitlines()
    assert len(lines) == 1 + stops


def test_a_file_shows_what_was_live() -> None:
    """The lines of a stream and those of the capture that was written of it are the same."""
    rows = [fork(1, 7, 5, ts=T0, cmdline="sh"), stop(7, T0 + 5_000_000, cmdline="sh")]
    batches = [make_batch(rows[:1], HOST, Loss("lost", 1)), make_batch(rows[1:])]
    live = shown(Forkstat(), *batches)
    assert any("0.005s" in line for line in live)
    kept = capture(batches)
    result = run("cat", "-", "--view", "forkstat", input=kept)
    assert result.stdout.splitlines() == live
    replayed = run("replay", "-k", "-", "--view", "forkstat", input=kept)
    assert replayed.stdout.splitlines() == live


def test_a_filter_hides_lines_and_changes_none(tmp_path: Path) -> None:
    """With a filter the lines are some of those without it, durations included."""
    rows = [row for pid in (7, 8) for row in (fork(1, pid, pid, ts=T0), stop(pid, T0 + pid))]
    (tmp_path / "a.kcap").write_bytes(capture([make_batch(rows, HOST)]))
    words = ("cat", tmp_path / "a.kcap", "--view", "forkstat -e exit")
    every = run(*words).stdout.splitlines()
    some = run(*words, "-w", "ps.pid = 8").stdout.splitlines()
    assert some == [every[0], *(line for line in every if " 8 " in line)]
    assert len(some) == 2
    assert "0.000s" in some[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--view", "top"), "no view 'top'"),
        (("--view", "forkstat -e open"), "no event 'open'"),
        (("--view", "forkstat -z"), "No such option"),
        (("--view", "forkstat 'x"), "no closing quotation"),
        (("--view", "execsnoop -n ["), "no regular expression"),
        (("--view", "execsnoop", "-e", "fork"), "--view forkstat"),
        (("-e", "fork"), "--view forkstat"),
        (("--view", "forkstat", "--format", "jsonl"), "leave out --format"),
        (("--view", "forkstat", "--fields", "ts"), "leave out --fields"),
    ],
)
def test_wrong_options_are_refused(words: tuple[str, ...], said: str) -> None:
    """What makes no sense is a usage error that says why."""
    result = run("cat", "-", *words, input=capture())
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize("tool", ["forkstat", "execsnoop"])
def test_a_view_has_its_own_help(tool: str) -> None:
    """--help behind a view's name lists that tool's options."""
    result = run("cat", "-", "--view", f"{tool} --help", input=b"")
    assert result.exit_code == 0
    assert f"--view {tool} [OPTIONS]" in result.stdout
