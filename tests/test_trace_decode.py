"""Records of tracepoints become the events that they tell of, whatever batches they come in."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_records import CLOCKS, Made, MadeUp, decoder, record, samples

from kcap.model.batch import Batch, concat
from kcap.readers.live.procfs import Image
from kcap.readers.live.trace import lives
from kcap.readers.live.trace.decode import Decoder
from kcap.readers.live.trace.lives import CLONE_THREAD
from kcap.readers.live.trace.points import Points, known, knows
from kcap.readers.live.trace.samples import UNKNOWN

Row = dict[str, Any]

WANTED = ("kill", "mprotect", "execve", "inet_sock_set_state", "module_load", "task_rename")
PLAIN = tuple(name for name in WANTED if name != "task_rename")
EXEC, FORK, EXIT, NEW, RENAME = (
    "sched/sched_process_exec",
    "sched/sched_process_fork",
    "sched/sched_process_exit",
    "task/task_newtask",
    "task/task_rename",
)
ENTER_KILL, EXIT_KILL = "syscalls/sys_enter_kill", "syscalls/sys_exit_kill"
QUIT, QUIT_GROUP = "syscalls/sys_enter_exit", "syscalls/sys_enter_exit_group"
DELIVER, GENERATE = "signal/signal_deliver", "signal/signal_generate"
STATE = "sock/inet_sock_set_state"


@cache
def points(wanted: tuple[str, ...]) -> Points:
    """The tracepoints of some events."""
    return Points(wanted, MadeUp())


def made_by(wanted: tuple[str, ...] = PLAIN, groups: dict[int, int] | None = None) -> Decoder:
    """A decoder."""
    return decoder(points(wanted), groups)


def rows(
    by: Decoder, records: list[Made], images: dict[tuple[int, int], Image] | None = None
) -> list[Row]:
    """The events of some records, without what is null."""
    count, columns, losses = by.batch(samples(records), images or {})
    assert losses == []
    every = Batch(count, columns).to_pylist()
    return [{k: v for k, v in row.items() if v is not None} for row in every]


class Story:
    """Tasks that live, what the kernel would write of them, and what is to be told.

    Args:
        told: The ring says whose a record is.
    """

    def __init__(self, *, told: bool) -> None:
        self._told = told
        self.live: dict[int, int] = {100: 100}
        self.calls: dict[int, tuple[int, int]] = {}
        self.records: list[Made] = []
        self.events: list[Row] = []
        self._next = 101
        self._ends: dict[int, int] = {}

    @property
    def now(self) -> int:
        return 1000 + len(self.records)

    def put(self, name: str, tid: int, **values: Any) -> None:
        task = self.live[tid] if self._told else UNKNOWN
        self.records.append(record(name, self.now, tid, task=task, **values))

    def tell(self, event: str, tid: int, **values: Any) -> None:
        ts = CLOCKS.realtime_ns + self.now - 1
        self.events.append({"event": event, "tid": tid, "pid": self.live[tid], "ts": ts, **values})

    def fork(self, tid: int, *, thread: bool) -> None:
        child, self._next = self._next, self._next + 1
        start = self.now
        self.put(NEW, tid, pid=child, comm="x", clone_flags=CLONE_THREAD if thread else 17)
        self.put(FORK, tid, parent_comm="bash", parent_pid=tid, child_comm="y", child_pid=child)
        pid = self.live[tid] if thread else child
        told = {"arg_child_tid": child, "arg_child_pid": pid, "arg_start_time": start}
        self.tell("sched_process_fork", tid, process_name="bash", arg_parent_tid=tid, **told)
        self.live[child] = pid
        self._ends.pop(child, None)

    def execute(self, tid: int, name: str) -> None:
        if self.live[tid] != tid:
            return  # another thread than the first one: too much for this story
        self.put(RENAME, tid, pid=tid, oldcomm="old", newcomm=name)
        self.put(EXEC, tid, filename=f"/bin/{name}", pid=tid, old_pid=tid)
        told = {"arg_cmdpath": f"/bin/{name}", "exe": f"/bin/{name}", "provenance": "exe:user"}
        names = {"process_name": name, "arg_prev_comm": "old", "arg_old_tid": tid}
        self.tell("sched_process_exec", tid, **told, **names)

    def begin(self, tid: int, target: int) -> None:
        if tid not in self.calls:
            self.put(ENTER_KILL, tid, pid=target, sig=15)
            self.calls[tid] = (target, 15)

    def end(self, tid: int, result: int) -> None:
        asked = self.calls.pop(tid, None)
        self.put(EXIT_KILL, tid, ret=result)
        told = {} if asked is None else {"arg_pid": asked[0], "arg_sig": asked[1]}
        status = {0: "SUCCESS", -3: "ESRCH"}[result]
        self.tell("kill", tid, retval=result, status=status, syscall="kill", **told)

    def quit(self, tid: int, code: int) -> None:
        pid = self.live[tid]
        if tid == 100 or pid == 100:
            return  # somebody has to live on
        self.put(QUIT, tid, error_code=code)
        alone = list(self.live.values()).count(pid) == 1
        self.put(EXIT, tid, comm="name", pid=tid, prio=0, group_dead=alone)
        told = {"arg_exit_code": code & 0xFF, "arg_wait_status": (code & 0xFF) << 8}
        self.tell("sched_process_exit", tid, process_name="name", **told)
        self.calls.pop(tid, None)
        del self.live[tid]


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Stories of a few tasks."""
    story = Story(told=draw(st.booleans()))
    for _ in range(draw(st.integers(0, 25))):
        tid = draw(st.sampled_from(sorted(story.live)))
        what = draw(st.integers(0, 5))
        if what == 0:
            story.fork(tid, thread=draw(st.booleans()))
        elif what == 1:
            story.execute(tid, draw(st.sampled_from(["sh", "true"])))
        elif what == 2:
            story.begin(tid, draw(st.integers(1, 99)))
        elif what in (3, 4):
            story.end(tid, draw(st.sampled_from([0, -3])))
        else:
            story.quit(tid, draw(st.integers(0, 511)))
    return story


@settings(max_examples=settings.default.max_examples // 4)
@given(stories(), st.lists(st.integers(0, 60), max_size=3))
def test_a_story(story: Story, cuts: list[int]) -> None:
    """Every event is told with its process, names and results; batches make no difference."""
    whole = rows(made_by(groups={100: 100}), story.records)
    assert len(whole) == len(story.events)
    for told, expected in zip(whole, story.events, strict=True):
        assert {name: told.get(name) for name in expected} == expected
        event = next(e for e in known().values() if e.name == told["event"])
        may = {f"arg_{each.name}" for each in event.arguments if knows(event, each)}
        assert {name for name in told if name.startswith("arg_")} <= may, "as docs/events.md says"
    by = made_by(groups={100: 100})
    places = sorted({0, *(min(cut, len(story.records)) for cut in cuts), len(story.records)})
    parts = [
        rows(by, story.records[a:b]) for a, b in zip(places, [*places[1:], places[-1]], strict=True)
    ]
    assert [row for part in parts for row in part] == whole


def test_a_thread_that_is_only_in_proc() -> None:
    """Without a ring that says whose a record is, /proc says it; where nobody does, it is null."""
    calls = [record(EXIT_KILL, 1, 7, ret=0), record(EXIT_KILL, 2, 8, ret=0)]
    found = rows(made_by(groups={7: 5}), calls)
    assert [(row["tid"], row.get("pid")) for row in found] == [(7, 5), (8, None)]
    told = [record(EXIT_KILL, 1, 7, task=6, ret=0)]
    assert [row["pid"] for row in rows(made_by(groups={7: 5}), told)] == [6], "the ring knows best"


def test_a_call_that_another_interrupts() -> None:
    """Arguments are those of the call that ends: never of another one, nor of another thread."""
    enter = "syscalls/sys_enter_mprotect"
    leave = "syscalls/sys_exit_mprotect"
    told = rows(
        made_by(),
        [
            record(ENTER_KILL, 1, 7, task=7, pid=1, sig=2),
            record(ENTER_KILL, 2, 8, task=7, pid=3, sig=4),
            record(enter, 3, 7, task=7, start=4096, len=1, prot=5),  # the end of kill was lost
            record(leave, 4, 7, task=7, ret=0),
            record(EXIT_KILL, 5, 7, task=7, ret=0),
            record(EXIT_KILL, 6, 8, task=7, ret=-1),
        ],
    )
    assert [(r["event"], r["tid"], r.get("arg_pid"), r.get("arg_sig")) for r in told] == [
        ("mprotect", 7, None, None),
        ("kill", 7, None, None),
        ("kill", 8, 3, 4),
    ]
    assert (told[0]["arg_addr"], told[0]["arg_prot"]) == (4096, 5)
    assert told[1]["shape"] == "!pid:int,!sig:int"
    assert told[2]["shape"] == "pid:int,sig:int"
    assert told[2]["status"] == "EPERM"


def test_a_call_that_takes_long() -> None:
    """What was asked for is known until it ends, batches later; not beyond the thread's end."""
    begin = record(ENTER_KILL, 1, 7, task=7, pid=1, sig=2)
    end = record(EXIT_KILL, 9, 7, task=7, ret=0)
    for between, told in (
        (record(EXIT_KILL, 5, 8, task=8, ret=0), (1, 2)),
        (record(EXIT, 5, 7, task=7, comm="x", pid=7), (None, None)),
    ):
        by = made_by()
        assert rows(by, [begin]) == []
        assert len(rows(by, [between])) == 1
        (ended,) = rows(by, [end])
        assert (ended.get("arg_pid"), ended.get("arg_sig")) == told
        assert "arg_pid" not in rows(by, [end])[0], "it ended once"


def test_a_call_whose_beginning_the_kernel_left_out() -> None:
    """A filter lets pass only what matters; the end of what it did not let pass is no event."""
    leave = record("syscalls/sys_exit_mprotect", 1, 7, task=7, ret=0)
    assert rows(made_by(), [leave]) == []
    assert rows(made_by(), [record(ENTER_KILL, 0, 7, task=7, pid=1, sig=2), leave]) == []
    assert len(rows(made_by(), [record(EXIT_KILL, 1, 7, task=7, ret=0)])) == 1


def test_an_execution_that_failed() -> None:
    """It is told as a call; one that succeeded is told as an execution alone."""
    enter, leave = "syscalls/sys_enter_execve", "syscalls/sys_exit_execve"
    for result, expected in ((-2, ["execve"]), (0, [])):
        told = rows(
            made_by(),
            [
                record(enter, 1, 7, task=7, filename=4096, argv=1, envp=2),
                record(leave, 2, 7, task=7, ret=result),
            ],
        )
        assert [row["event"] for row in told] == expected
        assert not [name for row in told for name in row if name.startswith("arg_")]


ENDS: dict[str, tuple[list[Made], int | None]] = {
    "it asked for it": ([record(QUIT_GROUP, 1, 7, task=7, error_code=3)], 3 << 8),
    "a thread asked first": (
        [
            record(QUIT_GROUP, 1, 8, task=7, error_code=3),
            record(QUIT_GROUP, 2, 7, task=7, error_code=4),
        ],
        3 << 8,
    ),
    "SIGTERM, delivered as SIGKILL": (
        [record(GENERATE, 1, 50, task=50, sig=15, pid=7), record(DELIVER, 2, 7, task=7, sig=9)],
        15,
    ),
    "SIGSEGV": ([record(DELIVER, 2, 7, task=7, sig=11)], 11),
    "its end, then SIGKILL for the threads": (
        [
            record(QUIT_GROUP, 1, 8, task=7, error_code=3),
            record(DELIVER, 2, 7, task=7, sig=9),
        ],
        3 << 8,
    ),
    "SIGKILL that nobody sent": ([record(DELIVER, 2, 7, task=7, sig=9)], None),
    "SIGCHLD ends nothing": ([record(DELIVER, 2, 7, task=7, sig=17)], None),
    "nothing": ([], None),
}


@pytest.mark.parametrize("kind", ENDS)
def test_ends(kind: str) -> None:
    """How a process ended is what it asked for or the signal that it got; else it is not said."""
    before, status = ENDS[kind]
    by = made_by(groups={7: 7})
    end = record(EXIT, 9, 7, task=7, comm="x", pid=7, group_dead=True)
    (told,) = rows(by, [*before, end])
    if status is None:
        assert not {"arg_exit_code", "arg_signal_code", "arg_wait_status"} & told.keys()
    else:
        assert (told["arg_exit_code"], told["arg_signal_code"]) == (status >> 8, status & 0x7F)
        assert told.get("arg_wait_status") == (None if status & 0x7F else status)
    assert told["arg_process_group_exit"]
    # A new process with its id has nothing of that.
    born = [record(NEW, 10, 50, pid=7, clone_flags=17), record(FORK, 11, 50, child_pid=7)]
    told = rows(by, [*born, end._replace(time_ns=12)])[-1]
    assert "arg_exit_code" not in told


SEEN = Image(
    pid=7, ppid=1, session=7, start_ns=0, name="true", exe="/usr/bin/true", argv=["true", "x"],
    cmdline="true x", cwd=None, uid=0, gid=0, user="root", container_id=None,
)  # fmt: skip


def test_whose_a_process_is_afterwards() -> None:
    """Of setuid, which does not say what it changes, /proc says it; else it stays empty."""
    asked = record("syscalls/sys_enter_setuid", 1, 7, task=7, uid=65534)
    done = record("syscalls/sys_exit_setuid", 5, 7, task=7, ret=0)
    by = made_by(("setuid",))
    for images, found in (({(7, 5): SEEN._replace(uid=65534)}, 65534), ({(8, 5): SEEN}, None)):
        (told,) = rows(by, [asked, done], images)
        assert (told["arg_uid"], told.get("arg_ruid")) == (65534, found)
        assert told.get("provenance") == ("arg_ruid:procfs" if found else None)
        assert told["shape"].split(",")[1] == ("" if found else "!") + "ruid:unsigned int"


def test_an_execution_that_proc_has_seen() -> None:
    """What /proc said stands in the row and is marked; without it, the path that was asked for."""
    executed = record(EXEC, 5, 7, task=7, filename="/bin/true", pid=7, old_pid=7)
    (told,) = rows(made_by(), [executed], {(7, 5): SEEN})
    assert (told["exe"], told["arg_pathname"]) == ("/usr/bin/true", "/usr/bin/true")
    assert (told["arg_cmdpath"], told["arg_argv"]) == ("/bin/true", ["true", "x"])
    assert (told["cmdline"], told["user"], told["ppid"]) == ("true x", "root", 1)
    assert told["provenance"] == (
        "arg_argv:procfs,arg_pathname:procfs,cmdline:procfs,exe:procfs,gid:procfs,ppid:procfs,"
        "session:procfs,uid:procfs,user:passwd"
    )
    for path, exe in (("/bin/true", "/bin/true"), ("./true", None), ("/dev/fd/3", None)):
        executed = record(EXEC, 5, 7, task=7, filename=path, pid=7, old_pid=7)
        (told,) = rows(made_by(), [executed], {(7, 6): SEEN})
        assert told.get("exe") == exe
        assert "arg_argv" not in told


def test_connections() -> None:
    """Addresses of both families; an end without a port is none; in an interrupt it is nobody's."""
    v4 = {"family": 2, "saddr": bytes([10, 0, 0, 1]), "daddr": bytes([10, 0, 0, 2])}
    v6 = {"family": 10, "saddr_v6": bytes(15) + b"\1", "daddr_v6": bytes(16)}
    told = rows(
        made_by(),
        [
            record(STATE, 1, 7, task=7, oldstate=2, newstate=1, sport=5000, dport=80, **v4),
            record(STATE, 2, 7, task=7, oldstate=7, newstate=10, sport=22, dport=0, **v6),
            record(STATE, 3, 7, task=7, flags=0x10, oldstate=1, newstate=8, sport=1, dport=2, **v4),
        ],
    )
    assert [row["fd_name"] for row in told] == [
        "10.0.0.1:5000->10.0.0.2:80",
        "::1:22",
        "10.0.0.1:1->10.0.0.2:2",
    ]
    assert told[0]["arg_remote_addr"] == (
        '{"sa_family":"AF_INET","sin_addr":"10.0.0.2","sin_port":"80"}'
    )
    assert [row["fd_type"] for row in told] == ["ipv4", "ipv6", "ipv4"]
    assert [row.get("pid") for row in told] == [7, 7, None]
    assert "arg_remote_addr" not in told[1]
    assert told[1]["shape"].endswith("!remote_addr:struct sockaddr*")


def test_modules_and_names() -> None:
    """The name of a module, and a new name of a task, as the kernel has them."""
    told = rows(
        made_by(WANTED),
        [
            record("module/module_load", 1, 7, task=7, taints=0, name="kcap_test"),
            record(RENAME, 2, 7, task=7, pid=7, oldcomm="old", newcomm="naïve"),
        ],
    )
    assert [row["event"] for row in told] == ["module_load", "task_rename"]
    assert (told[0]["arg_name"], told[0]["action"]) == ("kcap_test", "driver_load")
    assert (told[1]["arg_old_name"], told[1]["arg_new_name"]) == ("old", "naïve")
    assert rows(made_by(), [record(RENAME, 2, 7, task=7, oldcomm="a", newcomm="b")]) == []


def test_what_is_no_record_is_counted() -> None:
    """Types that nobody asked for and records that are too short are damaged; the rest is read."""
    good = record(EXIT_KILL, 1, 7, task=7, ret=0)
    odd = good._replace(data=b"\xff\xff" + good.data[2:])
    short = good._replace(data=good.data[:12])
    outside = record(EXEC, 2, 7, task=7, filename="x", pid=7, old_pid=7)
    at = outside.data.index(b"x\0")
    outside = outside._replace(data=outside.data[:8] + b"\xff\xff\xff\x7f" + outside.data[12:])
    assert at
    by = made_by()
    count, columns, losses = by.batch(samples([odd, good, short, outside]), {})
    assert [(loss.kind, loss.count) for loss in losses] == [("damaged", 2)]
    told = Batch(count, columns).to_pylist()
    assert [row["event"] for row in told] == ["kill", "sched_process_exec"]
    assert told[1].get("arg_cmdpath") is None


def test_tables_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of tasks whose ends were lost is bounded; the latest are known."""
    monkeypatch.setattr(lives, "KEPT", 8)
    by = made_by()
    births = [record(NEW, i, 1, task=1, pid=100 + i, clone_flags=17) for i in range(50)]
    assert rows(by, births) == []
    assert list(by._lives._born) == list(range(142, 150))


def test_nothing() -> None:
    """No records make no rows, and an empty batch can be joined with others."""
    count, columns, losses = made_by().batch(samples([]), {})
    assert (count, columns, losses) == (0, {}, [])
    assert concat([Batch(0, {}), Batch(0, {})]).rows == 0
