"""What Tracee's signatures do with their events: what they find in one, and what they remember."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from kcap.detect.room import Table
from kcap.readers.rules import tracee_values as values
from kcap.readers.rules.tracee_values import Address

if TYPE_CHECKING:
    from kcap.detect.rule import Context, Event, Machine

Look = Callable[["Event"], Mapping[str, Any] | None]
"""What is found in an event: the data of the finding, maybe none; None where nothing is found."""

Process = tuple[str, int | None]
"""A recording, and a process id in it."""

_CONNECTED: Final = "security_socket_connect"
_ACCEPTED: Final = ("accept", "accept4")
_FOLLOWED: Final = ("close", "sched_process_exit", "sched_process_fork")
"""Events that change only what is known already."""

_STDIO: Final = (0, 1, 2)
_NOWHERE: Final = ("", "0")
_SERVICE: Final = "KUBERNETES_SERVICE_HOST="
_PRELOADS: Final = ("LD_PRELOAD", "LD_LIBRARY_PATH")


class Findings:
    """Alerts on events, each by itself (`kcap.detect.rule.Machine`).

    Args:
        looks: What is found in the events of each selector.
    """

    def __init__(self, looks: Sequence[Look]) -> None:
        self._looks = looks

    def match(self, context: Context, selector: int, event: Event) -> None:
        """See `kcap.detect.rule.Machine`."""
        found = self._looks[selector](event)
        if found is not None:
            context.alert(data=found or None)

    def deadline(self, context: Context, key: object) -> None:
        """See `kcap.detect.rule.Machine`; it asked for none."""

    def end(self, context: Context) -> None:
        """See `kcap.detect.rule.Machine`; nothing is left."""


_DESCRIPTOR_BYTES: Final = 200


class _Descriptors:
    """The connected descriptors of a process."""

    __slots__ = ("addresses", "size")

    def __init__(self) -> None:
        self.addresses: dict[int, Address] = {}
        self.size = 0
        """Their bytes."""

    def forget(self, fd: int) -> None:
        """Leave a descriptor out."""
        known = self.addresses.pop(fd, None)
        if known is not None:
            self.size -= _DESCRIPTOR_BYTES + len(known.ip) + len(known.port)

    def put(self, fd: int, address: Address) -> None:
        """Note where a descriptor is connected to."""
        self.forget(fd)
        self.addresses[fd] = address
        self.size += _DESCRIPTOR_BYTES + len(address.ip) + len(address.port)


class _Sockets(Findings):
    """Remembers where the descriptors of processes are connected to, until they are closed."""

    def __init__(self) -> None:
        super().__init__(())
        self._processes: Table[Process, _Descriptors] = Table()

    def _address(self, process: Process, fd: int) -> Address | None:
        known = self._processes.get(process)
        return None if known is None else known.addresses.get(fd)

    def _connected(self, context: Context, process: Process, fd: int, address: Address) -> None:
        known = self._processes.pop(context, process) or _Descriptors()
        known.put(fd, address)
        self._processes.put(context, process, known, known.size)

    def _closed(self, context: Context, process: Process, fd: int) -> None:
        known = self._processes.get(process)
        if known is None or fd not in known.addresses:
            return
        self._processes.pop(context, process)
        known.forget(fd)
        if known.addresses:
            self._processes.put(context, process, known, known.size)

    def _inherited(self, context: Context, parent: Process, child: Process) -> None:
        known = self._processes.get(parent)
        if known is not None:
            copy = _Descriptors()
            for fd, address in known.addresses.items():
                copy.put(fd, address)
            self._processes.pop(context, child)
            self._processes.put(context, child, copy, copy.size)

    def _ended(self, context: Context, process: Process) -> None:
        self._processes.pop(context, process)


class StdioOverSocket(_Sockets):
    """TRC-1: standard input or output is connected to a socket.

    Connecting descriptor 0, 1 or 2 is found at once, whatever the socket; otherwise where it is
    duplicated onto one of them. What came of duplicating is not remembered.
    """

    def match(self, context: Context, selector: int, event: Event) -> None:
        """See `kcap.detect.rule.Machine`."""
        name = event.name
        if name in ("close", "sched_process_exit") and not len(self._processes):
            return  # most events by far
        process = values.process(event)
        if name == "sched_process_exit":
            self._ended(context, process)
            return
        found = event.arguments()
        if name == "close":
            fd = values.number(found.get("fd"))
            if fd is not None:
                self._closed(context, process, fd)
        elif name == _CONNECTED:
            self._connects(context, process, found)
        else:
            old = values.number(found.get("oldfd"))
            new = values.number(event.column("retval") if name == "dup" else found.get("newfd"))
            known = None if old is None else self._address(process, old)
            if known is not None and new in _STDIO:
                _alert(context, known, new)

    def _connects(self, context: Context, process: Process, found: Mapping[str, Any]) -> None:
        fd = values.number(found.get("sockfd"))
        if fd is None or found.get("remote_addr") is None:
            return
        address = values.address(found["remote_addr"])
        if fd in _STDIO:
            _alert(context, address, fd)
        if address:
            self._connected(context, process, fd, address)


class SocketDuplicates(_Sockets):
    """TRC-101: standard input or output is connected to another host.

    Tracee says of a duplicated socket where it is connected to. Recordings of kcap's own do not:
    there it is remembered from the connection, also in processes that come of the one that made it.
    """

    def match(self, context: Context, selector: int, event: Event) -> None:
        """See `kcap.detect.rule.Machine`."""
        name = event.name
        if name in _FOLLOWED and not len(self._processes):
            return  # most events by far
        process = values.process(event)
        if name in _FOLLOWED or name in _ACCEPTED:
            self._follow(context, process, event)
            return
        found = event.arguments()
        fd = values.number(found.get("sockfd" if name == _CONNECTED else "newfd"))
        if fd is None:
            return
        address = values.address(found.get("remote_addr"))
        if "eventName:" not in (event.column("shape") or ""):
            old = values.number(found.get("oldfd"))
            if name == _CONNECTED and address:
                self._connected(context, process, fd, address)
            elif found.get("remote_addr") is None and old is not None:
                address = self._address(process, old) or address
        if fd in _STDIO and address.ip and address.port not in _NOWHERE:
            data = {"IP address": address.ip, "Port": address.port, "File descriptor": fd}
            context.alert(data=data)

    def _follow(self, context: Context, process: Process, event: Event) -> None:
        """Note what else decides where descriptors are connected to."""
        name, found = event.name, event.arguments()
        if name == "sched_process_exit":
            self._ended(context, process)
        elif name == "close":
            fd = values.number(found.get("fd"))
            if fd is not None:
                self._closed(context, process, fd)
        elif name in _ACCEPTED:
            fd, address = event.column("retval"), values.address(found.get("remote_addr"))
            if address:
                self._connected(context, process, fd, address)
        else:
            parent, child = values.number(found.get("parent_pid")), found.get("child_pid")
            if parent is not None and type(child) is int and child != parent:
                self._inherited(context, (process[0], parent), (process[0], child))


class ServiceConnections(Findings):
    """TRC-13 and TRC-1013: a container connects to the API server that its environment names."""

    def __init__(self) -> None:
        super().__init__(())
        self._hosts: Table[str, str] = Table()

    def match(self, context: Context, selector: int, event: Event) -> None:
        """See `kcap.detect.rule.Machine`."""
        container = event.column("container_id")
        if not container:
            return
        found = event.arguments()
        if event.name != _CONNECTED:
            variables = found.get("envp", found.get("env"))
            texts = [v for v in variables or () if isinstance(v, str) and _SERVICE in v]
            if texts:
                host = texts[0].partition("=")[2].strip()
                self._hosts.put(context, container, host, len(container) + len(host))
            return
        known = self._hosts.get(container)
        ip = values.address(found.get("remote_addr")).ip
        if known and ip == known:
            context.alert(data={"ip": ip})


STATEFUL: Final[Mapping[str, Callable[[], Machine]]] = {
    "kubernetes": ServiceConnections,
    "sockets": SocketDuplicates,
    "stdio": StdioOverSocket,
}
"""Machines with a memory, by their names in the table of signatures."""


def look(check: str, found: str) -> Look:
    """What a signature finds in an event.

    Args:
        check: What more has to be true: one of `_CHECKS`, or nothing.
        found: The data: ``KEY=argument`` with commas between, ``preload()``, or nothing.

    Returns:
        The function.
    """
    if found == "preload()":
        return _preloaded
    holds = _CHECKS[check]
    pairs = [pair.partition("=") for pair in found.split(",") if pair]

    def finding(event: Event) -> Mapping[str, Any] | None:
        if not holds(event):
            return None
        if not pairs:
            return {}
        given = event.arguments()
        return {key: _told(name, given.get(name)) for key, _, name in pairs}

    return finding


def _told(name: str, value: object) -> object:
    return values.flags_text(value) if name == "flags" else values.listed(value)


def _preloaded(event: Event) -> Mapping[str, Any] | None:
    names = tuple(f"{name}=" for name in _PRELOADS)
    found = values.assigned(event.arguments().get("env"), *names)
    return None if found is None else {found.partition("=")[0]: found}


def _is_any(_: Event) -> bool:
    return True


def _is_elf(event: Event) -> bool:
    return values.magic(event.arguments().get("bytes")).startswith(values.ELF)


def _is_elf_by_name(event: Event) -> bool:
    """The first byte does not matter, nor do capitals: so the first releases looked at it."""
    return values.magic(event.arguments().get("bytes"))[1:4].lower() == values.ELF[1:].lower()


def _is_docker_socket(event: Event) -> bool:
    path = values.unix_path(event.arguments().get("remote_addr"))
    return path.endswith("docker.sock")


def _is_listed(event: Event) -> bool:
    """The list that the event is about has something in it."""
    return any(values.listed(event.arguments().get(name)) for name in _LISTS)


_LISTS: Final = ("hooked_fops_pointers", "hooked_syscalls")

_CHECKS: Final[Mapping[str, Callable[[Event], bool]]] = {
    "": _is_any,
    "docker_socket": _is_docker_socket,
    "listed": _is_listed,
    "elf": _is_elf,
    "elf_word": _is_elf_by_name,
}


def _alert(context: Context, address: Address, fd: int | None) -> None:
    context.alert(data={"ip": address.ip, "port": address.port, "fd": fd})
