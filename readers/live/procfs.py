"""What /proc tells of processes: the seed of the process table, and the image after an exec.

A process can end, or execute something else, between an event and the look at /proc. That is
normal: what is gone is None, and values read here carry the provenance ``procfs``. Who watches a
hostile host gives a `Prober`: then a read that hangs is given up, and what it was to bring has the
provenance ``timeout``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from kcap.model import text
from kcap.model.batch import Batch
from kcap.model.side import Loss
from kcap.readers.live.probe import LATE, Item, Op, Prober, Request
from kcap.readers.live.probe.client import GONE, Answer
from kcap.readers.live.probe.folders import Folder, OpenFolder, ProbedFolder, plain
from kcap.readers.live.probe.reader import group_path
from kcap.readers.live.probe.troubles import Troubles, Who
from kcap.readers.live.probe.wire import CONTENT_BYTES, NOBODY
from kcap.state import Process, containers, process_key
from kcap.state.processes import FACTS, PASSWD, PROCFS, TIMEOUT, to_batch

_PIDS: Final = 1 << 31

_UID: Final = re.compile(rb"^Uid:\t(\d+)", re.MULTILINE)
_GID: Final = re.compile(rb"^Gid:\t(\d+)", re.MULTILINE)

# Fields of /proc/PID/stat behind the name, counted from the state (proc_pid_stat(5)).
_STAT_PPID: Final = 1
_STAT_SESSION: Final = 3
_STAT_THREADS: Final = 17
_STAT_START: Final = 19
_STAT_ARGUMENTS: Final = slice(45, 47)


class Image(NamedTuple):
    """A process as /proc shows it at one moment."""

    pid: int
    ppid: int
    session: int
    start_ns: int
    """Since boot, in steps of a clock tick (10 ms)."""
    name: str | bytes
    exe: str | bytes | None
    argv: list[str] | None
    """Bytes that are no UTF-8 stand as lone surrogates (PEP 383), so that nothing is lost."""
    cmdline: str | bytes | None
    cwd: str | bytes | None
    uid: int | None
    gid: int | None
    user: str | None
    container_id: str | None
    late: frozenset[str] = frozenset()
    """Files whose reading hung, and was given up."""


STAT: Final = Item(Op.CONTENT, "stat")
STATUS: Final = Item(Op.CONTENT, "status")
CGROUP: Final = Item(Op.CONTENT, "cgroup")
_CWD: Final = Item(Op.LINK, "cwd")

IMAGE: Final = (STAT, Item(Op.CONTENT, "cmdline"), Item(Op.LINK, "exe"), STATUS, CGROUP)
"""What an `Image` is made of; first what is gone first, where the process ends."""

_COMM: Final = Item(Op.CONTENT, "comm")


class ProcFS:
    """Reads processes out of a proc file system.

    Args:
        root: Where it is mounted.
        users: The file that names users.
        prober: Who reads; None for this process itself, which hangs where a read does.
    """

    def __init__(
        self, root: str = "/proc", users: str = "/etc/passwd", *, prober: Prober | None = None
    ) -> None:
        self.root = root
        """Where it is mounted."""
        self.prober = prober
        """Who reads."""
        self._passwd = Path(users)
        self._tick_ns = 10**9 // os.sysconf("SC_CLK_TCK")
        self._users: dict[int, str] = {}
        self._users_mtime_ns = -1
        self._troubles = Troubles()

    @classmethod
    def probed(cls) -> ProcFS:
        """This host's processes, read so that nobody can make us wait.

        To be made before any thread, while this process may read what all processes have.

        Returns:
            A proc file system that is to be closed.
        """
        return cls(prober=Prober())

    def rest(self) -> None:
        """End who reads for this process, until it asks for something again."""
        if self.prober is not None:
            self.prober.rest()

    def close(self) -> None:
        """End those who read."""
        if self.prober is not None:
            self.prober.close()

    def image(
        self, pid: int, *, cwd: bool = False, started_by_ns: int | None = None
    ) -> Image | None:
        """Look at one process.

        Args:
            pid: Its id.
            cwd: Read the working directory too.
            started_by_ns: Time since boot that the process must have started at; a younger one
                has the same pid but is another process.

        Returns:
            What could be read, None where the process is gone or another one.
        """
        with self.folder(pid, (*IMAGE, _CWD) if cwd else IMAGE) as folder:
            if folder is None:
                return None
            return self.image_in(folder, pid, cwd=cwd, started_by_ns=started_by_ns)

    def image_soon(
        self, pid: int, *, started_by_ns: int | None = None
    ) -> Callable[[], Image | None]:
        """Begin to look at one process; a prober does it while the caller goes on.

        Args:
            pid: Its id.
            started_by_ns: See `image`.

        Returns:
            What waits for the image, and returns it.
        """
        if self.prober is None:
            found = self.image(pid, started_by_ns=started_by_ns)
            return lambda: found
        prober, asked = self.prober, self.prober.send(_request(pid, IMAGE))

        def wait() -> Image | None:
            folder = self._probed(prober, prober.wait(asked))
            if folder is None:
                return None
            return self.image_in(folder, pid, started_by_ns=started_by_ns)

        return wait

    @contextlib.contextmanager
    def folder(self, pid: int, wanted: Sequence[Item] = (STAT,)) -> Iterator[Folder | None]:
        """The folder of a process, as long as it is needed.

        Args:
            pid: The process.
            wanted: What will be asked of it: a prober reads that at once.

        Yields:
            The folder, which belongs to the process and not to its pid: what is read of it is
            never another's. None where the process is gone.
        """
        if self.prober is not None:
            yield self._probed(self.prober, self.prober.read(_request(pid, wanted)))
            return
        try:
            descriptor = os.open(f"{self.root}/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            yield None
            return
        try:
            yield OpenFolder(descriptor)
        finally:
            os.close(descriptor)

    def folders(
        self, pids: Iterable[int], wanted: Sequence[Item] = (STAT,)
    ) -> Iterator[tuple[int, Folder]]:
        """The folders of many processes.

        Args:
            pids: The processes.
            wanted: What will be asked of each.

        Yields:
            The id and the folder of each process that is there, in order; it is to be used before
            the next one is asked for.
        """
        if self.prober is None:
            for pid in pids:
                with self.folder(pid) as opened:
                    if opened is not None:
                        yield pid, opened
            return
        for answer in self.prober.reads(_request(pid, wanted) for pid in pids):
            probed = self._probed(self.prober, answer)
            if probed is not None:
                yield answer.pid, probed

    def _probed(self, prober: Prober, answer: Answer) -> Folder | None:
        for name, found in answer.found.items():
            if found == LATE:
                self._troubles.was_late(_who(answer.pid, answer.found.get("stat")), name)
        if answer.error == GONE:
            self._troubles.nobody_reads()
        return None if answer.error else ProbedFolder(prober, answer)

    @property
    def late(self) -> int:
        """Reads that hung, or were left out as one of that process had hung before."""
        return self._troubles.late

    def losses(self, source: str) -> list[Loss]:
        """What could not be read since the last time, though it is there.

        Args:
            source: Id of the source.

        Returns:
            A loss for each process, within limits; once one where who reads for us has ended.
        """
        over = self.prober is not None and self.prober.ended
        return self._troubles.losses(source, over=over)

    def name(self, pid: int) -> str | None:
        """What a process is called now.

        Args:
            pid: The process.

        Returns:
            Its name; None where it is gone.
        """
        with self.folder(pid, (STAT, _COMM)) as folder:
            found = None if folder is None else folder.content("comm")
        return text.clean(found.removesuffix(b"\n"))[0] if found else None

    def group_path(self, number: int, controllers: str, mounted: tuple[int, str]) -> str | None:
        """The path of a control group by its id.

        Args:
            number: The id.
            controllers: Those of its hierarchy, as they are mounted.
            mounted: Descriptor of where the hierarchy is mounted, and the path of that.

        Returns:
            The path within the hierarchy; None where the group is gone or not to be found.
        """
        if self.prober is not None:
            name = f"{number}:{controllers}"
            found = self.prober.read(Request(NOBODY, (Item(Op.CGROUP, name),))).found.get(name)
            return os.fsdecode(found) if isinstance(found, bytes) else None
        try:
            return os.fsdecode(group_path(*mounted, number))
        except OSError:
            return None

    def image_in(
        self, folder: Folder, pid: int, *, cwd: bool = False, started_by_ns: int | None = None
    ) -> Image | None:
        """Look at the process that a folder belongs to.

        Args:
            folder: Its folder.
            pid: Its id.
            cwd: See `image`.
            started_by_ns: See `image`.

        Returns:
            See `image`.
        """
        stat = folder.content("stat")
        if stat is None:
            return None
        # The name stands in parentheses and may hold any byte, parentheses and spaces too.
        opening, closing = stat.find(b"("), stat.rfind(b")")
        fields = stat[closing + 2 :].split()
        if opening < 0 or len(fields) <= _STAT_START:
            return None
        if fields[_STAT_THREADS] == b"0":
            return None  # reaped while it was looked at: parent and session read 0 and -1
        start_ns = int(fields[_STAT_START]) * self._tick_ns
        if started_by_ns is not None and start_ns > started_by_ns:
            return None
        arguments = folder.content("cmdline")
        if not folder.late:
            self._look_for_hidden(folder, pid, fields, len(arguments or b""))
        status = folder.content("status") or b""
        uid, gid = _number(_UID, status), _number(_GID, status)
        return Image(
            pid=pid,
            ppid=int(fields[_STAT_PPID]),
            session=int(fields[_STAT_SESSION]),
            start_ns=start_ns,
            name=plain(stat[opening + 1 : closing]),
            exe=folder.link("exe"),
            argv=_argv(arguments),
            cmdline=_cmdline(arguments),
            cwd=folder.link("cwd") if cwd else None,
            uid=uid,
            gid=gid,
            user=None if uid is None else self.user(uid),
            container_id=container_id(folder.content("cgroup") or b""),
            late=frozenset(folder.late),
        )

    def _look_for_hidden(
        self, folder: Folder, pid: int, fields: Sequence[bytes], count: int
    ) -> None:
        """Note where arguments end early: a page of them gives an error to all but its owner.

        Where they are stands in the process's stat; it may have executed something since.
        """
        places = fields[_STAT_ARGUMENTS]
        if len(places) == 2 and count < (size := int(places[1]) - int(places[0])):  # noqa: PLR2004
            after = folder.fresh("stat") or b""
            if after[after.rfind(b")") + 2 :].split()[_STAT_ARGUMENTS] == places:
                self._troubles.has_hidden(_who(pid, after), size - count)

    def images(self) -> Iterator[Image]:
        """Look at all processes, in order of pid.

        Yields:
            Those that were still there.
        """
        for pid, folder in self.folders(self.pids(), (_CWD, *IMAGE)):
            image = self.image_in(folder, pid, cwd=True)
            if image is not None:
                yield image

    def pids(self) -> list[int]:
        """The ids of all processes, ascending."""
        return sorted(int(name) for name in os.listdir(self.root) if name.isdigit())  # noqa: PTH208

    def user(self, uid: int) -> str | None:
        """The name of a user.

        Read from the passwd file alone: a name service may ask the network, and a recorder must
        not wait for it.

        Args:
            uid: The user's number.

        Returns:
            The name, None where the file has none.
        """
        if uid not in self._users:
            self._read_users()
        return self._users.get(uid)

    def users(self) -> dict[int, str]:
        """The names of all users that the passwd file has, by number."""
        self._read_users()
        return dict(self._users)

    def _read_users(self) -> None:
        """Read the passwd file, if it is another one than last time."""
        try:
            mtime_ns = self._passwd.stat().st_mtime_ns
            if mtime_ns == self._users_mtime_ns:
                return
            with self._passwd.open("rb") as file:
                lines = file.read(CONTENT_BYTES).splitlines()
        except OSError:
            return  # a container image without users; numbers are kept anyway
        self._users_mtime_ns = mtime_ns
        for line in reversed(lines):  # the first entry of a number is the one that counts
            name, _, rest = line.partition(b":")
            number = rest.split(b":")[1:2]
            if number and number[0].isdigit():
                self._users[int(number[0])] = text.clean(name)[0]


def table(images: list[Image], machine: str) -> Batch:
    """The processes of a machine as the ``processes`` table of a snapshot.

    Args:
        images: The processes.
        machine: The machine's name in process keys.

    Returns:
        The table; every value has the provenance ``procfs``.
    """
    keys = {i.pid: process_key(machine, i.pid, i.start_ns) for i in images}
    return to_batch([(machine, [_process(i, keys) for i in images])])


def _process(image: Image, keys: dict[int, str | None]) -> Process:
    process = Process(
        pid=image.pid,
        process_key=keys[image.pid],
        parent_key=keys.get(image.ppid),
        ppid=image.ppid,
        name=stored(image.name),
        exe=stored(image.exe),
        cmdline=stored(image.cmdline),
        cwd=stored(image.cwd),
        user=image.user,
        uid=image.uid,
        gid=image.gid,
        session=image.session,
        container_id=image.container_id,
        start_ns=image.start_ns,
    )
    return process._replace(
        provenance=tuple(
            provenance(image, fact, known=getattr(process, fact) is not None) for fact in FACTS
        )
    )


def provenance(image: Image, fact: str, *, known: bool) -> str | None:
    """Where a value comes from.

    Args:
        image: What was read of its process.
        fact: One of `FACTS`.
        known: Whether there is a value.

    Returns:
        ``procfs``, ``passwd``; ``timeout`` where reading it hung; None where it was not there.
    """
    if known:
        return PASSWD if fact == "user" else PROCFS
    return TIMEOUT if fact in image.late else None


def container_id(cgroups: bytes) -> str | None:
    """The container that a process is in.

    Args:
        cgroups: The content of its cgroup file, of version 1, 2 or both.

    Returns:
        The innermost 64 hex digits that a path component consists of, with or without the
        runtime's prefix and a scope's suffix; None outside a container.
    """
    lines = cgroups.decode("utf-8", "replace").splitlines()
    return containers.container_id(line.split(":", 2)[-1] for line in lines)


def _request(pid: int, wanted: Sequence[Item]) -> Request:
    """What to read, ``stat`` first: by it a folder knows its process."""
    possible = pid if 0 < pid < _PIDS else 0  # which no process has
    return Request(possible, (STAT, *(item for item in wanted if item != STAT)))


def _who(pid: int, stat: bytes | int | None) -> Who:
    """A process by its id and the name in its stat."""
    name = stat[stat.find(b"(") + 1 : stat.rfind(b")")] if isinstance(stat, bytes) else b""
    return Who(pid, stored(plain(name)) or None)


def _argv(arguments: bytes | None) -> list[str] | None:
    """The argument list; None for a kernel thread or a process that has none."""
    if not arguments:
        return None
    parts = arguments.removesuffix(b"\0").split(b"\0")
    return [part.decode("utf-8", "surrogateescape") for part in parts]


def _cmdline(arguments: bytes | None) -> str | bytes | None:
    if not arguments:
        return None
    return plain(arguments.removesuffix(b"\0").replace(b"\0", b" "))


def stored(value: str | bytes | None) -> str | None:
    """Text as a column holds it.

    Args:
        value: What the kernel gave.

    Returns:
        Valid text within the limit of a value.
    """
    return None if value is None else text.cut(text.clean(value)[0])[0]


def _number(pattern: re.Pattern[bytes], status: bytes) -> int | None:
    match = pattern.search(status)
    return None if match is None else int(match[1])
