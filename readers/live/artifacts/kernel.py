"""The kernel's programs for artifacts while they are loaded: beside the recorder's, or alone.

They tell of moments (`triggers`) in one ring and hand over content in another. Both are memory that
is shared with the kernel: who reads them needs no rights. Counters are asked for with bpf(2).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Final, NamedTuple

from kcap.errors import KcapError
from kcap.model.tracee_names import kernel_device
from kcap.readers.live.artifacts import programs
from kcap.readers.live.artifacts.wanted import Wanted
from kcap.readers.live.bpf import loader, system
from kcap.readers.live.bpf.btf import Btf
from kcap.readers.live.bpf.elf import ElfObject
from kcap.readers.live.bpf.program import Setup, controller_of, typed
from kcap.readers.live.bpf.records import layout
from kcap.readers.live.bpf.ring import Ring
from kcap.readers.live.bpf.running import Running

OBJECT: Final = "artifacts.bpf.o"
TRIGGER_BYTES: Final = 1 << 20
CONTENT_BYTES: Final = 16 << 20
CALL_BYTES: Final = 8 << 20
"""Copied of one call at most."""

SHARED: Final = (
    "own",
    "tracked",
    "scope_uid",
    "scope_pid",
    "scope_comm",
    "scope_mount_ns",
    "scope_pid_ns",
    "scope_cgroup",
    "scope_binary",
)
"""Maps that are the recorder's, where it records with BPF too."""

STREAM_KEY: Final = "kcap_stream_key"

STREAMS: Final = 65_536
"""Streams that are followed at a time."""

_UNUSED_BYTES: Final = 1 << 16
"""Size of a ring into which nothing comes."""

_WAKE_PART: Final = 8
_EXIT: Final = "on_sys_exit"
_FOLLOWED: Final = ("on_exit", "on_fork", "on_exec")
_RINGS: Final = ("on_ring_result", "on_ring_entry")
"""For kernels that say the result of an io_uring request so, or so."""


class Sums(NamedTuple):
    """What came of everything so far."""

    triggers: int
    triggers_lost: int
    """The ring was full."""
    pieces: int
    pieces_lost: int
    bytes_lost: int
    """Bytes of content in those pieces: streams count them as missing."""
    streams_lost_bytes: int
    """Bytes of streams that were not followed: there were too many at a time."""


class ArtifactKernel(Running):
    """The programs, loaded.

    Args:
        wanted: What is to be kept.
        setup: The scope that the recorder has, where there is one.
        shared: Its maps, where it records with BPF: who is in scope, and which processes are its
            own, is told to both then. None where the programs have to know it by themselves.
        content_bytes: Ring of content; a power of two.
        trigger_bytes: Ring of moments; a power of two.
        call_bytes: Copied of one call at most.

    Raises:
        PrivilegeError: This user may not load them.
        KcapError: This kernel can't run them (they take Linux 5.12).
    """

    def __init__(
        self,
        wanted: Wanted,
        *,
        setup: Setup | None = None,
        shared: Mapping[str, loader.Map] | None = None,
        content_bytes: int = CONTENT_BYTES,
        trigger_bytes: int = TRIGGER_BYTES,
        call_bytes: int = CALL_BYTES,
    ) -> None:
        self._wanted = wanted
        self._alone = shared is None
        self._members = setup.members if setup else tuple
        types = Btf.of_kernel()
        _, controller = controller_of(types)
        content = resources.files("kcap.readers.live.bpf").joinpath(OBJECT).read_bytes()
        known = ElfObject(content, file=OBJECT).variables
        told = setup.constants if setup else {}
        cpus = system.possible_cpus()
        flows = programs.has_streams(wanted)
        if not (flows or wanted.module or wanted.bpf):
            content_bytes = _UNUSED_BYTES
        loaded = loader.load(
            content,
            types,
            constants={
                **{name: value for name, value in told.items() if name in known},
                **programs.constants(wanted),
                "alone": int(self._alone),
                "call_bytes": call_bytes,
                "cgroup_controller": controller,
                "typed": typed(types),
                "wake_bytes": content_bytes // _WAKE_PART,
            },
            sizes={
                "bytes": content_bytes,
                "triggers": trigger_bytes,
                "scratches": cpus,
                "flows": cpus,
                "streams": STREAMS if flows else 1,
            },
            optional=tuple(programs.STEPS),
            shared={name: held for name, held in (shared or {}).items() if name in SHARED},
            file=OBJECT,
        )
        super().__init__(loaded)
        try:
            self._tell(setup)
            self.content = Ring(self._loaded.maps["bytes"].fd, content_bytes)
            """What passes through calls: `kcap.readers.live.artifacts.streams` reads it."""
            self.triggers = Ring(self._loaded.maps["triggers"].fd, trigger_bytes)
            """Moments: `kcap.readers.live.artifacts.triggers` reads them."""
        except BaseException:
            self._loaded.close()
            raise

    def _tell(self, setup: Setup | None) -> None:
        maps = self._loaded.maps
        for name, place in programs.STEPS.items():
            if name not in self._loaded.refused:
                self._loaded.set_tail_call("steps", place, name)
        for number, doing in programs.calls(self._wanted):
            maps["doings"].set(number, doing)
        if not self._alone:
            return
        for name, entries in (setup.maps if setup else {}).items():
            if name in maps:
                for key, value in entries.items():
                    maps[name].set(key, value)
        self.own([os.getpid()])

    def attach(self) -> None:
        """Begin to look.

        Raises:
            KcapError: The kernel refused.
        """
        for name in _FOLLOWED:
            self._loaded.attach(name)
        if self._alone:
            for pid in self._members():
                self._loaded.maps["tracked"].set(pid, 1)
        if any(True for _ in programs.calls(self._wanted)):
            self._loaded.attach(_EXIT)
        if programs.has_streams(self._wanted):
            self._attach_rings()

    def _attach_rings(self) -> None:
        first, second = _RINGS
        try:
            self._loaded.attach(first)
        except KcapError:
            try:
                self._loaded.attach(second)
            except KcapError as error:  # a kernel without io_uring
                self._loaded.refused[second] = str(error)

    def own(self, pids: Sequence[int]) -> None:
        """See `Running`; nothing is done where the recorder's own program has been told."""
        if self._alone:
            super().own(pids)

    def mark(self, devices: Iterable[int]) -> None:
        """Say which file systems are watched: what is executed there is no longer `UNWATCHED`.

        Of more than there is room for the last stay so, which costs a look at each execution there:
        who mounts without end must not end a recording.

        Args:
            devices: ``st_dev`` of each.
        """
        for device in devices:
            with contextlib.suppress(KcapError):
                self._loaded.maps["marked"].set(kernel_device(device), 1)

    def unmark(self, devices: Iterable[int]) -> None:
        """Say which are watched no more.

        Args:
            devices: ``st_dev`` of each.

        Raises:
            KcapError: The kernel refused.
        """
        for device in devices:
            self._loaded.maps["marked"].delete(kernel_device(device))

    def sums(self) -> Sums:
        """What came of everything so far.

        Raises:
            KcapError: The kernel refused.
        """
        table = self._loaded.maps["sums"]
        return Sums(
            *(int.from_bytes(table.get(n) or b"", "little") for n in range(len(Sums._fields)))
        )

    def totals(self) -> bytes:
        """What went through each stream so far: `kcap.readers.live.artifacts.streams` reads it.

        Returns:
            Keys and values in turn, as the kernel has them.

        Raises:
            KcapError: The kernel refused.
        """
        return b"".join(key + value for key, value in self._loaded.maps["streams"].items())

    def forget(self, keys: bytes) -> bytes:
        """Make room for other streams.

        Args:
            keys: Of streams that have ended, one behind the other.

        Returns:
            As `totals`, what went through them by then: the last of it may have been lost.

        Raises:
            KcapError: They are no keys, or the kernel refused.
        """
        size = layout(self.types, STREAM_KEY).itemsize
        if len(keys) % size:
            raise KcapError(f"{len(keys)} bytes are no keys of streams")
        table, found = self._loaded.maps["streams"], b""
        for at in range(0, len(keys), size):
            key = keys[at : at + size]
            value = table.get(key)
            if value is not None:
                found += key + value
                table.delete(key)
        return found

    def passed_over(self) -> dict[str, int]:
        """How often each part did not run because it ran already on that processor, so far."""
        return {
            name: misses
            for name in (*_FOLLOWED, *_RINGS, _EXIT)
            if (misses := self._loaded.info(name).recursion_misses or 0)
        }

    def let_go(self) -> None:
        """Close all but the rings in a process that was forked and goes on without rights."""
        self._loaded.close(but=("bytes", "triggers"))

    def close(self) -> None:
        """Give everything back."""
        self.content.close()
        self.triggers.close()
        self._loaded.close()
