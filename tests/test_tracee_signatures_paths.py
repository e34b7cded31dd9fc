"""Tracee's signatures of paths, beside a second reading of what each looks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, Final

import pytest
from tracee_signatures_support import event, rules

from kcap.detect.engine import Detections
from kcap.detect.feed import source

Wanted = Callable[[str], bool]

READS: Final = frozenset({0, 2})
WRITES: Final = frozenset({1, 2})
FLAGS: Final[list[tuple[int | str, int]]] = [
    (0, 0), (1, 1), (2, 2), (3, 3), (0x8000, 0), (0x8401, 1), ("O_RDONLY|O_LARGEFILE", 0),
    ("o_wronly", 1), ("O_RDWR|O_CREAT", 2), ("O_CREAT", 3), ("", 3),
]  # fmt: skip
"""Flags of files that are opened, and how: to read, to write, both or neither."""

NAMES: Final = """
/proc/self/mem /proc/12/mem /proc/12/memx /x/proc/7/mem /proc/1/task/3/mem /proc/9/mem /proc/x/mem
release_agent /release_agent /x/release_agent /x/release_agent/ /x/my_release_agent
notify_on_release /x/notify_on_release /x/NOTIFY_ON_RELEASE /x/notify_on_release2
/etc/ld.so.preload /host/etc/ld.so.preload /etc/ld.so.preload.d etc/ld.so.preload
/run/secrets/kubernetes.io/serviceaccount/token /run/secrets/kubernetes.io/serviceaccounttoken
/run/secrets/kubernetes.io/serviceaccount/x/token /run/secrets/kubernetes-io/serviceaccount/token
/proc/sys/kernel/randomize_va_space /x/proc/sys/kernel/randomize_va_space
/proc/sys/kernel/core_pattern /x/proc/sys/kernel/core_pattern /proc/sys/kernel/core_pattern2
/lib64/ld-linux-x86-64.so.2 /usr/lib/x/ld.so /usr/lib/ld/y.so /lib/ld.conf /x/lib/ld.so /libx/ld.so
/etc/kubernetes/pki/ca.key /etc/kubernetes/pki /x/etc/kubernetes/pki/ca.key
/var/run/docker.sock docker.sock /x/mydocker.sock /var/run/docker.sock.x
/proc/kcore /x/proc/kcore proc/kcore /proc/kcore2 /proc/sched_debug /sys/kernel/debug/sched/debug
/proc/sys/kernel/sysrq /proc/sysrq-trigger /x/proc/sysrq-trigger /etc/rc.local /etc/rc.localx
/etc/rc3.d/S1 /etc/rc7.d/S1 /etc/rcs.d /etc/rcS.d/x /etc/init.d/x /etc/rc.d/x /etc/crontab
/etc/crontabs /etc/cron.d/x /etc/cron.denyx /etc/cron.deny /var/spool/cron/crontabs/root
var/spool/anacron/x /var/spool/anacron/x /etc/sudoers /etc/sudoers2 /etc/sudoers.d
/etc/sudoers.d/x /private/etc/sudoers /tmp/x /
"""
PATHS: Final = ["", "/proc/12/mem\n", "/proc/\u0661\u0662/mem", "/proc/1\n/mem", *NAMES.split()]


def ends(*endings: str) -> Wanted:
    return lambda path: path.endswith(endings)


def starts(*beginnings: str) -> Wanted:
    return lambda path: path.startswith(beginnings)


def found(pattern: str) -> Wanted:
    return lambda path: re.search(pattern, path, re.ASCII) is not None


def called(name: str) -> Wanted:
    return lambda path: path.rpartition("/")[2] == name


def among(files: Iterable[str], folders: Iterable[str] = ()) -> Wanted:
    return lambda path: path in set(files) or path.startswith(tuple(folders))


RC: Final = ["/etc/rc.d", "/etc/rcs.d", "/etc/init.d", *(f"/etc/rc{n}.d" for n in range(1, 7))]
CRON: Final = [f"/etc/cron.{of}" for of in ("hourly", "daily", "weekly", "monthly", "d")]
SPOOLS: Final = ["/var/spool/cron/crontabs", "var/spool/anacron"]
TABS: Final = ["/etc/crontab", "/etc/anacrontab", "/etc/cron.deny", "/etc/cron.allow"]
SUDOERS: Final = ["/etc/sudoers", "/private/etc/sudoers"]
TOKEN: Final = r"secrets/kubernetes\.io/serviceaccount/.*token\Z"
LOADER: Final = r"\A/(lib|usr/lib).*/ld.*\.so[^/]*"
MEMORY: Final = r"/proc/(?:\d.+)/mem\Z"
PKI: Final = starts("/etc/kubernetes/pki/")

OPENED: Final[Mapping[str, tuple[frozenset[int], Wanted]]] = {
    "TRC-3": (WRITES, found(r"/proc/(?:\d.+|self)/mem")),
    "TRC-7": (WRITES, among(["/etc/ld.so.preload"])),
    "TRC-8": (READS, lambda p: "secrets/kubernetes.io/serviceaccount" in p and p.endswith("token")),
    "TRC-10": (READS, PKI),
    "TRC-14": (WRITES, ends("/release_agent")),
    "TRC-106": (WRITES, called("notify_on_release")),
    "TRC-107": (WRITES, ends("/etc/ld.so.preload")),
    "TRC-108": (READS, found(TOKEN)),
    "TRC-109": (READS, among(["/proc/sys/kernel/randomize_va_space"])),
    "TRC-1010": (WRITES, called("release_agent")),
    "TRC-1011": (WRITES, ends("/proc/sys/kernel/core_pattern")),
    "TRC-1012": (WRITES, found(LOADER)),
    "TRC-1018": (READS, PKI),
    "TRC-1019": (WRITES, ends("docker.sock")),
    "TRC-1021": (READS, ends("/proc/kcore")),
    "TRC-1023": (READS, found(MEMORY)),
    "TRC-1024": (WRITES, found(MEMORY)),
    "TRC-1026": (WRITES, among(["/etc/rc.local"], RC)),
    "TRC-1027": (WRITES, among(TABS, [*CRON, *SPOOLS])),
    "TRC-1028": (WRITES, among(SUDOERS, [f"{path}.d/" for path in SUDOERS])),
    "TRC-1029": (READS, among(["/proc/sched_debug", "/sys/kernel/debug/sched/debug"])),
    "TRC-1031": (WRITES, among(["/proc/sys/kernel/sysrq", "/proc/sysrq-trigger"])),
}
"""How a file must be opened, and which; of those with a new name the new one counts."""

RENAMED: Final = ("TRC-107", "TRC-1010", "TRC-1012", "TRC-1026", "TRC-1027", "TRC-1028")
OPENS: Final = list(product(PATHS, FLAGS))


def raised(chosen: str) -> set[tuple[str, int]]:
    """Signatures and numbers of events: all paths opened in all ways, then renamed from and to."""
    events: list[dict[str, Any]] = [
        event("security_file_open", pathname=path, flags=flags) for path, (flags, _) in OPENS
    ]
    for path in PATHS:
        events.append(event("security_inode_rename", old_path="/tmp/x", new_path=path))
        events.append(event("security_inode_rename", old_path=path, new_path="/tmp/x"))
    anywhere = [
        replace(
            one, selectors=tuple(s._replace(filter=s.anywhere or s.filter) for s in one.selectors)
        )
        for one in rules(chosen).values()
    ]
    engine = Detections(anywhere)
    alerts = [alert for batch in source(events).batches() for _, alert in engine.alerts(batch)]
    once = {(alert.rule, alert.causes[0][1]) for alert in alerts}
    assert len(once) == len(alerts)
    return once


def expected(known: Iterable[str], modes: Callable[[frozenset[int]], frozenset[int]]) -> set[Any]:
    """What the table above wants of them, where files are opened as ``modes`` changes it."""
    wanted = set()
    for name in set(known) & OPENED.keys():
        how, holds = OPENED[name]
        wanted |= {
            (name, n) for n, (path, (_, mode)) in enumerate(OPENS)
            if mode in modes(how) and holds(path)
        }  # fmt: skip
        for n, path in enumerate(PATHS):
            to, of = len(OPENS) + 2 * n, len(OPENS) + 2 * n + 1
            wanted |= {(name, to)} if name in RENAMED and holds(path) else set()
            wanted |= {(name, of)} if name == "TRC-1018" and holds(path) else set()
    return wanted


@pytest.mark.parametrize("chosen", ["seed", "v0.15", "v0.24", "all"])
def test_every_path_opened_in_every_way(chosen: str) -> None:
    """Each signature is raised by the paths and flags that it is about, and by no others."""
    found_ = raised(chosen)

    assert found_ == expected(rules(chosen), lambda how: how)
    assert {name for name, _ in found_} == rules(chosen).keys() & OPENED.keys()
    assert found_ != expected(rules(chosen), lambda how: WRITES if how is READS else READS)
