"""What this host can be recorded with: each source of events is tried, and let go again.

A trial says more than a table of versions and settings: what a kernel refuses depends on how it
was built, on the rights of this process, on lockdown, on the rules of a container. The settings
are read too, to say why. Nothing of the host is changed.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kcap.errors import KcapError, PrivilegeError

USED: Final = ("bpf", "perf", "tracefs", "proc")
"""Sources that kcap records with, the one that tells most first."""

ON_REQUEST: Final = ("audit",)
"""Sources that kcap records with where it is told to: they change settings of the host."""

BESIDE: Final = ("artifacts", "packets")
"""What is recorded beside events where it is asked for."""

CAPABILITIES: Final = {
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_AUDIT_CONTROL": 30,
    "CAP_AUDIT_READ": 37,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
"""The rights that matter to recording, by their bits."""

_RING_BYTES: Final = 1 << 16
_NETLINK_AUDIT: Final = 9
_AUDIT_READERS: Final = 1
_INITIAL_USERS: Final = ["0", "0", "4294967295"]
_SYSCTLS: Final = {
    "unprivileged_bpf_disabled": "kernel/unprivileged_bpf_disabled",
    "perf_event_paranoid": "kernel/perf_event_paranoid",
    "io_uring_disabled": "kernel/io_uring_disabled",
}


@dataclass(frozen=True, slots=True)
class Capability:
    """Whether one source of events can be used here."""

    source: str
    tells: str
    """What is learned from it."""
    usable: bool
    why: str = ""
    """What refused, where it can't be used."""
    advice: str = ""
    """What to do about that."""
    limits: tuple[str, ...] = ()
    """What is missing although it can be used."""

    @property
    def used(self) -> bool:
        """Whether kcap records with it."""
        return self.source in USED


@dataclass(frozen=True, slots=True)
class Host:
    """What decides about recording this host."""

    kernel: str
    machine: str
    uid: int
    capabilities: tuple[str, ...]
    """Those of `CAPABILITIES` that this process has."""
    initial_user_namespace: bool
    lockdown: str | None
    """``none``, ``integrity`` or ``confidentiality``; None where the kernel does not say."""
    cgroups: str | None
    """``v1``, ``v2`` or ``hybrid``."""
    tracefs: str | None
    """Where it is mounted."""
    types: str | None
    """The file of the kernel's types."""
    settings: dict[str, int] = field(default_factory=dict)
    """Values of the sysctls that matter, as far as there are any."""

    @classmethod
    def read(cls) -> Host:
        """Look at this host."""
        from kcap.readers.live.bpf import btf

        uname = os.uname()
        types = os.environ.get(btf.PATH_VARIABLE) or btf.KERNEL
        return cls(
            kernel=uname.release,
            machine=uname.machine,
            uid=os.geteuid(),
            capabilities=_capabilities(),
            initial_user_namespace=_text("/proc/self/uid_map").split() == _INITIAL_USERS,
            lockdown=_lockdown(_text("/sys/kernel/security/lockdown")),
            cgroups=_cgroups(),
            tracefs=_tracefs(),
            types=types if os.access(types, os.R_OK) else None,
            settings=_settings(),
        )

    def refusal(self, *needed: str) -> str:
        """Why the kernel may have refused a process.

        Args:
            needed: The capabilities without which it refuses, unless there is CAP_SYS_ADMIN.

        Returns:
            The likeliest reason.
        """
        lacking = [name for name in needed if name not in self.capabilities]
        if lacking and "CAP_SYS_ADMIN" not in self.capabilities:
            return f"this process (uid {self.uid}) lacks {' and '.join(lacking)}"
        if not self.initial_user_namespace:
            return "this is a user namespace, whose root may not do this"
        if self.lockdown == "confidentiality":
            return "the kernel is locked down (confidentiality)"
        return "the rights are there, so a security module or a container's rules refuse"


def capabilities(host: Host | None = None) -> list[Capability]:
    """Try every source of events that Linux has.

    Args:
        host: This host, if somebody has looked at it already.

    Returns:
        What came out, those that kcap records with first.
    """
    host = host or Host.read()
    return [capability(source, host) for source in _TRIALS]


def capability(source: str, host: Host) -> Capability:
    """Try one source.

    Args:
        source: Its name: of `USED`, `ON_REQUEST` or `BESIDE`.
        host: This host.

    Returns:
        What came out.
    """
    trial, tells, needed, advice = _TRIALS[source]
    try:
        limits = trial(host)
    except PrivilegeError as error:
        why = f"{error.what}; {host.refusal(*needed)}"
        advice = f"run as root on the host, or with {' and '.join(needed)}"
        return Capability(source, tells, usable=False, why=why, advice=advice)
    except KcapError as error:
        place = f"{error.file}: " if error.file else ""
        return Capability(source, tells, usable=False, why=place + error.what, advice=advice)
    return Capability(source, tells, usable=True, limits=limits)


def _try_bpf(host: Host) -> tuple[str, ...]:
    """Load the recorder's program and follow processes with it for a moment."""
    from kcap.readers.live.bpf import events
    from kcap.readers.live.bpf.program import KernelProgram, Setup

    setup = Setup(events.sets()["default"])
    program = KernelProgram(setup, rare_bytes=_RING_BYTES, hot_bytes=_RING_BYTES)
    try:
        program.attach_processes()
        limits = _of_program(program.unavailable, program.refused)
    finally:
        program.close()
    if host.settings.get("io_uring_disabled") != 2:  # noqa: PLR2004
        limits.append("what programs do through io_uring is not seen call by call")
    return tuple(limits)


def _try_proc(_: Host) -> tuple[str, ...]:
    from kcap.readers.live import netlink

    with netlink.connect(_RING_BYTES) as sock:
        netlink.subscribe(sock)
        netlink.send(sock, netlink.MCAST_IGNORE)
    return ("paths and arguments only of processes that live until they are looked up",)


def _try_perf(_: Host) -> tuple[str, ...]:
    """Open the rings for a moment, with what there is no recording without.

    The kernel takes 40 ms to let go of each tracepoint.
    """
    from kcap.readers.live.trace.perf import LEAST_BYTES, PerfRings
    from kcap.readers.live.trace.points import Points, default
    from kcap.readers.live.trace.tracefs import Tracefs

    with Tracefs() as tracefs:
        points = Points(default(), tracefs)
        PerfRings(points.needed, time.CLOCK_MONOTONIC, LEAST_BYTES).close()
    return _of_tracepoints(points.unavailable)


def _try_tracefs(_: Host) -> tuple[str, ...]:
    """Have an instance for a moment."""
    from kcap.readers.live.trace.instance import LEAST_BYTES, Instance
    from kcap.readers.live.trace.points import Points, default
    from kcap.readers.live.trace.tracefs import Tracefs

    with Tracefs() as tracefs:
        points = Points(default(), tracefs)
        Instance(tracefs, points.needed, LEAST_BYTES).close()
    return _of_tracepoints(points.unavailable)


def _of_tracepoints(unavailable: Sequence[str]) -> tuple[str, ...]:
    """What both kinds of tracepoints lack."""
    limits = ["no paths, addresses or names that a system call points to, and no files"]
    if unavailable:
        names = ", ".join(n.rpartition("/")[2].removeprefix("sys_enter_") for n in unavailable)
        limits.append(f"this kernel has no tracepoint {names}")
    return tuple(limits)


def _try_audit(_: Host) -> tuple[str, ...]:
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_AUDIT
        ) as sock:
            sock.bind((0, _AUDIT_READERS))
    except PermissionError as error:
        raise PrivilegeError("the audit log cannot be read") from error
    except OSError as error:
        lacking = error.errno in (errno.EPROTONOSUPPORT, errno.ECONNREFUSED)
        said = "this kernel has no audit" if lacking else f"audit: {error.strerror}"
        raise KcapError(said) from error
    return ("its rules are shared by the whole host",)


def _try_artifacts(host: Host) -> tuple[str, ...]:
    """Have a group of fanotify, and the programs in the kernel, for a moment."""
    from kcap.readers.live.artifacts import marks
    from kcap.readers.live.artifacts.kernel import ArtifactKernel
    from kcap.readers.live.artifacts.wanted import FileFilter, Wanted

    os.close(marks.group())
    streams = FileFilter(types=frozenset({"pipe"}))
    wanted = Wanted(exec=True, write=streams, read=streams, mem=True, module=True, bpf=True)
    limits = []
    try:
        kernel = ArtifactKernel(wanted, content_bytes=_RING_BYTES, trigger_bytes=_RING_BYTES)
    except KcapError as error:
        what = "only written and read files, and executed ones that have a name"
        limits.append(f"{what}: {_first_line(error.what)}")
    else:
        limits += _of_program(kernel.unavailable, kernel.refused)
        kernel.close()
    if "CAP_SYS_PTRACE" not in host.capabilities:
        limits.append("no memory, nor executed files without a name: CAP_SYS_PTRACE is missing")
    return tuple(limits)


def _try_packets(host: Host) -> tuple[str, ...]:
    """See whose sockets are for a moment; where that can't be, listen as a packet socket does."""
    from kcap.readers.live.artifacts.wanted import Network
    from kcap.readers.live.packets import tap
    from kcap.readers.live.packets.program import PacketProgram

    try:
        program = PacketProgram(Network(payload_bytes=0), ring_bytes=_RING_BYTES)
        try:
            program.attach_sockets()
            limits = _of_program(program.unavailable, program.refused)
            if not program.whole:
                limits.append("only sockets of the control group that this container sees")
        finally:
            program.close()
    except KcapError as error:
        try:
            tap.opened().close()
        except KcapError:
            raise error from None
        why = _first_line(error.what)
        if isinstance(error, PrivilegeError):
            why += f"; {host.refusal('CAP_BPF', 'CAP_PERFMON', 'CAP_NET_ADMIN')}"
        limits = [f"by a packet socket, and so not {tap.WEAKER}", why]
    return tuple(limits)


def _of_program(unavailable: Sequence[str], refused: Mapping[str, str]) -> list[str]:
    """What a program in the kernel lacks."""
    limits = [f"this kernel has no {name}" for name in unavailable]
    return limits + [f"{name}: {_first_line(why)}" for name, why in sorted(refused.items())]


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else text


_Trial = tuple[Callable[[Host], tuple[str, ...]], str, tuple[str, ...], str]
_MOUNT: Final = "mount -t tracefs tracefs /sys/kernel/tracing; some kernels are built without it"
_TRACED: Final = "executions with path, forks, ends, connections; security calls as numbers"
_TRIALS: Final[dict[str, _Trial]] = {
    "bpf": (
        _try_bpf,
        "executions with path and arguments, files, sockets, credentials, memory, modules",
        ("CAP_BPF", "CAP_PERFMON"),
        "use Linux 5.8 or later with CONFIG_DEBUG_INFO_BTF; until then kcap records with less",
    ),
    "perf": (
        _try_perf,
        _TRACED,
        ("CAP_PERFMON", "CAP_SYS_ADMIN"),
        _MOUNT,
    ),
    "tracefs": (
        _try_tracefs,
        "as perf, through buffers of its own in tracefs",
        ("CAP_SYS_ADMIN",),
        _MOUNT,
    ),
    "proc": (
        _try_proc,
        "forks, executions, ends, changes of ids, names and sessions",
        ("CAP_NET_ADMIN",),
        "use a kernel with CONFIG_PROC_EVENTS, outside of containers",
    ),
    "audit": (
        _try_audit,
        "executions with arguments, and system calls that a rule names",
        ("CAP_AUDIT_READ", "CAP_AUDIT_CONTROL"),
        "use a kernel with CONFIG_AUDIT, in the initial network namespace",
    ),
    "artifacts": (
        _try_artifacts,
        "files that are executed, written and read, streams, memory, modules, BPF programs",
        ("CAP_SYS_ADMIN",),
        "use a kernel with CONFIG_FANOTIFY",
    ),
    "packets": (
        _try_packets,
        "what sockets send and get, with the process, of all network namespaces",
        ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"),
        "use a kernel with CONFIG_CGROUP_BPF and CONFIG_DEBUG_INFO_BTF, or CONFIG_PACKET",
    ),
}


def _text(path: str) -> str:
    """A small file of the kernel's; empty where it can't be read."""
    try:
        return Path(path).read_text("ascii", "replace")
    except OSError:
        return ""


def _capabilities() -> tuple[str, ...]:
    for line in _text("/proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            held = int(value, 16)
            return tuple(name for name, bit in CAPABILITIES.items() if held >> bit & 1)
    return ()


def _lockdown(text: str) -> str | None:
    """The word in brackets of ``none [integrity] confidentiality``."""
    return text[text.index("[") + 1 : text.index("]")] if "[" in text and "]" in text else None


def _cgroups() -> str | None:
    kinds = {
        kind
        for line in _text("/proc/self/mountinfo").splitlines()
        if (kind := line.partition(" - ")[2].split(" ")[0]) in ("cgroup", "cgroup2")
    }
    names = {frozenset({"cgroup"}): "v1", frozenset({"cgroup2"}): "v2"}
    return names.get(frozenset(kinds), "hybrid") if kinds else None


def _tracefs() -> str | None:
    mounts = [line.split(" ") for line in _text("/proc/self/mountinfo").splitlines()]
    found = [
        words[4] for words in mounts if "-" in words and words[words.index("-") + 1] == "tracefs"
    ]
    return found[0] if found else None


def _settings() -> dict[str, int]:
    texts = {name: _text(f"/proc/sys/{path}").strip() for name, path in _SYSCTLS.items()}
    return {name: int(text) for name, text in texts.items() if text.lstrip("-").isdigit()}
