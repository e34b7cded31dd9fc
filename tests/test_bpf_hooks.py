"""Redirected system calls are found in the kernel's table; what nobody can see is not clean."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from kcap.errors import KcapError, PrivilegeError
from kcap.readers.live.bpf import events
from kcap.readers.live.bpf.hooks import Hook, Symbols, hooks, symbols
from kcap.readers.live.bpf.program import KernelProgram, Setup

BASE = 0xFFFF_FFFF_8100_0000
KNOWN = Symbols(BASE + 0x2000_0000, BASE, BASE + 0x100_0000)
MODULE = 0xFFFF_FFFF_C000_0000


def page(*entries: int) -> bytes:
    """A table, and what happens to stand behind it."""
    return struct.pack(f"<{len(entries) + 1}Q", *entries, 7).ljust(4096, b"\0")


def test_a_clean_table_has_no_hooks(tmp_path: Path) -> None:
    """Entries into the kernel's own code are as they should be."""
    clean = page(BASE, BASE + 0x1000, BASE + 0xFF_FFFF)
    assert hooks(lambda _: clean, KNOWN, str(tmp_path / "none")) == []


def test_hooks_are_found_with_the_module_that_they_lead_into(tmp_path: Path) -> None:
    """One entry into a module, one into nothing that has a name."""
    modules = tmp_path / "modules"
    modules.write_text(f"rootkit 16384 0 - Live {MODULE:#x} (OE)\n")
    bad = page(BASE, MODULE + 0x10, BASE, MODULE + 0x8000_0)
    found = hooks(lambda _: bad, KNOWN, str(modules))
    assert found == [Hook(1, MODULE + 0x10, "rootkit"), Hook(3, MODULE + 0x8000_0, None)]


def test_a_table_that_can_not_be_read_is_not_clean() -> None:
    """Nothing is claimed about what nobody saw."""
    assert hooks(lambda _: None, KNOWN) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{BASE:x} T _stext\n{BASE + 1:x} T _etext\n",
        "0000000000000000 T _stext\n0000000000000000 T _etext\n0000000000000000 D sys_call_table\n",
        "no symbols",
    ],
)
def test_a_kernel_that_does_not_tell(tmp_path: Path, text: str) -> None:
    """Missing symbols, and those that are hidden as zeros, are no layout."""
    path = tmp_path / "kallsyms"
    path.write_text(text)
    assert symbols(str(path)) is None


def test_the_layout_is_read(tmp_path: Path) -> None:
    """The three symbols, among others."""
    path = tmp_path / "kallsyms"
    names = {"_stext": KNOWN.start, "_etext": KNOWN.end, "sys_call_table": KNOWN.table, "x": 1}
    path.write_text(
        "".join(f"{at:016x} T {name}\t[mod]\n"[:-7] + "\n" for name, at in names.items())
    )
    assert symbols(str(path)) == KNOWN


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_the_kernel_is_looked_at() -> None:
    """Kernel memory comes as it is: code does not change; an address of nothing gives nothing."""
    addresses = {
        name: int(at, 16)
        for at, _, name, *_ in map(str.split, Path("/proc/kallsyms").read_text().splitlines())
        if name in {"_stext", "vfs_read"}
    }
    try:
        program = KernelProgram(Setup(events.sets()["default"]))
    except (PrivilegeError, KcapError) as error:
        pytest.skip(f"no BPF here: {error}")
    try:
        first = program.peek(addresses["_stext"])
        assert first is not None
        assert any(first)
        assert program.peek(addresses["_stext"]) == first
        assert program.peek(addresses["vfs_read"]) != first
        assert program.peek(0x10) is None
    finally:
        program.close()
