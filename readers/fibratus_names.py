"""Fibratus's event types by provider and number, as far as a stored name does not say them.

State records are stored without a name (``N/A``) by the releases 1.x; the names here are those
that the same release has for them elsewhere, and those of 3.x for later captures.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_PROCESS: Final = "3d6fa8d0-fe05-11d0-9dda-00c04fd7ba7c"
_THREAD: Final = "3d6fa8d1-fe05-11d0-9dda-00c04fd7ba7c"
_IMAGE: Final = "2cb15d1d-5fc1-11d2-abe1-00a0c911f518"
_FILE: Final = "90cbdc39-4a3e-11d1-84f4-0000f80464e3"
_REGISTRY: Final = "ae53722e-c863-11d2-8659-00c04fa321a1"
_KERNEL_PROCESS: Final = "22fb2cd6-0e7b-422b-a0c7-2fad1fd0e716"
_KERNEL_REGISTRY: Final = "70eb4f03-c1de-4f73-a051-33d13d5413bd"
_STACK: Final = "def2fe46-7bd6-4b80-bd94-f57fe20d0ce3"

UNNAMED: Final = frozenset({"", "N/A", "Unknown", "unknown"})
"""Stored names that say nothing."""


class StateType(NamedTuple):
    """A type of record that describes what was there, or that only the recorder needs."""

    old: str
    """Its name in 1.x."""
    new: str
    """Its name in 2.x and 3.x."""


def _same(name: str) -> StateType:
    return StateType(name, name)


STATE_TYPES: Final[dict[tuple[str, int], StateType]] = {
    (_PROCESS, 3): StateType("EnumProcess", "ProcessRundown"),
    (_THREAD, 3): StateType("EnumThread", "ThreadRundown"),
    (_IMAGE, 3): StateType("EnumImage", "ModuleRundown"),
    (_FILE, 36): _same("FileRundown"),
    (_FILE, 39): _same("MapFileRundown"),
    (_FILE, 65): _same("ReleaseFile"),
    (_FILE, 76): _same("FileOpEnd"),
    (_REGISTRY, 22): _same("RegCreateKCB"),
    (_REGISTRY, 23): _same("RegDeleteKCB"),
    (_REGISTRY, 25): _same("RegKCBRundown"),
    (_KERNEL_PROCESS, 1): _same("CreateProcessInternal"),
    (_KERNEL_PROCESS, 5): _same("LoadModuleInternal"),
    (_KERNEL_PROCESS, 15): _same("ProcessRundownInternal"),
    (_KERNEL_REGISTRY, 36): _same("RegSetValueInternal"),
    (_STACK, 32): _same("StackWalk"),
}
"""Provider and number of the state records."""

INTERNAL: Final = frozenset({_KERNEL_PROCESS, _KERNEL_REGISTRY})
"""Providers whose records repeat what others say; a stored name is that of the others."""
