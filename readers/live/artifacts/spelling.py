"""How artifacts are asked for: kcap's words, and those of all releases of Tracee.

Items are given one by one or in lists with commas, in any order; a value that is a list goes on
until the next item. Tracee's newest spellings (``file-write.filters=path=/tmp/*``) mean what its
older ones mean (``write:path=/tmp/*``), of which ``write=/tmp/*`` is the shortest.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, NoReturn

from kcap.readers.live.artifacts.wanted import (
    FDS,
    PATH_CHARS,
    PATHS_MAX,
    TYPES,
    Caps,
    FileFilter,
    Network,
    Wanted,
)
from kcap.readers.live.choosing import ChoiceError

PAYLOAD_MAX: Final = 65_535
"""Bytes behind the headers of a packet: it has no more."""

SPLITS: Final = ("single", "process", "container", "command")
HASHES: Final = ("md5", "sha1", "sha256")
CHARS_MAX: Final = 65_536
"""Of everything that is asked for."""

LISTING: Final = (
    ("exec", "executed files, each content once; exec:hash keeps their hashes alone"),
    ("write=/tmp/*", "files that were written, whole; write: all of them"),
    ("read=/etc/*", "files that were read, whole; read: all of them"),
    ("write:type=TYPE", f"{', '.join(TYPES)}; pipes and sockets: what passes through"),
    ("read:fd=FD", f"{', '.join(FDS)}: what passes through; for write, too"),
    ("mem", "memory that was writable and is made executable; mem:maps: all that it has"),
    ("module", "kernel modules that are loaded"),
    ("bpf", "BPF programs that are loaded"),
    ("network", "packets, with the process that they are of; also net, pcap"),
    ("pcap-snaplen:SIZE", "bytes behind their headers: default (96), headers, max, 256b, 16kb"),
    ("pcap-options:filtered", "only packets of what --scope and --events ask for"),
    ("pcap:LIST", f"how dir:DIR gets them: {', '.join(SPLITS)}"),
    ("dir:DIR", "lay everything out below DIR/out at the end, as Tracee does"),
    ("clear-dir", "remove DIR/out before"),
    ("hash=md5,sha1", "hashes beside SHA-256"),
    ("max=64M", "what is kept of one artifact; max-cgroup=1G of those of a control group,"),
    ("max-capture=4G", "of all"),
)
"""What there is, and what it means."""

_ALIASES: Final = {
    "bpf-programs": "bpf",
    "executable": "exec",
    "file-read": "read",
    "file-write": "write",
    "kernel-modules": "module",
    "memory-regions": "mem",
    "net": "network",
}
_DOTTED: Final = {
    "dir.clear": "clear-dir",
    "dir.path": "dir",
    "network.pcap.options": "pcap-options",
    "network.pcap.snaplen": "pcap-snaplen",
    "network.pcap.split": "pcap",
}
"""What newer releases of Tracee call older options."""

_KNOWN: Final = (
    *("exec", "write", "read", "mem", "module", "bpf", "network", "pcap", "profile"),
    *("pcap-options", "pcap-snaplen", "dir", "clear-dir", "hash"),
    *("max", "max-cgroup", "max-capture"),
)
_NAMES: Final = frozenset({*_KNOWN, *_ALIASES, *_DOTTED, "artifact"})
_NETWORK: Final = Network()
_HEAD: Final = re.compile(r"[a-z][a-z-]*(?:\.[a-z]+)*")
_SIZE: Final = re.compile(r"(\d{1,15})([KMGT]?)(?:i?B)?", re.IGNORECASE)
_PAYLOAD: Final = re.compile(r"(\d{1,9})(b|kb?)", re.IGNORECASE)


class SpellingError(ChoiceError):
    """Artifacts are asked for in words that can't be understood."""


class Asked(NamedTuple):
    """What was asked for."""

    wanted: Wanted
    folder: str | None = None
    """Where all is laid out at the end; None for nowhere."""
    clear: bool = False
    """What an earlier recording left there goes before."""
    notes: tuple[str, ...] = ()
    """What the user should be told."""


def read(texts: Iterable[str]) -> Asked:
    """Understand what is asked for.

    Args:
        texts: Items, or lists of them with commas.

    Returns:
        What is wanted.

    Raises:
        SpellingError: An item can't be understood; what is like it is the hint.
    """
    said = _Said()
    given = list(texts)
    if sum(map(len, given)) > CHARS_MAX:
        raise SpellingError(f"more than {CHARS_MAX:,} characters say which artifacts are wanted")
    for text in given:
        for item in _items(text):
            said.take(item)
    return said.asked()


def _items(text: str) -> Iterator[str]:
    """The items of a list: what begins like none belongs to the one before it."""
    current: str | None = None
    for piece in text.split(","):
        begins = _HEAD.match(piece.strip())
        if current is None or (begins is not None and _is_name(piece.strip(), begins.end())):
            if current is not None:
                yield current
            current = piece.strip()
        else:
            current += f",{piece}"
    if current is not None:
        yield current.rstrip()


def _is_name(piece: str, end: int) -> bool:
    """Whether a name stands there, and ends there."""
    name = piece[:end].removesuffix(".filters")
    return name in _NAMES and (end == len(piece) or piece[end] in "=:")


def _sort(name: str, rest: str) -> tuple[str, str]:
    """Split ``=path=/tmp/*`` or ``:path=/tmp/*`` into a sort of filter and its value."""
    text = rest[1:]
    sort, equals, value = text.partition("=")
    if equals and sort in ("path", "type", "fd"):
        return sort, value
    if rest.startswith(":") or (equals and re.fullmatch(r"[a-z]+", sort)):
        _refuse(f"{name}{rest}", sort, ("path", "type", "fd"), f"{name}:path=/tmp/*")
    return "path", text


@dataclass
class _Files:
    """The filter of a kind of files."""

    prefixes: list[str] = field(default_factory=list)
    types: set[str] = field(default_factory=set)
    fds: set[int] = field(default_factory=set)

    def take(self, name: str, rest: str) -> None:
        """Read a condition."""
        if not rest:
            return
        sort, value = _sort(name, rest)
        if sort == "path":
            self._path(name, value)
        elif sort == "type":
            for each in value.split(","):
                if each not in TYPES:
                    _refuse(f"{name}:type={each}", each, TYPES)
                self.types.add(each)
        else:
            for each in value.split(","):
                number = str(FDS.index(each)) if each in FDS else each
                if number not in ("0", "1", "2"):
                    _refuse(f"{name}:fd={each}", each, FDS)
                self.fds.add(int(number))

    def _path(self, name: str, value: str) -> None:
        """A path with a star at its end; several of them stand one after another."""
        for each in re.split(r",(?=/)", value):
            if not each.endswith("*") or not (each.startswith("/") or each == "*"):
                better = f"{name}=/{each.strip('/*')}/*" if each.strip("/*") else f"{name}=/tmp/*"
                raise SpellingError(
                    f"artifacts {name}={each}: this is no beginning of paths",
                    expected="an absolute path with a * at its end",
                    hint=f"'{better}'",
                )
            prefix = each[:-1] or "/"
            if len(prefix) > PATH_CHARS:
                raise SpellingError(
                    f"artifacts {name}={each}: more than {PATH_CHARS} characters",
                    hint="give a shorter beginning; 'kcap artifacts' chooses among what was kept",
                )
            if prefix not in self.prefixes:
                self.prefixes.append(prefix)
        if len(self.prefixes) > PATHS_MAX:
            raise SpellingError(
                f"artifacts {name}: more than {PATHS_MAX} paths",
                hint="give a beginning that they share",
            )

    def filter(self) -> FileFilter:
        """What was read."""
        return FileFilter(tuple(self.prefixes), frozenset(self.types), frozenset(self.fds))


@dataclass
class _Said:
    """What has been read so far."""

    plain: set[str] = field(default_factory=set)
    """``exec``, ``exec:hash``, ``mem``, ``mem:maps``, ``module``, ``bpf``, ``network``."""
    files: dict[str, _Files] = field(default_factory=dict)
    splits: set[str] = field(default_factory=set)
    payload: int | None = None
    filtered: bool = False
    hashes: set[str] = field(default_factory=set)
    caps: dict[str, int] = field(default_factory=dict)
    folder: str | None = None
    clear: bool = False
    notes: list[str] = field(default_factory=list)

    def take(self, item: str) -> None:
        """Read an item."""
        item = item.removeprefix("artifact:")
        head = _HEAD.match(item)
        name, rest = (head[0], item[head.end() :]) if head else (item, "")
        if name in _DOTTED:
            name, rest = _DOTTED[name], re.sub("^=", ":", rest)
        elif name.endswith(".filters"):
            name, rest = name.removesuffix(".filters"), re.sub("^=", ":", rest)
        name = _ALIASES.get(name, name)
        if rest == "=true":
            rest = ""
        if name not in _KNOWN or rest.startswith((",", " ")):
            word = rest[1:].partition(",")[0] if name in _KNOWN else name
            _refuse(item, word, sorted(_NAMES - {"artifact"}), "exec,write=/tmp/*,mem")
        _READ[name](self, name, rest)

    def kind(self, name: str, rest: str) -> None:
        """A kind that has one variant, or none."""
        variants = {"exec": ("hash",), "mem": ("maps",)}.get(name, ())
        if rest and rest[1:] not in variants:
            near = " or ".join([name, *(f"{name}:{v}" for v in variants)])
            raise SpellingError(f"artifacts {name}{rest}: no such thing", hint=f"'{near}'")
        self.plain.add(f"{name}:{rest[1:]}" if rest else name)

    def file(self, name: str, rest: str) -> None:
        """Files or streams."""
        self.files.setdefault(name, _Files()).take(name, rest)

    def network(self, name: str, rest: str) -> None:
        """Packets; how they are split stands behind ``pcap:``."""
        self.plain.add("network")
        if not rest:
            return
        if name == "network":
            self.notes.append(
                f"net{rest}: packets of all interfaces are kept; each says which one it took"
            )
            return
        for each in rest[1:].split(","):
            if each not in SPLITS:
                _refuse(f"pcap:{each}", each, SPLITS)
            self.splits.add(each)

    def options(self, _name: str, rest: str) -> None:
        """Which packets."""
        if rest[1:] not in ("none", "filtered"):
            _refuse(f"pcap-options{rest}", rest[1:], ("none", "filtered"))
        self.plain.add("network")
        self.filtered |= rest[1:] == "filtered"

    def snaplen(self, _name: str, rest: str) -> None:
        """How much of each packet."""
        sizes = {"default": _NETWORK.payload_bytes, "headers": 0, "max": PAYLOAD_MAX}
        size = sizes.get(rest[1:])
        if size is None:
            found = _PAYLOAD.fullmatch(rest[1:])
            if found is None:
                _refuse(f"pcap-snaplen{rest}", rest[1:], (*sizes, "256b", "16kb"), "256b")
            size = int(found[1]) << (10 if found[2][0] in "kK" else 0)
        self.plain.add("network")
        self.payload = min(size, PAYLOAD_MAX)

    def hash(self, name: str, rest: str) -> None:
        """Further hashes."""
        for each in rest[1:].split(","):
            if each not in HASHES:
                _refuse(f"{name}{rest}", each, HASHES)
            self.hashes.add(each)

    def cap(self, name: str, rest: str) -> None:
        """What is kept at most."""
        found = _SIZE.fullmatch(rest[1:])
        if found is None or not int(found[1]):
            raise SpellingError(f"artifacts {name}{rest}: this is no size", hint=f"'{name}=64M'")
        self.caps[name] = int(found[1]) << 10 * " KMGT".index(found[2].upper() or " ")

    def place(self, name: str, rest: str) -> None:
        """Where all is laid out at the end, and whether it is cleared before."""
        if name == "clear-dir":
            self.clear = True
            return
        if not rest[1:]:
            raise SpellingError("artifacts dir: which one?", hint="'dir:/var/tmp/artifacts'")
        if self.folder is not None and self.folder != rest[1:]:
            raise SpellingError(f"artifacts dir: {self.folder} or {rest[1:]}?", hint="give one")
        self.folder = rest[1:]

    def profile(self, _name: str, _rest: str) -> None:
        """Tracee's count of what is executed, with its hash."""
        self.plain.add("exec:hash")
        self.notes.append("profile: each execution has the hash of its file, and none is kept")

    def asked(self) -> Asked:
        """All that was read."""
        network = None
        if "network" in self.plain:
            split = frozenset(self.splits) if self.splits else _NETWORK.split
            payload = _NETWORK.payload_bytes if self.payload is None else self.payload
            network = Network(payload, self.filtered, split)
        files = {name: each.filter() for name, each in self.files.items()}
        wanted = Wanted(
            exec=not self.plain.isdisjoint({"exec", "exec:hash"}),
            write=files.get("write"),
            read=files.get("read"),
            mem=not self.plain.isdisjoint({"mem", "mem:maps"}),
            maps="mem:maps" in self.plain,
            module="module" in self.plain,
            bpf="bpf" in self.plain,
            network=network,
            caps=self._caps(),
            hashes=frozenset(self.hashes - {"sha256"}),
            hash_only="exec:hash" in self.plain and "exec" not in self.plain,
        )
        if not wanted.anything and (self.folder or self.caps or self.hashes or self.clear):
            raise SpellingError("artifacts: which ones?", hint="'exec,write=/tmp/*,mem'")
        notes = list(dict.fromkeys(self.notes))
        if self.clear and self.folder is None:
            notes.append("clear-dir: there is no dir:DIR to clear; artifacts are in the capture")
        return Asked(wanted, self.folder, self.clear, tuple(notes))

    def _caps(self) -> Caps:
        own = Caps()
        return Caps(
            self.caps.get("max", own.artifact_bytes),
            self.caps.get("max-cgroup", own.cgroup_bytes),
            self.caps.get("max-capture", own.capture_bytes),
        )


_READ: Final[dict[str, Callable[[_Said, str, str], None]]] = {
    **dict.fromkeys(("exec", "mem", "module", "bpf"), _Said.kind),
    **dict.fromkeys(("write", "read"), _Said.file),
    **dict.fromkeys(("network", "pcap"), _Said.network),
    **dict.fromkeys(("max", "max-cgroup", "max-capture"), _Said.cap),
    **dict.fromkeys(("dir", "clear-dir"), _Said.place),
    "hash": _Said.hash,
    "pcap-options": _Said.options,
    "pcap-snaplen": _Said.snaplen,
    "profile": _Said.profile,
}


def _refuse(item: str, word: str, known: Sequence[str], better: str | None = None) -> NoReturn:
    """Say what can't be understood, and what is like it."""
    near = difflib.get_close_matches(word, known, n=1)
    hint = near[0] if near else better or " or ".join(known)
    raise SpellingError(
        f"artifacts {item}: what is {word!r}?" if word else f"artifacts {item}: a word is missing",
        expected=f"one of {', '.join(known)}",
        hint=f"'{hint}'; --list-artifacts shows what there is",
    )
