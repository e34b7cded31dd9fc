"""What Tracee's signatures look at: each with what must not raise it, in all forms of events."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import gob_support as gs
import pytest
from cli_support import run
from hypothesis import given
from hypothesis import strategies as st
from tracee_signatures_support import event, rules, told

from kcap.detect.engine import Detections
from kcap.detect.feed import feed, source
from kcap.detect.room import Bounds
from kcap.errors import KcapError
from kcap.model import decode
from kcap.model.alert import SEVERITIES
from kcap.readers.rules.tracee import SETS, TraceeRules, described, signatures
from kcap.readers.tracee_gob import TraceeGobReader

Events = list[dict[str, Any]]

SEED_EVENTS: Final = (
    "close,dup,dup2,dup3,execve,hooked_syscalls,init_module,magic_write,mem_prot_alert,"
    "process_vm_writev,ptrace,sched_process_exec,sched_process_exit,security_bprm_check,"
    "security_file_open,security_kernel_read_file,security_sb_mount,security_socket_connect"
)
ELF: Final = b"\x7fELF\x02\x01\x01"
ELF_TEXT: Final = base64.b64encode(ELF).decode()
INET: Final = {"sa_family": "AF_INET", "sin_addr": "10.0.0.2", "sin_port": "4444"}
UNIX: Final = {"sa_family": "AF_UNIX", "sun_path": "/var/run/docker.sock"}
HOOKS: Final = [{"SymbolName": "kill", "ModuleOwner": "hidden"}]
ENVIRONMENT: Final = [
    "A=b",
    "KUBERNETES_SERVICE_HOST= 10.0.0.2 ",
    "KUBERNETES_SERVICE_HOST=9.9.9.9",
]


def opened(path: str, flags: object = "O_WRONLY", name: str = "sh") -> dict[str, Any]:
    return event("security_file_open", {"processName": name}, pathname=path, flags=flags)


def read(path: str, name: str = "sh") -> dict[str, Any]:
    return opened(path, "O_RDONLY", name)


def renamed(new: str, old: str = "/tmp/old") -> dict[str, Any]:
    return event("security_inode_rename", old_path=old, new_path=new)


def executed(path: str, name: str = "x", **arguments: Any) -> dict[str, Any]:
    return event("sched_process_exec", {"processName": name}, pathname=path, **arguments)


def written(path: str, content: object = ELF_TEXT) -> dict[str, Any]:
    return event("magic_write", pathname=path, bytes=content)


def connected(fd: int, address: object = INET, pid: int | None = 5) -> dict[str, Any]:
    return event("security_socket_connect", {"processId": pid}, sockfd=fd, remote_addr=address)


def injected(target: int, pid: int = 5) -> dict[str, Any]:
    return event("process_vm_writev", {"processId": pid}, pid=target)


def checked(path: str, name: str) -> dict[str, Any]:
    return event("security_bprm_check", {"processName": name}, pathname=path)


def duplicated(old: int, new: int, pid: int | None = 5) -> dict[str, Any]:
    return event("dup2", {"processId": pid}, oldfd=old, newfd=new)


def mounted(device: str, name: str = "sh", tid: int = 1) -> dict[str, Any]:
    return event("security_sb_mount", {"processName": name, "threadId": tid}, dev_name=device)


def asked(request: object) -> dict[str, Any]:
    return event("ptrace", request=request)


def pod(name: str, **arguments: Any) -> dict[str, Any]:
    return event(name, {"containerId": "c1"}, **arguments)


CONTROL: Final = [
    asked("PTRACE_PEEKTEXT"), opened("/tmp/x"), read("/tmp/x"), renamed("/tmp/x"), executed("/x"),
    written("/tmp/x", "AAAA"), connected(7), injected(5), checked("/bin/sh", "ssh"),
    duplicated(7, 3), mounted("tmpfs"), event("mem_prot_alert", alert=2),
    event("security_kernel_read_file", type="security-policy"),
    event("hooked_syscalls", hooked_syscalls=[]),
    event("hooked_proc_fops", hooked_fops_pointers=[]),
    event("security_file_open", pathname="/etc/sudoers"), event("ptrace"), event("magic_write"),
]  # fmt: skip
"""Events that raise nothing, whatever the signature; the last ones lack an argument."""

ADDRESS: Final = {"ip": "10.0.0.2", "port": "4444", "fd": 0}
LATER: Final = {"IP address": "10.0.0.2", "Port": "4444", "File descriptor": 1}
SERVICE: Final = {"ip": "10.0.0.2"}

FIRES: Final[list[tuple[str, str, Events, Any]]] = [
    ("TRC-1", "seed", [connected(0)], ADDRESS),
    ("TRC-1", "seed", [connected(3), duplicated(3, 0)], ADDRESS),
    ("TRC-1", "seed", [connected(3, pid=None), duplicated(3, 0, pid=None)], ADDRESS),
    ("TRC-1", "seed", [connected(3), event("dup2", {"processId": 5}, oldfd="3=socket",
     newfd="0=/dev/null")], ADDRESS),
    ("TRC-1", "seed", [connected(0, UNIX)], {"ip": "", "port": "", "fd": 0}),
    ("TRC-2", "seed", [asked("PTRACE_TRACEME")], None),
    ("TRC-3", "seed", [asked("PTRACE_POKETEXT")], None),
    ("TRC-3", "seed", [injected(6)], None),
    ("TRC-3", "seed", [opened("/proc/self/mem", "O_RDWR")],
     {"file flags": "O_RDWR", "file path": "/proc/self/mem"}),
    ("TRC-4", "seed", [event("mem_prot_alert", alert=4)], None),
    ("TRC-5", "seed", [executed("memfd:x")], None),
    ("TRC-5", "seed", [executed("/dev/shmx")], None),
    ("TRC-6", "seed", [event("init_module")], None),
    ("TRC-6", "seed", [event("security_kernel_read_file", pathname="/a.ko", type=2)],
     {"pathname": "/a.ko"}),
    ("TRC-7", "seed", [event("execve", envp=["LD_PRELOADED"])], None),
    ("TRC-7", "seed", [opened("/etc/ld.so.preload")], None),
    ("TRC-8", "all", [read("/run/secrets/kubernetes.io/serviceaccount/token")], None),
    ("TRC-9", "seed", [written("/a", base64.b64encode(b"_elf").decode())], {"file path": "/a"}),
    ("TRC-10", "seed", [read("/etc/kubernetes/pki/ca.key")], None),
    ("TRC-11", "seed", [mounted("/dev/sda1")], {"mounted device": "/dev/sda1"}),
    ("TRC-12", "seed", [checked("/bin/dash", "nginx")], None),
    ("TRC-13", "seed", [pod("execve", envp=ENVIRONMENT),
     pod("security_socket_connect", remote_addr=INET)], SERVICE),
    ("TRC-14", "seed", [opened("/x/release_agent")],
     {"File Flags": "O_WRONLY", "File Path": "/x/release_agent"}),
    ("TRC-15", "seed", [event("hooked_syscalls", hooked_syscalls=HOOKS)],
     {"hooked syscall": HOOKS}),
    ("TRC-16", "all", [event("hooked_proc_fops", hooked_fops_pointers=HOOKS)],
     {"hooked file_operations": HOOKS}),
    ("TRC-101", "v0.15", [connected(1)], LATER),
    ("TRC-101", "v0.24", [event("socket_dup", newfd=1, remote_addr=INET)], LATER),
    ("TRC-102", "v0.24", [asked(0)], None),
    ("TRC-103", "v0.24", [asked("PTRACE_POKEDATA")], None),
    ("TRC-104", "v0.24", [event("mem_prot_alert", alert=4)], None),
    ("TRC-105", "v0.24", [executed("/run/shm/x")], None),
    ("TRC-106", "v0.24", [opened("/x/notify_on_release")], None),
    ("TRC-107", "v0.24", [executed("/x", env=["A=b", "LD_PRELOAD=/x"])],
     {"LD_PRELOAD": "LD_PRELOAD=/x"}),
    ("TRC-107", "v0.24", [renamed("/etc/ld.so.preload")], None),
    ("TRC-108", "v0.24", [read("/run/secrets/kubernetes.io/serviceaccount/x/token")], None),
    ("TRC-109", "v0.24", [read("/proc/sys/kernel/randomize_va_space")], None),
    ("TRC-1010", "v0.24", [renamed("/x/release_agent")], None),
    ("TRC-1011", "v0.24", [opened("/proc/sys/kernel/core_pattern")], None),
    ("TRC-1012", "v0.24", [renamed("/lib64/ld-linux-x86-64.so.2")], None),
    ("TRC-1013", "v0.24", [pod("sched_process_exec", env=ENVIRONMENT),
     pod("security_socket_connect", remote_addr=INET)], SERVICE),
    ("TRC-1014", "v0.24", [mounted("/dev/sda1")], None),
    ("TRC-1015", "v0.24", [written("/tmp/.x")], None),
    ("TRC-1016", "v0.15", [checked("/bin/sh", "http-nio")], None),
    ("TRC-1016", "v0.24", [executed("/bin/sh", "sh", prev_comm="nginx")], None),
    ("TRC-1017", "v0.15", [event("init_module")], None),
    ("TRC-1017", "v0.24", [event("module_load", version="1")], None),
    ("TRC-1018", "v0.24", [renamed("/tmp/x", "/etc/kubernetes/pki/ca.key")], None),
    ("TRC-1019", "v0.24", [connected(7, UNIX)], None),
    ("TRC-1019", "v0.24", [opened("/var/run/docker.sock")], None),
    ("TRC-1020", "v0.24", [event("hooked_proc_fops", hooked_fops_pointers=HOOKS)],
     {"Hooked proc file operations": HOOKS}),
    ("TRC-1021", "v0.24", [read("/proc/kcore")], None),
    ("TRC-1022", "v0.24", [written("/a", list(ELF))], {"path": "/a"}),
    ("TRC-1023", "v0.24", [read("/proc/12/mem")], None),
    ("TRC-1024", "v0.24", [opened("/proc/12/mem")], None),
    ("TRC-1025", "v0.24", [injected(6)], None),
    ("TRC-1026", "v0.24", [executed("/usr/sbin/update-rc.d")], None),
    ("TRC-1027", "v0.24", [opened("/etc/cron.d/x")], None),
    ("TRC-1028", "v0.24", [opened("/etc/sudoers")], None),
    ("TRC-1029", "v0.24", [read("/proc/sched_debug")], None),
    ("TRC-1030", "v0.15", [event("hooked_syscalls", hooked_syscalls=HOOKS)],
     {"Hooked syscalls": HOOKS}),
    ("TRC-1030", "v0.24", [event("hooked_syscall", syscall="kill")], None),
    ("TRC-1031", "v0.24", [opened("/proc/sysrq-trigger")], None),
]  # fmt: skip
"""A signature, its set, events that raise it once, and what is found."""


def verdicts(name: str, chosen: str, events: Events) -> list[Any]:
    return told(feed(rules(chosen)[name], events, origin=False))


@pytest.mark.parametrize(("name", "chosen", "events", "data"), FIRES)
def test_what_raises_it(name: str, chosen: str, events: Events, data: Any) -> None:
    """A signature is raised once by its events, with its data in its order, and by no others."""
    assert json.dumps(verdicts(name, chosen, events)) == json.dumps([data])
    assert verdicts(name, chosen, CONTROL + events) == [data]
    assert verdicts(name, chosen, CONTROL) == []


def test_every_signature_has_an_example() -> None:
    """No signature of any set is left out above."""
    for chosen in SETS:
        missing = set(rules(chosen)) - {name for name, _, _, _ in FIRES}
        assert not missing


SILENT: Final[list[tuple[str, str, Events]]] = [
    ("TRC-1", "seed", [connected(3), event("close", {"processId": 5}, fd=3), duplicated(3, 0)]),
    ("TRC-1", "seed", [connected(3), event("sched_process_exit", {"processId": 5}),
                       duplicated(3, 0)]),
    ("TRC-1", "seed", [connected(3), duplicated(3, 0, pid=6), duplicated(3, 0, pid=None)]),
    ("TRC-1", "seed", [connected(3, pid=None), duplicated(3, 0)]),
    ("TRC-1", "seed", [connected(3, UNIX), duplicated(3, 0)]),
    ("TRC-1", "seed", [connected(3), duplicated(3, 4), duplicated(4, 0)]),
    ("TRC-3", "seed", [asked("PTRACE_POKEDATA")]),
    ("TRC-3", "seed", [opened("/proc/12/mem", "O_RDONLY")]),
    ("TRC-5", "seed", [executed("memfd:runc")]),
    ("TRC-7", "seed", [read("/etc/ld.so.preload"), opened("/x/etc/ld.so.preload")]),
    ("TRC-8", "all", [read("/run/secrets/kubernetes.io/serviceaccount/token", "kubectl"),
                      opened("/run/secrets/kubernetes.io/serviceaccount/token")]),
    ("TRC-9", "seed", [event("magic_write", bytes=ELF_TEXT)]),
    ("TRC-10", "seed", [read("/etc/kubernetes/pki/ca.key", "kubelet"),
                       opened("/etc/kubernetes/pki/ca.key")]),
    ("TRC-11", "seed", [mounted("/dev/sda1", "runc:[2:INIT]")]),
    ("TRC-12", "seed", [checked("/bin/nosh", "nginx"), checked("/bin/sh", "http-nio")]),
    ("TRC-13", "seed", [pod("execve", envp=ENVIRONMENT), connected(3)]),
    ("TRC-101", "v0.24", [connected(0, {**INET, "sin_port": "0"}), connected(0, UNIX)]),
    ("TRC-105", "v0.24", [executed("/dev/shmx")]),
    ("TRC-106", "v0.24", [opened("/x/not_notify_on_release")]),
    ("TRC-107", "v0.24", [executed("/x", env=["LD_PRELOADED"]), executed("/x")]),
    ("TRC-1015", "v0.24", [written("/tmp/.x", base64.b64encode(b"\x7felf").decode())]),
    ("TRC-1016", "v0.15", [executed("/bin/sh", "sh", prev_comm="nginx")]),
    ("TRC-1016", "v0.24", [checked("/bin/sh", "nginx")]),
    ("TRC-1017", "v0.15", [event("module_load", version="1")]),
    ("TRC-1017", "v0.24", [event("init_module")]),
    ("TRC-1019", "v0.24", [connected(7, {"sa_family": "AF_INET", "sun_path": "/docker.sock"})]),
    ("TRC-1022", "v0.24", [written("/dev/shm/x")]),
    ("TRC-1023", "v0.24", [read("/proc/self/mem"), read("/proc/12/memory")]),
    ("TRC-1025", "v0.24", [injected(5)]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "chosen", "events"), SILENT)
def test_what_does_not_raise_it(name: str, chosen: str, events: Events) -> None:
    """What only comes near raises nothing."""
    assert verdicts(name, chosen, events) == []


@given(
    st.integers(0, (1 << 22) - 1).filter(lambda n: n & 3 != 3),
    st.sampled_from(["TRC-3", "TRC-14", "TRC-1023", "TRC-1024", "TRC-1031"]),
)
def test_flags_as_number_or_text(number: int, name: str) -> None:
    """Flags mean the same as a number and as Tracee's text of it, in any case."""
    path = {"TRC-14": "/x/release_agent", "TRC-1031": "/proc/sysrq-trigger"}.get(
        name, "/proc/12/mem"
    )
    text = decode.text_of("open_flags@tracee", number)
    forms = [number, text, text.lower()]
    raised = [bool(verdicts(name, "all", [opened(path, form)])) for form in forms]
    wanted = number & 3 in ((0, 2) if name == "TRC-1023" else (1, 2))
    assert raised == [wanted] * 3


SPELLINGS: Final = [
    4, "4", "Protection changed from W+E to E!", "Protection changed from W to E!"
]  # fmt: skip


@pytest.mark.parametrize("name", ["TRC-4", "TRC-104"])
def test_spellings_of_a_memory_alert(name: str) -> None:
    """All releases' words for written memory that becomes executable are one; others are not."""
    events = [event("mem_prot_alert", alert=alert) for alert in SPELLINGS]
    assert verdicts(name, "all", events) == [None] * 4
    others = [1, 2, 3, "Protection changed from E to W+E!", "Protection changed to Executable!"]
    assert verdicts(name, "all", [event("mem_prot_alert", alert=alert) for alert in others]) == []


@pytest.mark.parametrize(
    "address",
    [
        INET,
        {**INET, "sin_port": 4444},
        {"saFamily": "AF_INET", "sinAddr": "10.0.0.2", "sinPort": 4444},
        str(INET),
        json.dumps(INET),
    ],
)
def test_forms_of_an_address(address: object) -> None:
    """An address is the same in each way in which releases wrote it."""
    assert verdicts("TRC-1", "seed", [connected(0, address)]) == [ADDRESS]


@pytest.mark.parametrize("address", [None, "", "{", "[1]", 5, {"sa_family": 2}, "{" * 100_000])
def test_addresses_that_are_none(address: object) -> None:
    """What is no address is none, and stops nothing."""
    events = [connected(3, address), duplicated(3, 0), connected(3), duplicated(3, 0)]
    assert verdicts("TRC-1", "seed", events) == [ADDRESS]


MODERN: Final = {"name": "security_file_open", "workload": {"container": {"id": "c1"}}}


@pytest.mark.parametrize(
    ("path", "classic", "modern"),
    [("/proc/12/mem", 1, 1), ("/proc/self/mem", 0, 1), ("/proc/1/task/2/mem", 1, 0)],
)
def test_processes_in_both_spellings_of_events(path: str, classic: int, modern: int) -> None:
    """Releases up to 0.24 and those after it differ in which paths are another's memory."""
    entries = [{"name": "pathname", "str": path}, {"name": "flags", "int32": 2}]
    later = [{**MODERN, "data": entries}]
    assert len(verdicts("TRC-1024", "v0.24", [opened(path, 2)])) == classic
    assert len(verdicts("TRC-1024", "v0.24", later)) == modern


CONTAINER, STARTING, HOST = "container", "container-init", "host"
FLAGS = "contextFlags"

ORIGINS: Final[list[tuple[Mapping[str, Any], str]]] = [
    ({FLAGS: {"containerStarted": True}, "containerId": "c1"}, CONTAINER),
    ({FLAGS: {"containerStarted": True}, "container": {"id": "c1"}}, CONTAINER),
    ({FLAGS: {"containerStarted": True}}, CONTAINER),
    ({FLAGS: {"containerStarted": False}, "containerId": "c1"}, STARTING),
    ({FLAGS: {"containerStarted": False}, "container": {"id": "c1"}}, STARTING),
    ({FLAGS: {"containerStarted": False}, "containerId": ""}, HOST),
    ({FLAGS: {}, "containerId": "c1"}, STARTING),
    # In a namespace of processes, but in no container: from 0.8.1 on that is the host.
    ({FLAGS: {"containerStarted": False}, "processId": 1, "hostProcessId": 9}, HOST),
    ({"containerId": "c1", "processId": 9, "hostProcessId": 9}, CONTAINER),
    ({"containerId": "", "processId": 1, "hostProcessId": 9}, CONTAINER),
    ({"containerId": "", "processId": 9, "hostProcessId": 9}, HOST),
    ({}, HOST),
]


@pytest.mark.parametrize(("given_", "origin"), ORIGINS)
def test_origins(given_: Mapping[str, Any], origin: str) -> None:
    """Container, starting container and host are told apart as the event's release did."""
    agent = event("security_file_open", given_, pathname="/release_agent", flags=1)
    hook = event("hooked_proc_fops", given_, hooked_fops_pointers=HOOKS)
    chosen = rules("all")
    assert len(feed(chosen["TRC-14"], [agent])) == (origin == CONTAINER)
    assert len(feed(chosen["TRC-1020"], [hook])) == (origin == HOST)
    anywhere = [feed(chosen["TRC-14"], [agent], origin=False), feed(chosen["TRC-16"], [hook])]
    assert [len(found) for found in anywhere] == [1, 1]


@pytest.mark.parametrize(
    ("container", "origin"),
    [({"id": "c1", "started": True}, CONTAINER), ({"id": "c1"}, STARTING), (None, HOST)],
)
def test_origins_of_later_events(container: Any, origin: str) -> None:
    """The events of later releases leave out what is false."""
    workload = {} if container is None else {"container": container}
    entries = [{"name": "pathname", "str": "/release_agent"}, {"name": "flags", "int32": 1}]
    found = {"name": "security_file_open", "workload": workload, "data": entries}
    assert len(feed(rules("all")["TRC-14"], [found])) == (origin == CONTAINER)


@pytest.mark.parametrize(
    ("columns", "origin"),
    [
        ({"container_id": "c1", "process_name": "sh"}, CONTAINER),
        ({"container_id": "c1", "process_name": "runc:[2:INIT]"}, STARTING),
        ({"process_name": "sh"}, HOST),
        ({"process_name": "sh", "pid": 9, "ns_pid": 1}, HOST),
    ],
)
def test_origins_of_own_recordings(columns: Mapping[str, Any], origin: str) -> None:
    """In recordings of kcap's own a container is one whose id is known, once runc is through."""
    given_ = {"event": "security_file_open", **columns}
    found = {**given_, "arguments": {"pathname": "/release_agent", "flags": 1}}
    assert len(feed(rules("all")["TRC-14"], [found])) == (origin == CONTAINER)


def own(name: str, **arguments: Any) -> dict[str, Any]:
    return {"event": name, "pid": 7, "arguments": arguments}


def test_duplicated_sockets_of_own_recordings() -> None:
    """Where an event does not say what a duplicated socket is connected to, it is remembered."""
    connects = own("security_socket_connect", sockfd=3, remote_addr=INET)
    accepts = {**own("accept4", sockfd=9, remote_addr=INET), "retval": 3}
    forks = own("sched_process_fork", parent_pid=7, child_pid=8)
    dup = own("socket_dup", oldfd=3, newfd=1)
    below = {**dup, "pid": 8}
    for start in (connects, accepts):
        assert verdicts("TRC-101", "v0.24", [start, dup]) == [LATER]
        assert verdicts("TRC-101", "v0.24", [start, below]) == []
        assert verdicts("TRC-101", "v0.24", [start, forks, below]) == [LATER]
        for between in (own("close", fd=3), own("sched_process_exit")):
            assert verdicts("TRC-101", "v0.24", [start, between, dup]) == []
            assert verdicts("TRC-101", "v0.24", [start, forks, between, below]) == [LATER]
    assert verdicts("TRC-101", "v0.24", [forks, own("socket_dup", oldfd=4, newfd=1)]) == []


def test_sets() -> None:
    """Each set has its signatures, in the order in which they are listed."""
    counts = {chosen: len(signatures(chosen)) for chosen in SETS}
    assert counts == {"seed": 14, "v0.15": 31, "v0.24": 31, "all": 47}
    numbers = [1, 13, 2, 14, 3, 11, 9, 4, 5, 12, 6, 10, 7, 15]
    assert [rule.about.id for rule in signatures()] == [f"TRC-{n}" for n in numbers]
    assert [rule.about.id for rule in signatures("all", ["TRC-8", "TRC-102", "X"])] == [
        "TRC-8", "TRC-102",
    ]  # fmt: skip
    with pytest.raises(KcapError, match=r"'v9'.*seed"):
        signatures("v9")


def test_events_that_are_needed() -> None:
    """The events of the seed's set and of one signature, as tracee-rules lists them."""
    needed = frozenset[str]().union(*(rule.events or () for rule in signatures()))
    assert ",".join(sorted(needed)) == SEED_EVENTS
    of_one = rules("seed")["TRC-3"].events
    assert ",".join(sorted(of_one or ())) == "process_vm_writev,ptrace,security_file_open"


def test_the_page_lists_them(read_text: Callable[[str], str]) -> None:
    """The page on signatures, and `kcap docs signatures`, list each with what it looks at."""
    text = read_text("docs/signatures.md").partition("<!-- table signatures -->\n")[2]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip().replace("`", "") for cell in line] for line in lines]
    listed = {one[0]: (*one[1:3], {"any": "*"}.get(one[3], one[3]), one[4]) for one in cells[2:]}
    assert listed == {one[0]: one[1:5] for one in described()[1:]}
    shown = run("docs", "signatures").stdout
    assert all(name in shown and one[3] in shown for name, one in listed.items())


def test_what_is_said_of_them() -> None:
    """Severities are words that alerts have, and stay numbers in the details."""
    about = {rule.about.id: rule.about for rule in signatures("all")}
    numbers = {name: one.details["Severity"] for name, one in about.items()}
    assert {numbers[name] for name in about} == {0, 1, 2, 3, 4}
    words = {name: SEVERITIES.index(one.severity) for name, one in about.items()}
    assert all(words[name] == max(numbers[name] - 1, 0) for name in about)
    assert about["TRC-1"].techniques == ("Persistence: Server Software Component",)
    assert about["TRC-101"].techniques == ("T1059.004",)
    assert all(one.description and one.kind == "tracee" for one in about.values())


def test_events_of_gob() -> None:
    """Values are typed in gob: bytes, numbers, symbols, and a flag that is false not there."""
    given_ = {
        "magic_write": [
            ("bytes", "[]uint8", gs.BYTES, ELF), ("pathname", "string", gs.STRING, "x"),
        ],
        "security_socket_connect": [
            ("sockfd", "int32", gs.INT, 1), ("remote_addr", "m", gs.MAPPING, INET),
        ],
        "hooked_syscalls": [("hooked_syscalls", "[]h", gs.SYMBOLS, HOOKS)],
    }  # fmt: skip
    raw = gs.TRACEE.definitions()
    for started in (0, 1):
        for name, listed in given_.items():
            arguments = [gs.argument(a, of, gs.Held(of, t, value)) for a, of, t, value in listed]
            raw += gs.TRACEE.top(gs.EVENT, gs.event(started, *arguments, EventName=name))
    engine = Detections([rules("all")[f"TRC-{n}"] for n in (1, 9, 15)])
    batches = TraceeGobReader(io.BytesIO(raw), "in").batches()
    found = [alert for batch in batches for _, alert in engine.alerts(batch)]
    assert [alert.rule for alert in found] == ["TRC-1", "TRC-15", "TRC-9", "TRC-1", "TRC-15"]
    connects, symbols = {**ADDRESS, "fd": 1}, {"hooked syscall": HOOKS}
    assert told(found) == [connects, symbols, {"file path": "x"}, connects, symbols]


def test_recordings_are_told_apart() -> None:
    """Processes with one id on two hosts, in a merged capture, share no descriptors."""
    connects = own("security_socket_connect", sockfd=3, remote_addr=INET)
    same = own("dup2", oldfd=3, newfd=0)
    other = {**same, "origin": "1" * 32}
    assert verdicts("TRC-1", "seed", [connects, other]) == []
    assert verdicts("TRC-1", "seed", [connects, other, {**same, "host": "x"}]) == [ADDRESS]


def test_memory_is_bounded() -> None:
    """What is too much to remember is forgotten, the oldest first, and it is said."""
    events = [*(connected(3, pid=pid) for pid in (1, 2, 3)), duplicated(3, 0, pid=1)]
    events.append(duplicated(3, 0, pid=3))
    engine = Detections([rules("seed")["TRC-1"]], bounds=Bounds(rule_entries=2))
    found = [alert for batch in source(events).batches() for _, alert in engine.alerts(batch)]
    assert [alert.causes[0][1] for alert in found] == [4]
    assert [(loss.kind, loss.count) for loss in engine.losses] == [("evicted", 1)]


REGO: Final = 'package tracee.TRC_4\n\n__rego_metadoc__ := {\n    "id": "TRC-4",\n}\n'


@pytest.mark.parametrize(
    ("text", "hint"), [(REGO, "--rules TRC-4"), (REGO.replace("TRC-4", "MY-1"), "kcap's")]
)
def test_signatures_in_rego(text: str, hint: str) -> None:
    """A signature in Rego is not run, and it is said why, where and what helps."""
    loader = TraceeRules()
    assert loader.sniff(text, "x.rego")
    assert not loader.sniff(text, "x_test.rego")
    assert not loader.sniff("id: TRC-4\n", "x.yaml")
    (found,) = loader.load(text, "x.rego")
    assert hint in (found.error.hint or "")
    assert found.error.line == 4
    assert list(loader.finish()) == []
