"""Rules of the audit system: which calls are recorded. ``struct audit_rule_data``, as bytes.

All of a recorder's rules bear one key. It says whose they are and how the settings were before,
so that whoever finds the rules of a recorder that was killed can put everything back.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from kcap.readers.audit_events import I386, OWN_KEY, X86_64
from kcap.readers.live.bpf import events

_HEAD: Final = struct.Struct("=3I")
_WORDS: Final = struct.Struct("=64I")
_LENGTH: Final = struct.Struct("=I")
_MASK_AT: Final = _HEAD.size
_FIELDS_AT: Final = _MASK_AT + _WORDS.size
_VALUES_AT: Final = _FIELDS_AT + _WORDS.size
_OPERATORS_AT: Final = _VALUES_AT + _WORDS.size
_LENGTH_AT: Final = _OPERATORS_AT + _WORDS.size
_TEXT_AT: Final = _LENGTH_AT + _LENGTH.size
_FIELDS_MAX: Final = 64
_WORD_BITS: Final = 32

_TASK: Final = 1
_EXIT: Final = 4
_LISTS: Final = 0xF
_NEVER: Final = 0
_ALWAYS: Final = 2

_ARCH: Final = 11
_ARG0: Final = 200
_KEY: Final = 210
_TEXTS: Final = frozenset({*range(13, 18), *range(19, 24), 105, 107, 112, _KEY})
"""Fields whose value is a text: labels, paths, keys; its length stands in their place."""

_EQUAL: Final = 0x40000000
_ANY_BIT: Final = 0x08000000
_AT_LEAST: Final = 0x60000000
_AT_MOST: Final = 0x50000000

_WRITING: Final = 3
_PROT_WRITE: Final = 2
_PROT_EXEC: Final = 4
_SOCKETCALL: Final = 102
_SOCKET_CALLS: Final = ((2, 5), (18, 18))
"""By which numbers 32-bit programs bind, connect, listen and accept."""

_OPENS: Final = {"open": 1, "openat": 2}
"""Calls that open files, and which argument has the flags."""

_MAPPINGS: Final = frozenset({"mmap", "mprotect", "pkey_mprotect"})
_BY_SOCKETCALL: Final = frozenset({"accept", "accept4", "bind", "connect", "listen"})
_EXECUTIONS: Final = ("execve", "execveat")


class Condition(NamedTuple):
    """What an argument of a call must be."""

    place: int
    operator: int
    value: int


class Key(NamedTuple):
    """Whose rules they are."""

    pid: int
    start_ticks: int
    """When that process began: another one may have its pid by now."""
    enabled: int
    backlog_limit: int
    backlog_wait_time: int
    """How the settings were before any recorder changed them."""

    @property
    def text(self) -> bytes:
        """The key, as rules bear it."""
        settings = f"e{self.enabled}-b{self.backlog_limit}-w{self.backlog_wait_time}"
        return f"kcap-{self.pid}-{self.start_ticks}-{settings}".encode()

    @property
    def alive(self) -> bool:
        """Whether that process still runs."""
        return started(self.pid) == self.start_ticks


def started(pid: int, proc: str = "/proc") -> int | None:
    """When a process began.

    Args:
        pid: Its id.
        proc: Where proc is mounted.

    Returns:
        The time in ticks since the machine started, None where there is no such process.
    """
    try:
        told = Path(f"{proc}/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name may hold anything, a parenthesis too: what counts stands behind the last one.
    return int(told.rpartition(b")")[2].split()[19])


def key_of(rule: bytes) -> bytes | None:
    """The key that a rule bears.

    Args:
        rule: ``struct audit_rule_data``.

    Returns:
        The key, None for none.
    """
    count = _head(rule)[2]
    fields, values = (_words(rule, at) for at in (_FIELDS_AT, _VALUES_AT))
    at = _TEXT_AT
    for field, value in zip(fields[:count], values[:count], strict=True):
        if field == _KEY:
            return rule[at : at + value]
        if field in _TEXTS:
            at += value
    return None


def owner(rule: bytes) -> Key | None:
    """Which recorder a rule is of.

    Args:
        rule: ``struct audit_rule_data``.

    Returns:
        The recorder, None for rules of others.
    """
    found = OWN_KEY.fullmatch(key_of(rule) or b"")
    return Key(*map(int, found.groups())) if found else None


def hides(rule: bytes) -> str | None:
    """Whether a rule of somebody else keeps things from being recorded.

    Args:
        rule: ``struct audit_rule_data``.

    Returns:
        What it hides, as a sentence; None for nothing.
    """
    flags, action, count = _head(rule)
    if action != _NEVER:
        return None
    if flags & _LISTS == _TASK and not count:
        return "any system call of any process: the rule '-a task,never' of this host forbids it"
    if flags & _LISTS in (_TASK, _EXIT):
        return "what the host's own audit rules with 'never' leave out"
    return None


@cache
def told() -> frozenset[str]:
    """The events that audit can tell: all that are calls, and executions."""
    return frozenset(e.name for e in events.events().values() if e.is_call) | {events.EXECUTION}


def default() -> frozenset[str]:
    """Those that are recorded where nobody asks for others."""
    return told() & {*events.sets()["default"]}


def rules(wanted: Collection[str], key: bytes, *, all_opens: bool = False) -> list[bytes]:
    """The rules by which the kernel records calls.

    Args:
        wanted: Names of events, some of `told`.
        key: What the rules are to bear.
        all_opens: Files that are opened only for reading count, too.

    Returns:
        ``struct audit_rule_data`` of each.
    """
    calls = {*wanted} - {events.EXECUTION}
    if events.EXECUTION in wanted:
        calls |= {*_EXECUTIONS}
    return [
        encode(numbers, arch, conditions, key)
        for arch in (X86_64, I386)
        for numbers, conditions in _conditions(calls, arch, all_opens=all_opens)
        if numbers
    ]


def _conditions(
    calls: Collection[str], arch: int, *, all_opens: bool
) -> Iterator[tuple[Sequence[int], Sequence[Condition]]]:
    """Which calls, and on which conditions."""
    opens = {} if all_opens else _OPENS
    yield _numbers({*calls} - {*opens, *_MAPPINGS}, arch), ()
    for name, place in opens.items():
        yield _numbers({name} & {*calls}, arch), (Condition(place, _ANY_BIT, _WRITING),)
    both = (Condition(2, _ANY_BIT, _PROT_WRITE), Condition(2, _ANY_BIT, _PROT_EXEC))
    yield _numbers(_MAPPINGS & {*calls}, arch), both
    if arch == I386 and _BY_SOCKETCALL & {*calls}:
        for first, last in _SOCKET_CALLS:
            yield (
                (_SOCKETCALL,),
                (Condition(0, _AT_LEAST, first), Condition(0, _AT_MOST, last)),
            )


def _numbers(names: Collection[str], arch: int) -> list[int]:
    known = events.events()
    found = (known[name].native if arch == X86_64 else known[name].compat for name in names)
    return sorted(number for numbers in found for number in numbers)


def encode(
    numbers: Collection[int], arch: int, conditions: Sequence[Condition], key: bytes
) -> bytes:
    """Spell a rule.

    Args:
        numbers: Numbers of the calls.
        arch: Their instruction set.
        conditions: What their arguments must be, all of them.
        key: The key.

    Returns:
        ``struct audit_rule_data``.
    """
    mask = [0] * _FIELDS_MAX
    for number in numbers:
        mask[number // _WORD_BITS] |= 1 << number % _WORD_BITS
    fields = [
        (_ARCH, _EQUAL, arch),
        *((_ARG0 + c.place, c.operator, c.value) for c in conditions),
        (_KEY, _EQUAL, len(key)),
    ]
    columns = [[field[at] for field in fields] for at in (0, 2, 1)]
    padded = [column + [0] * (_FIELDS_MAX - len(column)) for column in columns]
    words = b"".join(_WORDS.pack(*column) for column in (mask, *padded))
    return _HEAD.pack(_EXIT, _ALWAYS, len(fields)) + words + _LENGTH.pack(len(key)) + key


def _head(rule: bytes) -> tuple[int, int, int]:
    flags, action, count = _HEAD.unpack_from(rule)
    return flags, action, min(count, _FIELDS_MAX)


def _words(rule: bytes, at: int) -> tuple[int, ...]:
    return _WORDS.unpack_from(rule, at)
