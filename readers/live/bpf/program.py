"""The recorder's program in the kernel: loaded, told what to record, attached, and its counters.

Executions, births and deaths are attached first. The state of the host is read after that, so
that nothing comes in between; system calls follow when it is known, so that their ring need not
hold what comes meanwhile.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.errors import KcapError
from kcap.readers.live.bpf import events, loader, offsets, system
from kcap.readers.live.bpf.btf import Btf
from kcap.readers.live.bpf.ring import Ring
from kcap.readers.live.bpf.running import Running

OBJECT: Final = "recorder.bpf.o"
RARE_BYTES: Final = 8 << 20
HOT_BYTES: Final = 32 << 20
_RARE_PARTS: Final = 8
_HOT_PARTS: Final = 4
"""A ring wakes us where another one of so many parts of it was filled. Of frequent events many are
worth waiting for: a batch takes its time however few they are (docs/decisions.md)."""

_TYPED: Final = "BPF_FUNC_task_pt_regs"
"""The later of two helpers that give what the kernel program reads without calls (Linux 5.15)."""

_CONTROLLERS: Final = ("memory", "pids", "cpu", "cpuacct", "devices")
"""Hierarchies of cgroups v1 that container runtimes use, the likeliest first."""

_HANDLERS: Final = (
    "call_plain",
    "call_path",
    "call_open",
    "call_file",
    "call_socket",
    "call_exec",
    "call_memory",
    "call_bpf",
    "call_remote",
    "call_close",
    "call_executed",
    "call_variables",
)
"""Programs by their place in the map of handlers: ``enum kcap_handler``."""

_PEEK: Final = "call_peek"
_ENTER: Final = "on_sys_enter"
_EXIT: Final = "on_sys_exit"
_FOLLOWED: Final = ("on_exec", "on_fork", "on_exit")
_OPTIONAL: Final = {"task_rename": "on_rename", "inet_sock_set_state": "on_state"}
_NEEDS_ENTER: Final = "close"

COUNT: Final = np.dtype([("kept", "<u8"), ("lost", "<u8"), ("filtered", "<u8")])
"""What `KernelProgram.counts` has for each event."""

_PROBED: Final = 140
"""getpriority(2): no event, so that nothing is recorded where we ask whether the program runs."""

_VICTIM: Final = np.dtype([("cgroup_id", "<u8"), ("pid", "<u4"), ("event", "<u4")])


class Setup(NamedTuple):
    """What the program is told before it runs."""

    events: Collection[str]
    constants: Mapping[str, int] = MappingProxyType({})
    maps: Mapping[str, Mapping[bytes | int, bytes | int]] = MappingProxyType({})
    """Entries of its maps, by map."""
    members: Callable[[], Iterable[int]] = tuple
    """Gives the processes that are tracked; asked for when births are seen, so none is missed."""


class KernelProgram(Running):
    """The program while it is loaded.

    Args:
        setup: What to record.
        rare_bytes: Ring of executions, connections and the like; a power of two.
        hot_bytes: Ring of opens, reads, writes and the like; a power of two.

    Raises:
        PrivilegeError: This user may not load it.
        KcapError: This kernel can't run it.
    """

    def __init__(
        self, setup: Setup, *, rare_bytes: int = RARE_BYTES, hot_bytes: int = HOT_BYTES
    ) -> None:
        self._setup = setup
        types = Btf.of_kernel()
        self.controller, number = controller_of(types)
        """The hierarchy that cgroup ids are of: a controller of version 1, None for version 2."""
        constants = {
            "wake_rare": rare_bytes // _RARE_PARTS,
            "wake_hot": hot_bytes // _HOT_PARTS,
            "cgroup_controller": number,
            "typed": typed(types),
            "renames": int("task_rename" in setup.events),
            "states": int("inet_sock_set_state" in setup.events),
            **setup.constants,
        }
        content = resources.files("kcap.readers.live.bpf").joinpath(OBJECT).read_bytes()
        loaded = loader.load(
            content,
            types,
            constants=constants,
            sizes={"rare": rare_bytes, "hot": hot_bytes, "scratches": system.possible_cpus()},
            optional=(*_HANDLERS, *_OPTIONAL.values(), _ENTER, _PEEK),
            file=OBJECT,
        )
        super().__init__(loaded)
        try:
            for place, name in enumerate(_HANDLERS):
                if name not in self._loaded.refused:
                    self._loaded.set_tail_call("handlers", place, name)
            for name, entries in setup.maps.items():
                for key, value in entries.items():
                    self._loaded.maps[name].set(key, value)
            self.own([os.getpid()])
            self.rare = Ring(self._loaded.maps["rare"].fd, rare_bytes)
            self.hot = Ring(self._loaded.maps["hot"].fd, hot_bytes)
        except BaseException:
            self._loaded.close()
            raise
        self._one_by_one = False
        self._calls = 0

    def attach_processes(self) -> None:
        """Begin to follow processes.

        Raises:
            KcapError: The kernel refused.
        """
        for name in _FOLLOWED:
            self._loaded.attach(name)
        # Also where no renames are asked for: what a program was called before it was executed.
        self._loaded.attach(_OPTIONAL["task_rename"])
        for pid in self._setup.members():
            self._loaded.maps["tracked"].set(pid, 1)

    def attach_calls(self, layout: np.dtype[np.void]) -> None:
        """Begin to record the rest.

        Args:
            layout: ``struct kcap_call`` as the program has it.

        Raises:
            KcapError: The kernel refused.
        """
        table = self._loaded.maps["calls"]
        found = events.calls(self._setup.events)
        for number, call in found.items():
            table.set(number, call.encode(layout))
        if _NEEDS_ENTER in self._setup.events:
            self._loaded.attach(_ENTER)
        if found:
            unrecorded = events.Call(events.EVENTS, 0, 0, (0, 0, 0), (0, 0), 0, 0, 0, 0)
            table.set(_PROBED, unrecorded.encode(layout))
            self._loaded.attach(_EXIT)
        if "inet_sock_set_state" in self._setup.events:
            self._loaded.attach(_OPTIONAL["inet_sock_set_state"])

    def alive(self) -> int:
        """Make a call that is left out, and count all such calls of ours so far.

        Returns:
            A number that grows with every call of this method by one of the recorder's processes
            while the program sees system calls.

        Raises:
            KcapError: The kernel refused.
        """
        os.getpriority(os.PRIO_PROCESS, 0)
        each = self._loaded.maps["alive"].get_each(0)
        return sum(int.from_bytes(value, "little") for value in each)

    def broken(self) -> list[str]:
        """See `Running`."""
        found = super().broken()
        if _EXIT in self._loaded.links and _EXIT not in found:
            before, self._calls = self._calls, self.alive()
            # None was ever counted where the kernel numbers our processes otherwise than we do.
            if self._calls == before > 0:
                found.append(_EXIT)
        return found

    def counts(self) -> npt.NDArray[np.void]:
        """What was kept, lost and filtered so far, by event number."""
        out = np.zeros(events.EVENTS, COUNT)
        each = np.frombuffer(self._count_values(), COUNT).reshape(events.EVENTS, -1)
        for name in COUNT.fields or ():
            out[name] = each[name].sum(axis=1)
        return out

    def _count_values(self) -> bytes:
        """The counters of all events in turn, of each for all processors."""
        table = self._loaded.maps["counts"]
        if not self._one_by_one:
            try:
                return b"".join(value for _, value in table.items())
            except KcapError:
                self._one_by_one = True  # before Linux 5.15 such a map can't be read at once
        return b"".join(table.get(number) or b"" for number in range(events.EVENTS))

    def victims(self) -> dict[tuple[int, int, int], int]:
        """How many events were lost so far, by cgroup, process and event number."""
        found = {}
        for key, value in self._loaded.maps["victims"].items():
            cgroup_id, pid, event = np.frombuffer(key, _VICTIM)[0].tolist()
            found[cgroup_id, pid, event] = int.from_bytes(value, "little")
        return found

    def passed_over(self) -> dict[str, int]:
        """How often each part did not run because it ran already on that processor, so far.

        Those that are detached by now count too: what was missed just before is asked for last.
        """
        return {
            name: misses
            for name in (*_FOLLOWED, *_OPTIONAL.values(), _ENTER, _EXIT)
            if name not in self.refused
            and (misses := self._loaded.info(name).recursion_misses or 0)
        }

    def peek(self, address: int) -> bytes | None:
        """A page of the kernel's own memory.

        Args:
            address: Where.

        Returns:
            4,096 bytes; None where they can't be read, or this kernel does not let us look.
        """
        if _PEEK in self._loaded.refused:
            return None
        try:
            failed = system.run_program(self._loaded.programs[_PEEK], struct.pack("=Q", address))
        except KcapError:
            return None
        return None if failed else self._loaded.maps["peeked"].get(0)

    def let_go(self) -> None:
        """Close all but the rings in a process that was forked and goes on without rights.

        So the program is out of the kernel as soon as the process with the rights is gone.
        """
        self._loaded.close(but=("rare", "hot"))

    def close(self) -> None:
        """Give everything back."""
        self.rare.close()
        self.hot.close()
        self._loaded.close()


def typed(types: Btf) -> int:
    """Whether programs on tracepoints may read what the running thread leads to without calls.

    Args:
        types: The kernel's.

    Returns:
        What the constant of that name is to be.
    """
    return int(_TYPED in types.enum("bpf_func_id"))


def controller_of(types: Btf) -> tuple[str | None, int]:
    """Which v1 hierarchy tells containers apart; none where version 2 is what is used.

    The id of a version 2 cgroup is of no use where all processes are in the root of that hierarchy.

    Args:
        types: The kernel's.

    Returns:
        Its controller, and the number of that for the kernel.
    """
    lines = _own_cgroups()
    if any(line.startswith("0::/") and line != "0::/" for line in lines):
        return None, offsets.NOWHERE
    used = {name for line in lines for name in line.split(":", 2)[1].split(",")}
    numbers = types.enum("cgroup_subsys_id") or {}
    for name in _CONTROLLERS:
        number = numbers.get(f"{name}_cgrp_id")
        if name in used and number is not None:
            return name, number
    return None, offsets.NOWHERE


def _own_cgroups() -> list[str]:
    try:
        return Path("/proc/self/cgroup").read_text("ascii", "replace").splitlines()
    except OSError:
        return []
