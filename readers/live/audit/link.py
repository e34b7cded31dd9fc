"""The two netlink sockets of the kernel's audit system: one to ask, one to listen."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple, NoReturn

from kcap.errors import KcapError, PrivilegeError

# <linux/netlink.h>, <linux/audit.h>, <asm-generic/socket.h>; Python's socket module has none.
_NETLINK_AUDIT: Final = 9
_GROUP_READLOG: Final = 1
_NLM_F_REQUEST: Final = 1
_NLM_F_ACK: Final = 4
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_SO_RCVBUFFORCE: Final = 33

GET: Final = 1000
SET: Final = 1001
ADD_RULE: Final = 1011
DEL_RULE: Final = 1012
LIST_RULES: Final = 1013

HEADER: Final = struct.Struct("=IHHII")
"""``struct nlmsghdr``."""

DATAGRAM_BYTES: Final = 16 << 10
"""Longest datagram that is taken whole; a record has 8,970 bytes at most."""

_ERROR: Final = struct.Struct("=i")
_STATUS: Final = struct.Struct("=8I")
_STATUS_NOW: Final = struct.Struct("=10I")
_SETTING: Final = struct.Struct("=10I")
_CUT: Final = "a message of the kernel's audit system is cut short"
_RULE_BYTES: Final = 1040
_ANSWER_S: Final = 10.0
_ANSWERS_MAX: Final = 65_536

_NEEDS: Final = "CAP_AUDIT_CONTROL and CAP_AUDIT_READ, in the initial namespaces"


class Status(NamedTuple):
    """``struct audit_status``, as far as all kernels have it."""

    mask: int
    enabled: int
    """0 off, 1 on, 2 on and locked: nothing can be changed until the machine starts anew."""
    failure: int
    """What the kernel does when it loses a record: 0 nothing, 1 a message, 2 a panic."""
    pid: int
    """The audit daemon, 0 for none."""
    rate_limit: int
    backlog_limit: int
    """Records that may wait; then processes wait, and then records are lost."""
    lost: int
    """Records that were lost since the machine started."""
    backlog: int
    features: int = 0
    backlog_wait_time: int = -1
    """Ticks that a process waits where the backlog is full; -1 for a kernel without that."""


class Control:
    """The socket for questions and orders.

    Raises:
        KcapError: Not Linux, or a kernel without an audit system.
    """

    def __init__(self) -> None:
        self._socket = _opened()
        self._socket.settimeout(_ANSWER_S)
        self._seq = 0

    def close(self) -> None:
        """Close it; may be called twice."""
        self._socket.close()

    def status(self) -> Status:
        """How the audit system is.

        Returns:
            The settings and counters.

        Raises:
            PrivilegeError: This user may not ask.
            KcapError: There is no answer.
        """
        for kind, body in self._ask(GET, b"", _NLM_F_REQUEST, "asking for the audit status"):
            if kind == GET and len(body) >= _STATUS.size:
                layout = _STATUS_NOW if len(body) >= _STATUS_NOW.size else _STATUS
                return Status(*layout.unpack_from(body))
        raise KcapError("the kernel gave no audit status")

    def set(self, **settings: int) -> None:
        """Change settings.

        Args:
            settings: ``enabled``, ``backlog_limit``, ``backlog_wait_time``.

        Raises:
            PrivilegeError: This user may not, or the settings are locked.
            KcapError: There is no answer.
        """
        words = [0] * 10
        for name, value in settings.items():
            bit, place = _SETTINGS[name]
            words[0] |= bit
            words[place] = value
        what = "changing the audit settings"
        self._order(SET, _SETTING.pack(*words), what)

    def add(self, rule: bytes) -> None:
        """Add a rule.

        Args:
            rule: ``struct audit_rule_data``.

        Raises:
            PrivilegeError: This user may not, or the rules are locked.
            KcapError: The kernel does not understand it.
        """
        self._order(ADD_RULE, rule, "adding an audit rule")

    def delete(self, rule: bytes) -> None:
        """Take a rule away.

        Args:
            rule: ``struct audit_rule_data``, as `rules` gave it. Where it is gone, all is well.

        Raises:
            PrivilegeError: This user may not, or the rules are locked.
            KcapError: There is no answer.
        """
        self._order(DEL_RULE, rule, "deleting an audit rule", errno.ENOENT)

    def rules(self) -> list[bytes]:
        """The rules that there are, whoever added them.

        Returns:
            ``struct audit_rule_data`` of each.

        Raises:
            PrivilegeError: This user may not ask.
            KcapError: There is no answer.
        """
        asked = self._ask(LIST_RULES, b"", _NLM_F_REQUEST, "listing the audit rules")
        return [body for kind, body in asked if kind == LIST_RULES and len(body) >= _RULE_BYTES]

    def _order(self, kind: int, body: bytes, what: str, *accepted: int) -> None:
        for _ in self._ask(kind, body, _NLM_F_REQUEST | _NLM_F_ACK, what, *accepted):
            pass

    def _ask(
        self, kind: int, body: bytes, flags: int, what: str, *accepted: int
    ) -> Iterator[tuple[int, bytes]]:
        """Send something; give the answers, until the last."""
        self._seq += 1
        header = HEADER.pack(HEADER.size + len(body), kind, flags, self._seq, 0)
        try:
            self._socket.send(header + body)
            for _ in range(_ANSWERS_MAX):
                answer, said = self._answer()
                if answer == _NLMSG_DONE:
                    return
                if answer == _NLMSG_ERROR:
                    if len(said) < _ERROR.size:
                        raise KcapError(_CUT)
                    number = -_ERROR.unpack_from(said)[0]
                    if number and number not in accepted:
                        _fail(number, what)
                    return
                yield answer, said
                if answer == GET:
                    return
        except OSError as error:
            _fail(error.errno or errno.ETIMEDOUT, what, error)
        raise KcapError(f"{what}: the kernel's answer has no end")

    def _answer(self) -> tuple[int, bytes]:
        """The next message that answers the last question; those to earlier ones came too late."""
        while True:
            datagram = self._socket.recv(DATAGRAM_BYTES)
            if len(datagram) < HEADER.size:
                raise KcapError(_CUT)
            size, kind, _, seq, _ = HEADER.unpack_from(datagram)
            if seq == self._seq:
                return kind, datagram[HEADER.size : size]


_SETTINGS: Final = {
    "enabled": (1, 1),
    "backlog_limit": (0x10, 5),
    "backlog_wait_time": (0x20, 9),
}
"""The bit of a setting in the mask, and its place in ``struct audit_status``."""


def listen(receive_bytes: int) -> socket.socket:
    """Open a socket that gets a copy of all audit records, whoever else reads them.

    Args:
        receive_bytes: Size of its receive buffer, as near to it as this user may go.

    Returns:
        The socket; it does not block.

    Raises:
        PrivilegeError: This user may not listen.
        KcapError: Not Linux, or a kernel without an audit system.
    """
    sock = _opened()
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_bytes)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    try:
        sock.bind((0, _GROUP_READLOG))
    except OSError as error:
        sock.close()
        _fail(error.errno or errno.EIO, "listening to audit records", error)
    sock.setblocking(False)
    return sock


def _opened() -> socket.socket:
    if sys.platform != "linux":
        raise KcapError("the audit system is Linux's", expected="Linux")
    try:
        return socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_AUDIT
        )
    except OSError as error:
        raise KcapError(
            f"this kernel has no audit system: {error}",
            expected="a kernel with CONFIG_AUDIT, started without audit=off",
        ) from error


def _fail(number: int, what: str, cause: OSError | None = None) -> NoReturn:
    said = os.strerror(number)
    if number in (errno.EPERM, errno.EACCES, errno.ECONNREFUSED):
        raise PrivilegeError(
            f"{what}: {said}", expected=_NEEDS, hint="run as root on the host, not in a container"
        ) from cause
    raise KcapError(f"{what}: {said}") from cause
