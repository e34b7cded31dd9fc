"""Makes BTF: types by the kernel's documentation, and the small BPF object the tests load."""

from __future__ import annotations

import shutil
import struct
import subprocess
from functools import cache
from pathlib import Path

import pytest

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = range(1, 11)
DATASEC, ENUM64 = 15, 19
SOURCE = Path(__file__).parent / "bpf" / "probe.bpf.c"


class Maker:
    """Puts types one behind the other; each method gives the number of its type."""

    def __init__(self) -> None:
        self.strings = b"\0"
        self.types = b""
        self.count = 0

    def text(self, name: str) -> int:
        """Where a name stands."""
        if not name:
            return 0
        at = self.strings.find(b"\0" + name.encode() + b"\0")
        if at < 0:
            at = len(self.strings) - 1
            self.strings += name.encode() + b"\0"
        return at + 1

    def add(
        self, kind: int, name: str = "", size: int = 0, *words: int, entries: int = 0, flag: int = 0
    ) -> int:
        """Any type: its head, then words."""
        info = entries | kind << 24 | flag << 31
        words = (self.text(name), info, size, *words)
        self.types += struct.pack(f"<{len(words)}I", *(word & 0xFFFFFFFF for word in words))
        self.count += 1
        return self.count

    def integer(self, name: str, size: int, *, signed: bool = False) -> int:
        """An integer type."""
        return self.add(INT, name, size, int(signed) << 24 | size * 8)

    def array(self, item: int, count: int) -> int:
        """An array."""
        return self.add(ARRAY, "", 0, item, item, count)

    def struct(
        self, name: str, size: int, *members: tuple[str, int, int], kind: int = STRUCT
    ) -> int:
        """A structure of (name, type, first bit)."""
        words = [word for text, of, bits in members for word in (self.text(text), of, bits)]
        return self.add(kind, name, size, *words, entries=len(members))

    def made(self) -> bytes:
        """The whole."""
        sizes = (0, len(self.types), len(self.types), len(self.strings))
        head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, *sizes)
        return head + self.types + self.strings


@cache
def probe() -> bytes:
    """The object of tests/bpf/probe.bpf.c; the test skips where no compiler makes it."""
    clang = shutil.which("clang")
    if clang is None:
        pytest.skip("clang is not installed; `make test` as root on Debian installs it")
    command = [clang, "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-c", str(SOURCE), "-o", "-"]
    return subprocess.run(command, check=True, capture_output=True).stdout
