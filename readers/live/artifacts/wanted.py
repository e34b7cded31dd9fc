"""What artifacts a recording keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

REGULAR, PIPE, SOCKET, ELF = "regular", "pipe", "socket", "elf"
TYPES: Final = (REGULAR, PIPE, SOCKET, ELF)
"""Types of files that a filter names."""

STDIN, STDOUT, STDERR = "stdin", "stdout", "stderr"
FDS: Final = (STDIN, STDOUT, STDERR)
"""Descriptors that a filter names, by number."""

PATHS_MAX: Final = 3
PATH_CHARS: Final = 50
"""Prefixes of a kind, and their length, as Tracee takes them."""


@dataclass(frozen=True, slots=True)
class FileFilter:
    """Which files are kept: conditions of one sort are alternatives, all sorts must hold."""

    prefixes: tuple[str, ...] = ()
    """How paths begin; none for any."""
    types: frozenset[str] = frozenset()
    """Of `TYPES`; none for any."""
    fds: frozenset[int] = frozenset()
    """0 to 2: what passes through these descriptors; none for any."""

    @property
    def streams(self) -> bool:
        """Whether what passes through system calls is kept: of pipes, sockets, descriptors."""
        return bool(self.fds) or not self.types.isdisjoint({PIPE, SOCKET}) or self._any

    @property
    def files(self) -> bool:
        """Whether regular files are kept, whole, when they are closed."""
        return not self.fds and (not self.types.isdisjoint({REGULAR, ELF}) or not self.types)

    @property
    def _any(self) -> bool:
        return not (self.types or self.prefixes)


@dataclass(frozen=True, slots=True)
class Caps:
    """How much is kept at most; what is beyond is counted."""

    artifact_bytes: int = 64 << 20
    cgroup_bytes: int = 1 << 30
    capture_bytes: int = 4 << 30


@dataclass(frozen=True, slots=True)
class Network:
    """Which packets are kept, and how much of each."""

    payload_bytes: int = 96
    """Of what follows the header of layer 4; 0 for headers alone."""
    filtered: bool = False
    """Only of processes that the scope takes in: Tracee's ``pcap-options:filtered``."""
    split: frozenset[str] = frozenset({"single"})
    """How ``dir:`` gets them: ``single``, ``process``, ``container``, ``command``."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The artifacts of a recording."""

    exec: bool = False
    """Executed files, once for each content; the hash of each stands with every execution."""
    write: FileFilter | None = None
    read: FileFilter | None = None
    mem: bool = False
    """Memory that was writable and executable, and is made executable alone."""
    maps: bool = False
    """With it all readable memory of such a process."""
    module: bool = False
    bpf: bool = False
    network: Network | None = None
    caps: Caps = field(default_factory=Caps)
    hashes: frozenset[str] = frozenset()
    """Beside SHA-256: ``md5``, ``sha1``."""
    hash_only: bool = False
    """Only hashes: of executed files no bytes are kept."""

    @property
    def kernel(self) -> bool:
        """Whether a program in the kernel has to tell what is kept."""
        files = [each for each in (self.write, self.read) if each]
        return self.exec or self.mem or self.module or self.bpf or any(f.streams for f in files)

    @property
    def files(self) -> bool:
        """Whether files are watched as they are opened and closed."""
        kept = [each for each in (self.write, self.read) if each]
        return self.exec or any(each.files for each in kept)

    @property
    def anything(self) -> bool:
        """Whether there is anything to do."""
        return self.kernel or self.files or self.network is not None
