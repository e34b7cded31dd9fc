"""Whose packet it is, and where it was seen, as comments beside packets say it.

ptcpdump puts a line for each fact (``PID: 42``, ``Cmd: /usr/bin/curl``) into one or several
comments of a packet. `kcap.writers.pcapng` writes the same lines and a few more, with backslashes
before what would end a line, and always as the first comment: so what somebody else wrote beside
a packet is never taken for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from kcap.model.classes import I64_MAX
from kcap.packets.frames import Owner

TEXTS: Final[Mapping[str, str]] = {
    "Name": "name",
    "Cmd": "exe",
    "ParentName": "parent_name",
    "User": "user",
    "ContainerId": "container_id",
    "ContainerName": "container_name",
    "ProcessKey": "process_key",
    "Provenance": "provenance",
    "Args": "cmdline",
}
"""Lines with text, and what they are of an `Owner`; the longest is the last, which may be cut."""

NUMBERS: Final[Mapping[str, str]] = {
    "PID": "pid",
    "TID": "tid",
    "ParentPID": "ppid",
    "UserId": "uid",
    "GroupId": "gid",
    "StartTime": "start_ns",
    "ThreadStartTime": "thread_start_ns",
    "CgroupId": "cgroup_id",
}
"""Lines with a number."""

INTERFACE: Final = "CaptureInterface"
"""The line with the interface, where it is another than the one whose block the packet names; one
without a value is that of a packet that no interface is known of. Only kcap writes it."""

_KNOWN: Final = frozenset(
    {INTERFACE, "ParentCmd", "ParentArgs", "ContainerImage", "ContainerLabels"}
)
"""Lines of ptcpdump that an owner has no place for."""

_PROCESS: Final = re.compile(
    r"(PID|ParentPID): ([0-9]+)\n(Cmd|ParentCmd): (.*?)\n(Args|ParentArgs): (.*)", re.DOTALL
)
"""A comment of ptcpdump's. Nothing in it is escaped, and whoever is recorded chooses what follows
the number: lines there are no facts."""

_NUMBER: Final = re.compile(r"[0-9]{1,19}")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_SPECIAL: Final = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\0": "\\0"})
_MEANING: Final = {"n": "\n", "r": "\r", "0": "\0"}
_POD: Final = "Pod"
_NAME_BYTES: Final = 16


def escape(text: str) -> str:
    """Text as it stands in a line.

    Args:
        text: Any text.

    Returns:
        Text of one line.
    """
    return text.translate(_SPECIAL)


class Told(NamedTuple):
    """What comments say."""

    owner: Owner | None
    """None where nobody is named."""
    interface: str | None
    """None where none is named, empty where it says that there is none."""
    rest: str
    """What they say beside that."""


def read(comments: Sequence[str], *, escaped: bool) -> Told:
    """Read whose packet it is.

    Args:
        comments: The comments of a packet.
        escaped: Whether they are as kcap writes them: `comment` first, and nowhere else.

    Returns:
        What they say.
    """
    telling = [
        place
        for place, text in enumerate(comments[:1] if escaped else comments)
        if all(_is_known(key) for key, _ in _facts(text, escaped=escaped))
    ]
    said = [fact for place in telling for fact in _facts(comments[place], escaped=escaped)]
    found, interface = _owner(said, escaped=escaped), _interface(said)
    if found is None and interface is None and not escaped:
        telling = []
    left = [text for place, text in enumerate(comments) if text and place not in telling]
    return Told(found, interface, "\n".join(left))


def _facts(comment: str, *, escaped: bool) -> list[tuple[str, str]]:
    """What the lines of a comment say: name and value; of an empty line neither."""
    found = None if escaped else _PROCESS.fullmatch(comment)
    if found is None:
        return [_key(line) for line in comment.split("\n")]
    said = found.groups()
    return list(zip(said[::2], said[1::2], strict=True))


def _interface(facts: Sequence[tuple[str, str]]) -> str | None:
    return next((_unescape(value) for key, value in facts if key == INTERFACE), None)


def _is_known(key: str) -> bool:
    return not key or key in NUMBERS or key in TEXTS or key in _KNOWN or key.startswith(_POD)


def _key(line: str) -> tuple[str, str]:
    key, colon, value = line.partition(": ")
    return (key, value) if colon else (line.removesuffix(":"), "")


def _owner(facts: Sequence[tuple[str, str]], *, escaped: bool) -> Owner | None:
    texts: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for key, value in facts:
        if key in NUMBERS and _NUMBER.fullmatch(value) and int(value) <= I64_MAX:
            numbers.setdefault(NUMBERS[key], int(value))
        elif key in TEXTS:
            texts.setdefault(TEXTS[key], _unescape(value) if escaped else value)
    if not {"pid", "tid", "container_id", "cgroup_id"} & (numbers.keys() | texts.keys()):
        told = Owner(provenance=texts.get("provenance"))
        return told if escaped and told.nobody else None
    if not escaped and "name" not in texts and "exe" in texts:
        # comm is what execve(2) left of the file's name, unless the process renamed itself.
        cut = texts["exe"].rpartition("/")[2].encode()[: _NAME_BYTES - 1]
        texts["name"] = cut.decode("utf-8", "ignore")
    return Owner(**numbers, **texts)  # type: ignore[arg-type]


def _unescape(value: str) -> str:
    return _ESCAPED.sub(lambda m: _MEANING.get(m[1], m[1]), value)


def comment(entry: Owner | None, interface: str | None = None) -> str:
    """What `read` reads.

    Args:
        entry: An owner, or None.
        interface: The interface, where it has to be said; empty for none.

    Returns:
        Lines, of what is known; empty where nothing is.
    """
    lines = [] if interface is None else [f"{INTERFACE}: {escape(interface)}"]
    for names in (NUMBERS, TEXTS):
        for key, name in names.items():
            value = getattr(entry, name, None)
            if value is not None and value != "":
                spelled = (
                    value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
                )
                lines.append(f"{key}: {escape(spelled) if isinstance(spelled, str) else spelled}")
    return "\n".join(lines)
