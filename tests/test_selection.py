"""What a recording holds: Tracee's words, events by name, and what the kernel may leave out."""

from __future__ import annotations

import os
import random
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from filter_rows import batch, column
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.errors import KcapError
from kcap.filter import Filter, FilterError, pushdown
from kcap.filter.syntax import text_of
from kcap.model import catalogue as model
from kcap.model.batch import Batch
from kcap.model.classes import TypeClass
from kcap.readers.live import choosing, selection
from kcap.readers.live.bpf import events as catalogue
from kcap.readers.live.bpf.elf import ElfObject
from kcap.readers.live.scopes import Choice, ScopeError, parse
from kcap.readers.live.selection import STATE, Environment, Selection, select
from kcap.readers.live.subjects import Subjects, descendants, look
from kcap.readers.live.tracking import Selected
from kcap.replay.stages import Matching
from kcap.replay.survivors import Selecting

Row = dict[str, Any]
NAMED = choosing.arguments()


def chosen(*tokens: str, **options: Any) -> Selection:
    """The selection of events as --events names them."""
    choices = [Choice(t.removeprefix("-"), drop=t.startswith("-")) for t in tokens]
    return select(choices=choices, **options)


# words


@pytest.mark.parametrize(
    ("texts", "where"),
    [
        (["uid=0"], "uid in (0)"),
        (["u=0,1", "uid=2"], "uid in (0, 1, 2)"),
        (["uid>0", "uid!=1000,1001"], "uid > 0 and not uid in (1000, 1001)"),
        (["pid<=300"], "pid <= 300"),
        (["mntns=4026531840", "pidns!=5"], "mount_ns in (4026531840) and not pid_ns in (5)"),
        (["comm=bash,sh", "c=ls"], "process_name in ('bash', 'sh', 'ls')"),
        (["comm!=a*,*b"], "not (process_name startswith 'a' or process_name endswith 'b')"),
        (["comm=*x*", "uts=h"], "process_name contains 'x' and host = 'h'"),
        (["container"], "exists(container_id)"),
        (["!container"], "not exists(container_id)"),
        (["container=66c2778945e2,web*"], None),
        (["bin=/bin/ls,/bin/sh"], "exe in ('/bin/ls', '/bin/sh')"),
        (["exec=4026531840:/bin/ls"], "mount_ns = 4026531840 and exe = '/bin/ls'"),
        (["executable=host:/bin/ls"], "not exists(container_id) and exe = '/bin/ls'"),
        (["user=root"], "user = 'root'"),
        (["follow", "pid=new", "tree=1", "event=openat", "openat.retval<0"], ""),
    ],
)
def test_scopes_become_conditions(texts: list[str], where: str | None) -> None:
    """All that is said holds at once; of one thing any of the values that it may equal."""
    found = parse(texts, NAMED).where
    if where is None:
        where = "container_id startswith '66c2778945e2' or container_name startswith 'web'"
    assert (text_of(found) if found else "") == where
    if where:
        Filter.of(where)


@pytest.mark.parametrize(
    ("text", "what", "place", "hint"),
    [
        ("uidd=0", "no scope is called 'uidd'", "uidd", "'uid'"),
        ("uid=root", "'root' is no number", "root", "user=root"),
        ("uid", "'uid' needs a value", "uid", None),
        ("uid=", "a value is missing", "uid=", None),
        ("!uid=0", "'!' stands before", "!uid=0", None),
        ("uid>1,2", "'>' takes one value", "1,2", None),
        ("tree>4", "'tree' takes ids", "tree>4", None),
        ("comm=averyveryverylongname", "15 bytes", "averyveryverylongname", "'averyveryverylo'"),
        ("comm=a*b", "a '*' stands at", "a*b", None),
        ("comm>a", "'>' is for numbers", ">", None),
        ("follow=1", "'follow' takes no value", "follow=1", None),
        ("container=started", "has come up", "container=started", "'container'"),
        ("openat", "no scope is called 'openat'", "openat", "event=openat"),
        ("opnat.args.flags=1", "no event is called 'opnat'", "opnat", "'openat'"),
        ("openat.args.pathnam=1", "has no argument 'pathnam'", "pathnam", "'pathname'"),
        ("openat.foo.x=1", "'foo' is nothing of an event", "foo", None),
        ("openat.scope.proccessName=1", "has no 'proccessName'", "proccessName", "'processName'"),
        ("threat.severity>=high", "threats are of detections", "threat.severity", None),
        ("", "'' is no scope", "", "uid=0"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(
    text: str, what: str, place: str, hint: str | None
) -> None:
    """An error says what is wrong, points at it, and says what may have been meant."""
    with pytest.raises(ScopeError) as caught:
        parse([text], NAMED)
    error = caught.value
    assert what in str(error)
    assert str(error).startswith("the scope: ")
    assert text[error.start : error.end] == place
    assert error.exit_code == FilterError.exit_code
    assert hint is None or hint in str(error.hint)


@given(st.text(alphabet="uidpcomtree=!<>.,*new0a \u00e9\0", max_size=20))
def test_any_text_is_understood_or_refused(text: str) -> None:
    """No text raises anything but an error for people, and what is understood is a filter."""
    try:
        found = parse([text], NAMED).where
    except ScopeError:
        return
    if found is not None:
        Filter.of(text_of(found))


# events


def test_the_default_records_files_opened_for_writing() -> None:
    """Executions, forks, exits, connections and security events, of opens those that write."""
    found = select()
    assert found.events == frozenset(catalogue.sets()["default"])
    assert {*STATE, "openat", "connect", "ptrace", "init_module"} <= found.events
    assert not found.events & {"read", "write", "close", "task_rename"}
    assert (found.opens, found.filter, found.asked) == ("writes", None, "")
    assert found.setup().constants["writes_only"] == 1


@pytest.mark.parametrize(
    ("tokens", "events", "opens"),
    [
        (["openat"], {"openat"}, "all"),
        (["open*"], {"open", "openat", "openat2", "open_by_handle_at", "open_tree"}, "all"),
        (["close", "read"], {"close", "read"}, "writes"),
        (["creds", "-set*"], {"capset"}, "writes"),
        (["fs_fd_ops"], {"dup", "dup2", "dup3", "fcntl"}, "writes"),
        (["execve"], {"execve", "sched_process_exec"}, "writes"),
        (["mem_prot_alert"], {"mmap", "mprotect", "pkey_mprotect"}, "writes"),
        (["security_inode_*", "-security_inode_mknod", "-rename*"], None, "writes"),
    ],
)
def test_events_are_chosen_by_name_set_and_pattern(
    tokens: list[str], events: set[str] | None, opens: str
) -> None:
    """A view chooses what it is made of; what is left out goes, however it was chosen."""
    found = chosen(*tokens)
    if events is None:
        events = {"unlink", "unlinkat", "symlink", "symlinkat"}
    assert found.events == events
    assert found.opens == opens


def test_leaving_out_begins_with_the_default() -> None:
    """Where nothing is asked for but what to leave out, the rest of the default stays."""
    default = frozenset(catalogue.sets()["default"])
    assert chosen("-openat").events == default - {"openat"}
    assert chosen("default", "read").opens == "writes"
    assert chosen("default", "openat").opens == "all"
    assert chosen("default", "openat", opens="writes").opens == "writes"


@pytest.mark.parametrize(("token", "hint"), [("opnat", "openat"), ("-default", "leave fewer")])
def test_an_event_that_there_is_not_is_refused(token: str, hint: str) -> None:
    """The nearest name is suggested; nothing to record is an error."""
    with pytest.raises(KcapError) as caught:
        chosen(token)
    assert hint in str(caught.value.hint)


def test_every_set_is_of_events_that_there_are() -> None:
    """The sets of Tracee hold names of our events only."""
    for name, members in choosing.sets().items():
        assert members, name
        assert members <= NAMED.keys(), name


@pytest.mark.parametrize(
    ("where", "events"),
    [
        ("evt.name = 'read'", {"read"}),
        ("evt.name startswith 'open' and pid = 5", None),
        ("evt.name = 'security_socket_bind'", {"bind"}),
        ("evt.name in ('execve', 'close')", {"execve", "sched_process_exec", "close"}),
        ("not evt.name = 'openat'", "default"),
        ("pid = 5", "default"),
    ],
)
def test_a_filter_that_names_events_chooses_them(where: str, events: Any) -> None:
    """One that only says which it does not want leaves the default."""
    if events is None:
        events = {name for name in catalogue.events() if name.startswith("open")}
    if events == "default":
        events = set(catalogue.sets()["default"]) - ({"openat"} if "not" in where else set())
    assert select(where=Filter.of(where)).events == events


def test_a_filter_that_is_never_true_is_told_of() -> None:
    """A misspelled event records nothing, and the user is told so."""
    assert select(where=Filter.of("evt.name = 'raed'")).notes
    assert not select(where=Filter.of("evt.name = 'read'")).notes


def test_a_condition_on_a_view_is_asked_of_what_it_is_made_of() -> None:
    """An event that was chosen by its own name, too, needs not meet it."""
    found = chosen(scopes=["security_file_open.args.pathname=/etc/*"])
    assert found.events == choosing.derived()["security_file_open"].keys()
    rows = [
        {"event": "openat", "arg_pathname": "/etc/x"},
        {"event": "openat", "arg_pathname": "/tmp/x"},
        {"event": "sched_process_fork"},
    ]
    assert kept(found, rows) == [0]
    assert kept(chosen("openat", scopes=["security_file_open.args.pathname=/etc/*"]), rows) == [
        0,
        1,
    ]


@pytest.mark.parametrize(
    ("text", "level", "names", "shown"),
    [
        ("all", 2, None, "all"),
        ("none", 0, None, "none"),
        ("LD_PRELOAD", 1, {"LD_PRELOAD"}, "LD_PRELOAD"),
        ("HOME,LD_PRELOAD", 2, {"HOME", "LD_PRELOAD"}, "HOME, LD_PRELOAD"),
    ],
)
def test_variables(text: str, level: int, names: set[str] | None, shown: str) -> None:
    """The kernel reads the whole environment only where it must."""
    found = Environment.of(text)
    assert (found.level, found.names, str(found)) == (level, names, shown)


@pytest.mark.parametrize("text", ["", "A,", "A=1", "A\nB"])
def test_what_is_no_variable_is_refused(text: str) -> None:
    """A name is not empty and has no equals sign."""
    with pytest.raises(KcapError):
        Environment.of(text)


# the kernel leaves out no event that is wanted

VALUES: dict[str, tuple[TypeClass, list[Any]]] = {
    "event": (TypeClass.STR, [*STATE, "openat", "close", "connect", "execve"]),
    "process_name": (TypeClass.STR, ["sh", "bash", "", "a\\xff", "fifteen_letters"]),
    "pid": (TypeClass.I64, [1, 2, 5, 4294967295]),
    "uid": (TypeClass.I64, [0, 1, 1000, 4294967295]),
    "cgroup_id": (TypeClass.I64, [1, 7, 9]),
    "mount_ns": (TypeClass.I64, [4026531840, 3]),
    "arg_pathname": (TypeClass.STR, ["/etc/passwd", "/tmp/x", None]),
    "retval": (TypeClass.I64, [-1, 0]),
    "container_id": (TypeClass.STR, [None]),
}
SCOPES = [
    *["uid=0", "uid>0", "uid<=1000", "uid!=0", "uid=0,1000", "pid=1,2", "pid!=5", "pid>1"],
    *["comm=sh", "comm=sh,bash", "comm!=sh", "comm=b*", "comm=fifteen_letters", "mntns=3"],
    *["mntns!=3", "openat.args.pathname=/etc/*", "close.retval<0", "event=openat,close"],
    *["event!=openat", "container", "!container", "container=new", "set=process"],
]
FILTERS = [
    *["pid = 5", "ps.name = 'sh'", "ps.name != 'sh' and uid > 0", "not (uid = 0 or pid = 1)"],
    *["evt.name = 'openat'", "evt.name = 'security_file_open' and uid = 0", "ps.name ~= 'SH'"],
    *["evt.name in ('execve', 'close') and ps.name = 'sh'", "cgroup_id in (1, 9)", "uid >= 1"],
    *["ps.name = 'a\\\\xff'", "pid in (1, 5) and not pid = 5", "uid = -1", "exists(pid)"],
]
CGROUPS = {1: None, 7: "7" * 64, 9: "9" * 64}


def events_of(rows: list[Row]) -> Batch:
    """Events of rows."""
    classes = {name: cls for name, (cls, _) in VALUES.items()}
    return batch({n: column(c, [r.get(n) for r in rows]) for n, c in classes.items()}, len(rows))


def kept(wanted: Selection, rows: list[Row]) -> list[int]:
    """The rows that are recorded."""
    events = events_of(
        [{**row, "retval": row.get("retval", number)} for number, row in enumerate(rows)]
    )
    inner = [] if wanted.where is None else [Matching(wanted.where, storing=True)]
    for stage in Selected.around(wanted, inner):
        events = stage.process(events)
    return events.numpy("retval", -1).tolist()


class Other:
    """A stage that does not give events as it got them."""

    def process(self, events: Batch) -> Batch:
        """Let all be of one user."""
        uids = column(TypeClass.I64, [7] * events.rows)
        assert uids is not None
        return events.adding({"uid": uids}).slice(0, events.rows - 1)


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_events_that_are_kept_need_not_be_copied_again(seed: int, states: bool) -> None:
    """Stages that give events as they get them have kept what would be taken once more."""
    rng = random.Random(seed)
    rows = [{n: rng.choice(found) for n, (_, found) in VALUES.items()} for _ in range(50)]
    events = events_of(rows)
    kinds = column(TypeClass.STR, [rng.choice(["event", "state"]) for _ in rows])
    events = events.adding({"kind": kinds} if states and kinds is not None else {})

    def kept_by(stage: Matching | Other, *, unchanged: bool) -> tuple[Any, ...]:
        selecting = Selecting([stage], limit=None, state=True, unchanged=unchanged)
        left = selecting.process(events)
        return left.rows, left.to_pylist(), left.before, sorted(left.names), selecting.dropped

    ours = [
        kept_by(Matching(Filter.of("pid = 5 or uid = 0"), storing=True), unchanged=unchanged)
        for unchanged in (False, True)
    ]
    assert ours[0] == ours[1]
    assert 0 < ours[0][0] < len(rows)
    if not states:
        others = [kept_by(Other(), unchanged=unchanged) for unchanged in (False, True)]
        assert others[0] != others[1]


def passes(setup: Any, row: Row) -> bool:
    """Whether the kernel program hands on an event: ``in_scope`` of scope.h."""
    if row["event"] in STATE:
        return True
    if row["event"] not in setup.events:
        return False
    constants = {"uid_min": 0, "pid_min": 0, "uid_max": 2**32 - 1, "pid_max": 2**32 - 1}
    constants |= setup.constants
    if not constants["scoped"]:
        return True
    if row["pid"].to_bytes(4, "little") in setup.maps.get("tracked", {}):
        return True
    if constants["want_tracked"]:
        return False
    for name in ("uid", "pid"):
        if not constants[f"{name}_min"] <= row[name] <= constants[f"{name}_max"]:
            return False
    raw = {"a\\xff": b"a\xff"}.get(row["process_name"], row["process_name"].encode())
    keys = {"comm": raw.ljust(16, b"\0"), "cgroup": row["cgroup_id"].to_bytes(8, "little")}
    keys |= {n: row[n].to_bytes(4, "little") for n in ("uid", "pid", "mount_ns")}
    for name, key in keys.items():
        value = setup.maps.get(f"scope_{name}", {}).get(key)
        if constants.get(f"equals_{name}") and value != b"\x01":
            return False
        if constants.get(f"unequal_{name}") and value == b"\x02":
            return False
    return True


def overlooked(seed: int) -> list[str]:
    """Selections with events that are wanted and that the kernel would have left out."""
    rng = random.Random(seed)
    found = []
    for _ in range(12):
        scopes = rng.sample(SCOPES, rng.randrange(4))
        where = rng.choice([None, *map(Filter.of, FILTERS)])
        try:
            wanted = select(scopes=scopes, where=where)
        except KcapError:
            continue  # all events were left out
        new = frozenset(c for c in CGROUPS.values() if c)
        wanted = wanted.at(Subjects(CGROUPS, new))
        rows = []
        for _ in range(30):
            row = {name: rng.choice(pool) for name, (_, pool) in VALUES.items()}
            row["container_id"] = CGROUPS[row["cgroup_id"]]
            rows.append(row)
        setup = wanted.setup()
        # Events that the kernel is not told to record never come.
        possible = [r for r in rows if r["event"] in wanted.events or r["event"] in STATE]
        found += [
            f"{scopes} {where and where.text} {row}"
            for row in possible
            if not passes(setup, row) and kept(wanted, [row])
        ]
    return found


@settings(max_examples=60)
@given(st.integers(0, 1 << 32))
def test_the_kernel_leaves_out_nothing_that_is_wanted(seed: int) -> None:
    """Whatever is asked for: an event that is kept gets through the tests of the kernel."""
    assert overlooked(seed) == []


@pytest.mark.parametrize("broken", ["names", "sides", "ranges"])
def test_the_property_finds_what_the_kernel_is_told_wrong(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of tables that are wrong in one place only the property says so."""
    if broken == "names":
        real = selection._keys
        monkeypatch.setattr(selection, "_keys", lambda *a: (k := real(*a)) and k[1:])
    elif broken == "sides":
        monkeypatch.setattr(selection, "_EQUAL", b"\x02")
    else:
        real_ordered = pushdown._ordered
        monkeypatch.setattr(pushdown, "_ordered", lambda *a: (f := real_ordered(*a)) and f[::-1])
    assert any(overlooked(seed) for seed in range(12))


def test_the_kernel_program_has_what_it_is_told() -> None:
    """Every constant and table that a selection fills is in the object that is shipped."""
    scopes = ["uid>0", "uid!=5", "pid<9", "pid=3", "comm!=a", "mntns=1", "pidns!=2", "!container"]
    told = [select(scopes=scopes).at(Subjects({7: "7" * 64})).setup()]
    told += [select(scopes=s).setup() for s in (["tree=1"], ["follow", "comm=a"], ["uid=1"])]
    content = resources.files("kcap.readers.live.bpf").joinpath("recorder.bpf.o").read_bytes()
    there = ElfObject(content)
    for setup in told:
        assert setup.constants.keys() <= there.variables.keys()
        assert setup.maps.keys() <= there.maps.keys()


def test_views_differ_from_calls_in_no_column_that_the_kernel_tests() -> None:
    """But those of executions, which always come."""
    for entry in model.derived(choosing.FAMILY):
        if entry.base not in STATE:
            assert not {name for name, _ in entry.columns} & {*pushdown.COLUMNS} - {"event"}


# what is there


def test_descendants() -> None:
    """Children's children belong to a tree, others don't; a circle has an end."""
    parents = {1: 0, 2: 1, 3: 2, 4: 9, 9: 4}
    assert descendants([2], parents) == {2, 3}
    assert descendants([1, 4], parents) == {1, 2, 3, 4, 9}


def test_this_host_is_looked_at() -> None:
    """A tree has its root and its children; one without a root is refused."""
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            found = look(parse([f"tree={os.getpid()}"], NAMED))
            assert {os.getpid(), child.pid} <= found.members
            assert 1 not in found.members
        finally:
            child.kill()
    with pytest.raises(KcapError, match="no process"):
        look(parse(["tree=4194304"], NAMED))


def test_control_groups_of_containers_are_told_apart(tmp_path: Path) -> None:
    """Groups that are there and are not meant are left out by the kernel, others never."""
    root = tmp_path / "cgroup"
    inside = root / "system.slice" / f"docker-{'a' * 64}.scope"
    inside.mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "mounts").write_text(f"cgroup2 {root} cgroup2 rw 0 0\n")
    (tmp_path / "self" / "cgroup").write_text("0::/system.slice\n")
    number = inside.stat().st_ino
    outside = root.joinpath("system.slice").stat().st_ino
    for text, left_out in (
        ("container", outside),
        ("!container", number),
        ("container=new", number),
    ):
        scope = parse([text], NAMED)
        wanted = select(scopes=[text]).at(look(scope, proc=str(tmp_path)))
        setup = wanted.setup()
        table = setup.maps["scope_cgroup"]
        assert table[left_out.to_bytes(8, "little")] == b"\x02"
        assert setup.constants["unequal_cgroup"] == 1
        meant = [{"event": "connect", "container_id": c} for c in ("a" * 64, "b" * 64, None)]
        assert kept(wanted, meant) == {"container": [0, 1], "!container": [2]}.get(text, [1])
    # All in the root of version 2, and nobody knows in which container.
    (tmp_path / "self" / "cgroup").write_text("0::/\n")
    assert not look(parse(["!container"], NAMED), proc=str(tmp_path)).cgroups
