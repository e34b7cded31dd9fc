"""Values of Tracee's arguments in any of the forms that its versions and options gave them.

The same argument is a number, its text, or a number with text behind it, a socket's address an
object or text of one, bytes base64 or a list. A signature is about what they mean.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kcap.model import decode

if TYPE_CHECKING:
    from kcap.detect.rule import Event

ELF: Final = b"\x7fELF"
"""What an executable begins with."""

_FLAGS: Final = "open_flags@tracee"
_NUMBER: Final = re.compile(r"-?[0-9]{1,19}(?==|$)")
_CAPITAL: Final = re.compile("[A-Z]")
_LONGEST: Final = 1 << 16
"""Longer text of an address is none."""

_FAMILIES: Final = {"AF_INET": ("sin_addr", "sin_port"), "AF_INET6": ("sin6_addr", "sin6_port")}


class Address(NamedTuple):
    """The other end of a connection; both are empty where it has no address and port."""

    ip: str
    port: str

    def __bool__(self) -> bool:
        """Whether it says where."""
        return bool(self.ip and self.port)


def number(value: object) -> int | None:
    """A number, also as ``parse-arguments-fds`` writes a descriptor: ``3=/etc/passwd``.

    Args:
        value: The value of an argument.

    Returns:
        The number; None where it is none.
    """
    if type(value) is int:
        return value
    found = _NUMBER.match(value) if isinstance(value, str) else None
    return None if found is None else int(found[0])


def flags_text(value: object) -> object:
    """The flags of an opened file as ``parse-arguments`` writes them.

    Args:
        value: The value of an argument.

    Returns:
        Text for a number; anything else as it is.
    """
    return decode.text_of(_FLAGS, value) if type(value) is int else value


def address(value: object) -> Address:
    """Where a socket is connected to.

    Args:
        value: A ``sockaddr`` (`sockaddr`).

    Returns:
        Address and port; empty for families that have none.
    """
    found = sockaddr(value)
    ip, port = _FAMILIES.get(str(found.get("sa_family")), ("", ""))
    return Address(_text(found.get(ip)), _text(found.get(port)))


def unix_path(value: object) -> str:
    """The path that a socket of the host is connected to.

    Args:
        value: A ``sockaddr`` (`sockaddr`).

    Returns:
        The path; empty for other families.
    """
    found = sockaddr(value)
    return _text(found.get("sun_path")) if found.get("sa_family") == "AF_UNIX" else ""


def sockaddr(value: object) -> Mapping[str, object]:
    """The parts of a socket's address.

    Args:
        value: An object, whose keys gRPC writes as ``sinAddr``; or its text, in which the first
            releases had single quotes.

    Returns:
        The parts, by keys like ``sin_addr``; none where it is something else.
    """
    if isinstance(value, str) and len(value) <= _LONGEST:
        try:
            value = json.loads(value.replace("'", '"'))
        except (ValueError, RecursionError):
            return {}
    if not isinstance(value, dict):
        return {}
    return {_CAPITAL.sub(r"_\g<0>", key).lower(): part for key, part in value.items()}


def listed(value: object) -> object:
    """A list as it is.

    Args:
        value: The list; in ``v1beta1.Event`` an object may be around it.

    Returns:
        The list; anything else as it is.
    """
    if isinstance(value, dict) and value.keys() <= {"value"}:
        return value.get("value", [])
    return value


def magic(value: object) -> bytes:
    """The first bytes that were written to a file.

    Args:
        value: Bytes, base64 text, or a list of numbers.

    Returns:
        The bytes; empty where they can't be read.
    """
    try:
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return base64.b64decode(value, validate=True)
        if isinstance(value, list):
            return bytes(value)
    except (binascii.Error, ValueError, TypeError):
        return b""
    return b""


def assigned(variables: object, *names: str) -> str | None:
    """The first variable of an environment that begins with one of some texts.

    Args:
        variables: A list of ``NAME=value``.
        names: The texts.

    Returns:
        The variable with its value; None where there is none.
    """
    found = variables if isinstance(variables, list) else ()
    return next((v for v in found if isinstance(v, str) and v.startswith(names)), None)


def process(event: Event) -> tuple[str, int | None]:
    """The process of an event, told apart from those of other recordings.

    Not by the host's name: a process may give itself another one.

    Args:
        event: The event.

    Returns:
        The recording, and the process id on its host, or else that in the process's own
        namespace. Events that name no process are of one, as they are to Tracee.
    """
    found: Any = event.column("pid")
    if found is None:
        found = event.column("ns_pid")
    return str(event.column("origin") or ""), found if type(found) is int else None


def _text(value: object) -> str:
    return "" if value is None else str(value)
