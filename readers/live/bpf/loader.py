"""Gives a BPF object to the kernel and attaches its programs.

What libbpf does with relocations against the types of the kernel is done here with constants: the
object reads each kernel structure at a place that stands in its ``.rodata``, and that is filled
with what the kernel says of itself before the programs are loaded.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from kcap.errors import KcapError, PrivilegeError
from kcap.readers.live.bpf import cgroup, mounts, offsets, system
from kcap.readers.live.bpf.btf import Btf
from kcap.readers.live.bpf.elf import ElfObject, MapDefinition, Program

RAW: Final = "raw_tp/"
"""Sections of programs on raw tracepoints: ``raw_tp/sched_process_exec``."""

TRACEPOINT: Final = "tp/"
"""Sections of programs on tracepoints with an id in tracefs: ``tp/sched/sched_switch``."""

CALLED: Final = "raw_tp/call_"
"""Sections of programs that others jump to; they are loaded, not attached."""

TRACEFS: Final = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
"""Where tracefs is mounted."""

_LOAD_IMMEDIATE: Final = 0x18
_PSEUDO_MAP, _PSEUDO_MAP_VALUE = 1, 2
_BATCH: Final = 1024
_ID_BYTES: Final = 32


class Map:
    """A map that the kernel holds. Keys and values are bytes, or integers of the map's sizes.

    Args:
        fd: Its descriptor.
        definition: Its sizes.
    """

    def __init__(self, fd: int, definition: MapDefinition) -> None:
        self.fd = fd
        self.definition = definition
        self.per_cpu = definition.type in system.PER_CPU
        """Whether it holds a value for each processor."""
        each = definition.value_size
        self._value_bytes = (each + 7 & ~7) * system.possible_cpus() if self.per_cpu else each

    def get(self, key: bytes | int) -> bytes | None:
        """The value of a key, of all processors together; None where there is no such key.

        Raises:
            KcapError: The kernel refused.
        """
        return system.lookup(self.fd, self._key(key), self._value_bytes)

    def get_each(self, key: bytes | int) -> list[bytes]:
        """The value of a key for each processor; none where there is no such key.

        Raises:
            KcapError: The kernel refused.
        """
        return self._split(self.get(key) or b"")

    def set(self, key: bytes | int, value: bytes | int) -> None:
        """Set the value of a key.

        Raises:
            KcapError: The kernel refused, for instance because the map is full.
        """
        if isinstance(value, int):
            value = value.to_bytes(self.definition.value_size, "little", signed=value < 0)
        system.update(self.fd, self._key(key), self._sized(value, self._value_bytes, "value"))

    def delete(self, key: bytes | int) -> bool:
        """Take a key out; whether it was there.

        Raises:
            KcapError: The kernel refused.
        """
        return system.delete(self.fd, self._key(key))

    def keys(self) -> Iterator[bytes]:
        """The keys, one call each; what is changed meanwhile may be left out.

        Raises:
            KcapError: The kernel refused.
        """
        key = system.next_key(self.fd, None, self.definition.key_size)
        for _ in range(self.definition.max_entries):  # a key that goes away begins it anew
            if key is None:
                return
            yield key
            key = system.next_key(self.fd, key, self.definition.key_size)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values, a thousand with each call (Linux 5.6); for each processor together.

        Raises:
            KcapError: The kernel refused.
        """
        size, value_size = self.definition.key_size, self._value_bytes
        count = min(_BATCH, self.definition.max_entries)
        for keys, values in system.lookup_batch(self.fd, size, value_size, count):
            for n in range(len(keys) // size):
                yield (
                    keys[n * size : (n + 1) * size],
                    values[n * value_size : (n + 1) * value_size],
                )

    def items_each(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """Keys, and their values for each processor.

        Raises:
            KcapError: The kernel refused.
        """
        for key, value in self.items():
            yield key, self._split(value)

    def _split(self, value: bytes) -> list[bytes]:
        size, step = self.definition.value_size, self.definition.value_size + 7 & ~7
        return [value[at : at + size] for at in range(0, len(value), step)]

    def _key(self, key: bytes | int) -> bytes:
        if isinstance(key, int):
            return key.to_bytes(self.definition.key_size, "little")
        return self._sized(key, self.definition.key_size, "key")

    def _sized(self, content: bytes, size: int, what: str) -> bytes:
        if len(content) != size:
            name = self.definition.name
            raise KcapError(f"a {what} of {len(content)} bytes for map {name}: it takes {size}")
        return content


class Loaded:
    """An object in the kernel: its maps and programs, until `close`. Made by `load`."""

    def __init__(self, content: ElfObject) -> None:
        self.object = content
        self.maps: dict[str, Map] = {}
        """Its maps, by name."""
        self.programs: dict[str, int] = {}
        """Descriptors of the loaded programs, by name."""
        self.links: dict[str, int] = {}
        """Descriptors of the attachments, by program."""
        self.unavailable: tuple[str, ...] = ()
        """Fields that this kernel does not have, like ``inode.i_ctime``."""
        self.refused: dict[str, str] = {}
        """Optional programs that the kernel did not take, and why."""
        self.group: int | None = None
        """Descriptor of the control group whose sockets programs on such are for."""
        self._optional: Collection[str] = ()
        self._frozen: dict[int, int] = {}
        self._closed = False

    def attach(self, program: str) -> int | None:
        """Run a program from now on; one that runs already does so once.

        Args:
            program: Its name; it was loaded.

        Returns:
            The descriptor of the attachment; None where an optional program was refused, now or
            when it was loaded.

        Raises:
            PrivilegeError: This user may not.
            KcapError: The kernel has no such tracepoint, or refused.
        """
        if program in self.refused:
            return None
        if program in self.links:
            return self.links[program]
        section = self.object.programs[program].section
        try:
            if section in cgroup.KINDS:
                link = self._attach_group(program, section)
            elif section.startswith(RAW):
                link = system.open_raw_tracepoint(section.removeprefix(RAW), self.programs[program])
            else:
                number = tracepoint_id(section.removeprefix(TRACEPOINT))
                link = system.attach_tracepoint(number, self.programs[program])
        except KcapError as error:
            if program not in self._optional:
                raise
            self.refused[program] = str(error)
            return None
        self.links[program] = link
        return link

    def _attach_group(self, program: str, section: str) -> int:
        if self.group is None:
            raise KcapError(f"no control group is given for BPF program {program}")
        kind = cgroup.KINDS[section]
        return cgroup.link(self.programs[program], self.group, kind.attach, section)

    def attach_all(self) -> None:
        """Attach every loaded program that is not one which others jump to.

        Raises:
            PrivilegeError: This user may not.
            KcapError: A required one was refused.
        """
        for name in self.programs:
            if not self.object.programs[name].section.startswith(CALLED):
                self.attach(name)

    def detach(self, program: str) -> None:
        """Run a program no longer; no harm where it isn't attached."""
        link = self.links.pop(program, None)
        if link is not None:
            os.close(link)

    def set_tail_call(self, map_name: str, index: int, program: str) -> None:
        """Let a place of a map of programs lead to one.

        Args:
            map_name: The map.
            index: The place in it.
            program: The program to jump to.

        Raises:
            KcapError: The kernel refused: they differ in kind, or the place is beyond the map.
        """
        self.maps[map_name].set(index, self.programs[program])

    def info(self, program: str) -> system.ProgramInfo:
        """What the kernel says about a program: its number, and how often it was passed over.

        Raises:
            KcapError: The kernel refused.
        """
        return system.program_info(self.programs[program])

    def close(self, *, but: Collection[str] = ()) -> None:
        """Detach everything and give all of it back, as far as it is this process's.

        Args:
            but: Maps whose descriptors stay open.
        """
        if self._closed:
            return
        self._closed = True
        maps = [held.fd for name, held in self.maps.items() if name not in but]
        for fd in (*self.links.values(), *self.programs.values(), *maps, *self._frozen.values()):
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _load(
        self,
        constants: Mapping[str, int],
        sizes: Mapping[str, int],
        programs: Collection[str],
        shared: Mapping[str, Map],
    ) -> None:
        used = {
            name for each in self.object.programs.values() for _, _, name, _ in each.relocations
        }
        for definition in self.object.maps.values():
            if definition.name not in used:
                continue  # a header's, of which this object needs something else
            if definition.name in shared:
                self._share(definition, shared[definition.name])
                continue
            sized = replace(
                definition, max_entries=sizes.get(definition.name, definition.max_entries)
            )
            fd = system.create_map(
                sized.name, sized.type, sized.key_size, sized.value_size, sized.max_entries,
                sized.map_flags,
            )  # fmt: skip
            self.maps[sized.name] = Map(fd, sized)
        for number, content in _filled(self.object, constants).items():
            size = len(content)
            flags = system.READ_ONLY_IN_PROGRAMS
            fd = system.create_map(".rodata", system.MAP_ARRAY, 4, size, 1, flags)
            self._frozen[number] = fd
            system.update(fd, bytes(4), content)
            system.freeze(fd)
        for name in programs:
            self._load_program(self.object.programs[name])

    def _load_program(self, program: Program) -> None:
        kind = _kind(program)
        try:
            self.programs[program.name] = system.load_program(
                program.name,
                kind.program,
                self._relocated(program),
                self.object.license,
                attach=kind.attach,
            )
        except KcapError as error:
            if program.name not in self._optional:
                raise
            self.refused[program.name] = str(error)

    def _share(self, definition: MapDefinition, held: Map) -> None:
        """Use a map that another object made, as long as either holds it."""
        theirs = held.definition
        sizes = (definition.type, definition.key_size, definition.value_size)
        if sizes != (theirs.type, theirs.key_size, theirs.value_size):
            raise KcapError(
                f"BPF map {definition.name} is another one than that of the same name",
                expected=f"type, sizes of key and value {sizes}",
            )
        self.maps[definition.name] = Map(os.dup(held.fd), theirs)

    def _relocated(self, program: Program) -> bytes:
        """The program with the descriptors of its maps in it."""
        code = bytearray(program.code)
        for at, section, map_name, offset in program.relocations:
            if code[at] != _LOAD_IMMEDIATE:
                raise KcapError(f"BPF program {program.name}: byte {at} loads no address")
            kind = _PSEUDO_MAP if map_name else _PSEUDO_MAP_VALUE
            fd = self.maps[map_name].fd if map_name else self._frozen[section]
            code[at + 1] = code[at + 1] & 0x0F | kind << 4
            struct.pack_into("<i", code, at + 4, fd)
            struct.pack_into("<i", code, at + 12, offset)
        return bytes(code)


def load(
    object_bytes: bytes,
    kernel_btf: Btf,
    *,
    constants: Mapping[str, int] | None = None,
    sizes: Mapping[str, int] | None = None,
    programs: Collection[str] | None = None,
    optional: Collection[str] = (),
    shared: Mapping[str, Map] | None = None,
    file: str = "BPF object",
) -> Loaded:
    """Give an object to the kernel; nothing runs before it is attached.

    Args:
        object_bytes: What the compiler made.
        kernel_btf: The types of the running kernel, for the places of its fields.
        constants: Values of other constants of the object, by name.
        sizes: Other numbers of entries for maps, by name.
        programs: Those to load; all if None.
        optional: Programs that may be refused; see `Loaded.refused`.
        shared: Maps of another object, by name: those that this one has too are the same ones then.
        file: The object's name, for errors.

    Returns:
        What the kernel holds. Close it.

    Raises:
        PrivilegeError: This user may not.
        KcapError: The object is damaged, or the kernel refused a required part of it.
    """
    content = ElfObject(object_bytes, file=file)
    found = offsets.resolve(content.variables, kernel_btf)
    wanted = content.programs.keys() if programs is None else programs
    _check_names("constant", constants or (), content.variables, file)
    _check_names("map", sizes or (), content.maps, file)
    _check_names("program", wanted, content.programs, file)
    loaded = Loaded(content)
    loaded.unavailable = found.unavailable
    loaded._optional = frozenset(optional)  # noqa: SLF001
    try:
        loaded._load({**found.constants, **(constants or {})}, sizes or {}, wanted, shared or {})  # noqa: SLF001
    except BaseException:
        loaded.close()
        raise
    return loaded


def tracepoint_id(name: str) -> int:
    """The number of a tracepoint, as perf_event_open(2) takes it.

    Args:
        name: Group and name, like ``sched/sched_process_exec``.

    Returns:
        The number.

    Raises:
        PrivilegeError: This user may not read tracefs.
        KcapError: It is not mounted, or there is no such one.
    """
    for folder in TRACEFS:
        path = Path(folder, "events", name, "id")
        try:
            return int(path.read_text("ascii"))
        except FileNotFoundError:
            continue
        except PermissionError as error:
            raise PrivilegeError(
                f"the number of tracepoint {name} cannot be read",
                file=str(path),
                expected="root, who alone may read tracefs",
            ) from error
        except (OSError, ValueError) as error:
            raise KcapError(f"no number of tracepoint {name}: {error}", file=str(path)) from error
    return _unmounted_id(name)


def _unmounted_id(name: str) -> int:
    """The same where tracefs is mounted nowhere, as in many a container host."""
    try:
        folder = mounts.detached("tracefs")
        try:
            path = f"events/{name}/id"
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
        with os.fdopen(file, "rb") as opened:
            return int(opened.read(_ID_BYTES))
    except (KcapError, OSError, ValueError) as error:
        raise KcapError(
            f"no tracepoint {name} in tracefs",
            expected=f"tracefs mounted at {TRACEFS[0]}, and a kernel with this tracepoint",
        ) from error


def _kind(program: Program) -> cgroup.Kind:
    """What a program is, by the name of its section."""
    if program.section in cgroup.KINDS:
        return cgroup.KINDS[program.section]
    if program.section.startswith(RAW):
        return cgroup.Kind(system.RAW_TRACEPOINT, 0)
    if program.section.startswith(TRACEPOINT):
        return cgroup.Kind(system.TRACEPOINT, 0)
    raise KcapError(
        f"BPF program {program.name} is for {program.section}",
        expected=f"a section {RAW}…, {TRACEPOINT}… or one of {', '.join(cgroup.KINDS)}",
    )


def _check_names(what: str, given: Collection[str], known: Collection[str], file: str) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise KcapError(f"no {what} {', '.join(unknown)} in the BPF object", file=file)


def _filled(content: ElfObject, constants: Mapping[str, int]) -> dict[int, bytes]:
    """The sections of constants with values in them."""
    sections = {number: bytearray(body) for number, body in content.constants.items()}
    for name, value in constants.items():
        section, at, size = content.variables[name]
        try:
            sections[section][at : at + size] = value.to_bytes(size, "little", signed=value < 0)
        except OverflowError:
            raise KcapError(f"{value} is too large for constant {name} of {size} bytes") from None
    return {number: bytes(body) for number, body in sections.items() if body}
