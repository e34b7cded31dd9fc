"""The recorder's own processes are left out, and that they are tells that the program runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kcap.errors import KcapError, PrivilegeError
from kcap.readers.live.bpf.decode import layouts
from kcap.readers.live.bpf.events import events
from kcap.readers.live.bpf.program import KernelProgram, Setup
from kcap.readers.live.bpf.running import OWN

EVENT = "chroot"
"""A call that hardly anybody makes; recorded where it fails, too."""


@pytest.fixture
def program() -> Iterator[KernelProgram]:
    """The program, which records `EVENT`."""
    assert EVENT in events()
    try:
        loaded = KernelProgram(Setup([EVENT]), rare_bytes=1 << 16, hot_bytes=1 << 16)
    except (PrivilegeError, KcapError) as error:
        pytest.skip(f"no program in this kernel: {error}")
    try:
        yield loaded
    finally:
        loaded.close()


def test_nothing_is_alive_before_calls_are_attached_and_after(program: KernelProgram) -> None:
    """The counter grows by every call while the program sees them, and only then."""
    assert [program.alive(), program.alive()] == [0, 0]
    program.attach_calls(layouts(program.types).call)
    first = program.alive()
    assert first > 0
    assert program.alive() > first
    program.detach()
    last = program.alive()
    assert program.alive() == last


def test_what_runs_is_not_attached_again(program: KernelProgram) -> None:
    """Whoever may ask for it as often as it likes gets one attachment, and no event twice."""
    layout = layouts(program.types).call
    program.attach_calls(layout)
    held = len(list(Path("/proc/self/fd").iterdir()))
    grown = [-program.alive() + program.alive()]
    for _ in range(3):
        program.attach_calls(layout)
    assert len(list(Path("/proc/self/fd").iterdir())) == held
    grown.append(-program.alive() + program.alive())
    assert grown[0] == grown[1] > 0


def test_calls_of_others_do_not_keep_it_alive(program: KernelProgram) -> None:
    """Where we are none of its processes, neither our calls nor anybody's are counted."""
    program.own([])
    program.attach_calls(layouts(program.types).call)
    assert [program.alive(), program.alive()] == [0, 0]
    program.own([2**22 + 1, os.getpid()])
    assert program.alive() > 0


def test_calls_of_any_of_its_processes_are_left_out(program: KernelProgram) -> None:
    """A call of ours is recorded exactly when we are not among them."""
    number = events()[EVENT].number
    program.own([])
    program.attach_calls(layouts(program.types).call)

    def recorded() -> int:
        before = int(program.counts()["kept"][number])
        with contextlib.suppress(FileNotFoundError):
            os.chroot("/nowhere/at/all")
        return int(program.counts()["kept"][number]) - before

    assert recorded() >= 1
    others = [2**22 + n for n in range(1, OWN)]
    for place in range(OWN):
        program.own([*others[:place], os.getpid(), *others[place:]])
        assert recorded() == 0
    # Of more than there is room for the first are left out.
    program.own([os.getpid(), *others, 2**22])
    assert recorded() == 0
    program.own([*others, 2**22, os.getpid()])
    assert recorded() >= 1
