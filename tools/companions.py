"""Whoever listens beside a recorder: to packets, to what becomes artifacts."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Final

from kcap.errors import KcapError, PrivilegeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kcap.model.stream import LiveSource
    from kcap.readers.live.accompanied import Companion
    from kcap.tools.artifact_options import Asked

PACKAGES: Final = (
    "kcap.packets",
    "kcap.readers.live.artifacts",
    "kcap.readers.live.packets",
)
"""What must be loaded while there are rights."""

_PROCESSES_ONLY: Final = "proc"
_SAYS_PROCESSES: Final = "netlink-proc"
"""The source that tells of processes alone: nothing of whose an artifact is."""


def check(source: str, asked: Asked | None) -> None:
    """Refuse to keep artifacts where that can't be, before anything is begun.

    Args:
        source: The live source that the user named, or ``auto``.
        asked: What is asked for, None for nothing.

    Raises:
        PrivilegeError: This user may not do it.
        KcapError: The source tells too little.
    """
    from kcap.guard import rights

    if asked is None:
        return
    if source == _PROCESSES_ONLY:
        raise KcapError(
            "--source proc tells of no files, memory or sockets: it can't say whose an artifact is",
            hint="record artifacts with --source bpf; 'kcap doctor' says what is missing for it",
        )
    if not rights.privileged():
        raise PrivilegeError(
            "to keep artifacts takes root", hint="sudo kcap record …, or leave --artifacts out"
        )


def accompanied(source: LiveSource, asked: Asked | None, output: str) -> LiveSource:
    """A source with those who listen beside it.

    Args:
        source: The source; closed where this fails.
        asked: What is asked for, None for nothing.
        output: Where the recording goes: what is written there is no artifact.

    Returns:
        The source, or one that has it in it; whoever gets it closes it.

    Raises:
        KcapError: This host can't give what is asked for.
    """
    if asked is None:
        return source
    from kcap.readers.live.accompanied import Accompanied

    companions: list[Companion] = []
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        if source.info.format == _SAYS_PROCESSES:
            check(_PROCESSES_ONLY, asked)
        for make in _makers(asked):
            companions.append(made := make())
            stack.callback(made.close)
        stack.pop_all()
    return Accompanied(source, companions)


def _makers(asked: Asked) -> Iterator[Callable[[], Companion]]:
    """Who listens, the one first that is heard first."""
    wanted = asked.wanted
    if wanted.network is not None:
        from kcap.readers.live.packets.companion import PacketsCompanion

        yield partial(PacketsCompanion, wanted.network)
    if wanted.kernel or wanted.files:
        from kcap.readers.live.artifacts.companion import ArtifactsCompanion

        yield partial(ArtifactsCompanion, wanted)
