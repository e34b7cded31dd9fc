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

Process = tuple[str, int]
"""A recording, and a process id in it."""

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
        if process is None:
            return
        if name == "sched_process_exit":
            self._ended(context, process)
            return
        found = event.arguments()
        if name == "close":
            fd = values.number(found.get("fd"))
            if fd is not None:
                self._closed(context, process, fd)
        elif name == "security_socket_connect":
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
    there it is remembered.
    """

    def match(self, context: Context, selector: int, event: Event) -> None:
        """See `kcap.detect.rule.Machine`."""
        name = event.name
        if name in ("close", "sched_process_exit") and not len(self._processes):
            return  # most events by far
        process = values.process(event)
        if name == "sched_process_exit":
            if process is not None:
                self._ended(context, process)
            return
        found = event.arguments()
        if name == "close":
            fd = values.number(found.get("fd"))
            if process is not None and fd is not None:
                self._closed(context, process, fd)
            return
        connects = name == "security_socket_connect"
        fd = values.number(found.get("sockfd" if connects else "newfd"))
        if fd is None:
            return
        address = self._remote(context, process, found, event)
        if fd in _STDIO and address.ip and address.port not in _NOWHERE:
            data = {"IP address": address.ip, "Port": address.port, "File descriptor": fd}
            context.alert(data=data)

    def _remote(
        self, context: Context, process: Process | None, found: Mapping[str, Any], event: Event
    ) -> Address:
        """Where the socket of the event is connected to, as it says or as is known."""
        told = found.get("remote_addr")
        address = values.address(told)
        if process is None or "eventName:" in (event.column("shape") or ""):
            return address
        if event.name == "security_socket_connect":
            fd = values.number(found.get("sockfd"))
            if address and fd is not None:
                self._connected(context, process, fd, address)
            return address
        old = values.number(found.get("oldfd"))
        known = None if told is not None or old is None else self._address(process, old)
        return known or address


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
        if event.name != "security_socket_connect":
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
