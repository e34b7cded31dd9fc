"""The netlink socket that process events come from."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import time
from typing import Final

from kcap.errors import KcapError, PrivilegeError
from kcap.readers.live import cn_proc

# <linux/netlink.h>, <linux/connector.h>, <linux/cn_proc.h>, <asm-generic/socket.h>; Python's
# socket module has none of them.
_NETLINK_CONNECTOR: Final = 11
_SOL_NETLINK: Final = 270
_NETLINK_DROP_MEMBERSHIP: Final = 2
_SO_RCVBUFFORCE: Final = 33
_SO_MEMINFO: Final = 55
_SK_MEMINFO_DROPS: Final = 8
_MEMINFO: Final = struct.Struct("=9I")
_SUBSCRIPTION: Final = struct.Struct("=IHHIIIIIIHHI")
MCAST_LISTEN: Final = 1
MCAST_IGNORE: Final = 2

DATAGRAM_BYTES: Final = 512
"""Longest datagram that is taken whole; events have 76 bytes."""

_ACKNOWLEDGE_S: Final = 2.0


def connect(receive_bytes: int) -> socket.socket:
    """Open a socket that belongs to the group which process events go to.

    Args:
        receive_bytes: Size of its receive buffer, as near to it as this user may go.

    Returns:
        The socket.

    Raises:
        PrivilegeError: This user may not listen.
        KcapError: Not Linux, or a kernel without the connector.
    """
    if sys.platform != "linux":
        raise KcapError("process events are recorded on Linux only", expected="Linux")
    try:
        sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_CONNECTOR
        )
    except OSError as error:
        raise KcapError(
            f"this kernel has no connector: {error}",
            expected="a kernel with CONFIG_CONNECTOR and CONFIG_PROC_EVENTS",
        ) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_bytes)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    try:
        sock.bind((0, cn_proc.CN_IDX_PROC))
    except PermissionError as error:
        sock.close()
        raise _refused() from error
    return sock


def _refused() -> PrivilegeError:
    return PrivilegeError(
        "the kernel refuses to send process events",
        expected="root or CAP_NET_ADMIN, in the initial namespaces",
        hint="run as root on the host, not in a container",
    )


def send(sock: socket.socket, operation: int) -> int:
    """Ask for events, or for no more.

    Args:
        sock: The socket.
        operation: `MCAST_LISTEN` or `MCAST_IGNORE`.

    Returns:
        The number that the kernel's answer bears.
    """
    token = int.from_bytes(os.urandom(4), sys.byteorder)
    body_bytes = _SUBSCRIPTION.size - 16
    message = _SUBSCRIPTION.pack(
        _SUBSCRIPTION.size,  # struct nlmsghdr
        cn_proc.NLMSG_DONE,
        0,
        token,
        0,
        cn_proc.CN_IDX_PROC,  # struct cn_msg
        cn_proc.CN_VAL_PROC,
        token,
        0,
        body_bytes - 20,
        0,
        operation,
    )
    sock.send(message)
    return token


def subscribe(sock: socket.socket) -> list[bytes]:
    """Ask for events and wait for the answer.

    Args:
        sock: The socket; it does not block afterwards.

    Returns:
        The datagrams up to the answer; there are others where another program listens.

    Raises:
        PrivilegeError: The kernel refuses.
        KcapError: The kernel does not answer.
    """
    try:
        token = send(sock, MCAST_LISTEN)
    except PermissionError as error:
        raise _refused() from error
    except OSError as error:
        raise KcapError(
            f"the kernel's process connector cannot be reached: {error}",
            expected="a kernel with CONFIG_PROC_EVENTS, and the initial network namespace",
        ) from error
    events = []
    deadline_s = time.monotonic() + _ACKNOWLEDGE_S
    while (left_s := deadline_s - time.monotonic()) > 0:
        sock.settimeout(left_s)
        try:
            datagram = sock.recv(DATAGRAM_BYTES)
        except TimeoutError:
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise KcapError(f"reading process events failed: {error}") from error
            continue  # the numbers of later events tell how many are lost
        events.append(datagram)
        answer = cn_proc.acknowledgement(datagram, token)
        if answer is None:
            continue
        if answer in {errno.EPERM, errno.EACCES}:
            raise _refused()
        if answer:
            raise KcapError(f"the kernel refuses process events: {os.strerror(answer)}")
        sock.setblocking(False)
        return events
    raise KcapError(
        f"the kernel did not answer the subscription within {_ACKNOWLEDGE_S:g} s",
        expected="a kernel with CONFIG_PROC_EVENTS, and the initial user and pid namespaces",
        hint="run on the host, not in a container",
    )


def leave(sock: socket.socket) -> None:
    """Take no new events; those in the buffer stay.

    Args:
        sock: The socket.
    """
    send(sock, MCAST_IGNORE)
    sock.setsockopt(_SOL_NETLINK, _NETLINK_DROP_MEMBERSHIP, cn_proc.CN_IDX_PROC)


def dropped(sock: socket.socket) -> int | None:
    """How many events the kernel could not put into the buffer.

    Args:
        sock: The socket.

    Returns:
        The number since it was opened, None where the kernel does not tell.
    """
    try:
        told = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    except OSError:
        return None
    return _MEMINFO.unpack(told)[_SK_MEMINFO_DROPS] if len(told) == _MEMINFO.size else None
