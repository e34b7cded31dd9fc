"""Whoever listens beside a recorder: to packets, to what becomes artifacts."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kcap.errors import KcapError, PrivilegeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kcap.model.stream import LiveSource
    from kcap.readers.live.accompanied import Companion
    from kcap.readers.live.artifacts.wanted import Network
    from kcap.readers.live.bpf.loader import Map
    from kcap.readers.live.bpf.program import Setup
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
        for make in _makers(source, asked, output):
            companions.append(made := make())
            stack.callback(made.close)
        stack.pop_all()
    return Accompanied(source, companions)


def _makers(source: LiveSource, asked: Asked, output: str) -> Iterator[Callable[[], Companion]]:
    """Who listens, the one first whose events may be others' artifacts."""
    wanted, scope = asked.wanted, _Scope.of(source)
    if wanted.network is not None:
        from kcap.readers.live.packets.companion import PacketsCompanion

        yield partial(PacketsCompanion, wanted.network, **scope.of_packets(wanted.network))
    if wanted.kernel or wanted.files:
        from kcap.readers.live.artifacts.companion import ArtifactsCompanion

        left_out = [*([output] if output != "-" else []), *([asked.folder] if asked.folder else [])]
        yield partial(
            ArtifactsCompanion, wanted, setup=scope.setup, shared=scope.maps, left_out=left_out
        )


class _Scope(NamedTuple):
    """What a recorder has told the kernel of whom to record; None where it is not in the kernel."""

    setup: Setup | None = None
    maps: Mapping[str, Map] | None = None
    controller: str | None = None

    @classmethod
    def of(cls, source: object) -> _Scope:
        """That of a source."""
        from kcap.readers.live.bpf.recorder import BpfRecorder

        if not isinstance(source, BpfRecorder):
            return cls()
        return cls(source.setup, source.program.maps, source.program.controller)

    def of_packets(self, network: Network) -> dict[str, Any]:
        """What the program for packets is told of it."""
        from importlib import resources

        from kcap.readers.live.artifacts.kernel import SHARED
        from kcap.readers.live.bpf.elf import ElfObject
        from kcap.readers.live.packets.program import OBJECT

        told: dict[str, Any] = {"controller": self.controller}
        if self.setup is None or self.maps is None or not network.filtered:
            return told
        content = resources.files("kcap.readers.live.bpf").joinpath(OBJECT).read_bytes()
        known = ElfObject(content, file=OBJECT).variables
        constants = {n: value for n, value in self.setup.constants.items() if n in known}
        shared = {name: self.maps[name] for name in SHARED if name in self.maps}
        return {**told, "constants": constants, "shared": shared}
