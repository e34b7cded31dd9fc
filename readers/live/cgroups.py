"""Which container and pod an event belongs to, by the control group of its process.

The kernel gives each event the id of its control group of version 2, which is the inode of a
folder; the path of that folder has the container's id in it. Where the host manages containers
with version 1, all processes may be in one group of version 2: then the path comes from
/proc/PID/cgroup. What the path does not have, the container's name and image, a thread of its own
reads from the state files of the runtimes (`kcap.readers.live.runtimes`): events never wait for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.model.batch import Column, coded
from kcap.model.classes import TypeClass
from kcap.readers.live.cache import Cache
from kcap.readers.live.probe.hierarchies import Mounted, hierarchies
from kcap.readers.live.procfs import CGROUP, ProcFS
from kcap.readers.live.runtimes import NOTHING, Facts, Runtimes
from kcap.state.containers import container_id

GROUPS_MAX: Final = 65_536
"""Control groups, and processes, whose container is remembered."""

COLUMNS: Final = (
    "container_id",
    "container_name",
    "container_image",
    "container_image_digest",
    "pod_name",
    "pod_namespace",
    "pod_uid",
    "pod_sandbox",
)
"""What `Containers.columns` gives."""

_POD: Final = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})")
"""The uid of a pod in a path; of a static pod it is the hash of its description."""


class Group(NamedTuple):
    """What the path of a control group says."""

    path: str
    container_id: str | None
    pod_uid: str | None


def group(path: str) -> Group:
    """Read the path of a control group.

    Args:
        path: The path within its hierarchy.

    Returns:
        The container and pod that it names.
    """
    pod = None
    for part in path.split("/"):
        match = _POD.search(part)
        pod = match[1].replace("_", "-") if match else pod
    return Group(path, container_id((path,)), pod)


def of_process(content: bytes) -> Group | None:
    """Read the cgroup file of a process.

    Args:
        content: The file.

    Returns:
        The first group that names a container, else the first one that is not the root of its
        hierarchy, else that; None of an empty file.
    """
    lines = content.decode("utf-8", "replace").splitlines()
    groups = [group(line.split(":", 2)[2]) for line in lines if line.count(":") >= 2]  # noqa: PLR2004
    named = [one for one in groups if one.container_id or one.pod_uid]
    deep = [one for one in groups if one.path != "/"]
    return next(iter([*named, *deep, *groups]), None)


def walk(mounted: Mounted, most: int) -> Iterator[tuple[str, int]]:
    """All groups of a hierarchy.

    Args:
        mounted: The hierarchy.
        most: Groups to give.

    Yields:
        Path within the hierarchy, and id; parents before their children, siblings by name.
    """
    waiting = ["/"]
    while waiting and most > 0:
        path = waiting.pop()
        try:
            with os.scandir(mounted.path + path) as entries:
                below = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
            number = os.stat(mounted.path + path).st_ino  # noqa: PTH116
        except OSError:
            continue  # removed meanwhile
        yield path, number
        most -= 1
        prefix = path if path == "/" else f"{path}/"
        waiting += [prefix + name for name in sorted(below, reverse=True)]


def _open_flags() -> int:
    return os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Paths:
    """Paths of the groups of one hierarchy by their ids.

    Args:
        proc: The proc file system.
        controller: The controller whose hierarchy of version 1 it is; None for version 2.
    """

    def __init__(self, proc: ProcFS, controller: str | None = None) -> None:
        self._proc = proc
        found = hierarchies(proc.root)
        wanted = (
            (m for m in found if not m.controllers)
            if controller is None
            else (m for m in found if controller in m.controllers.split(","))
        )
        self._mounted = next(wanted, None)
        self.has_version_1 = controller is None and any(m.controllers for m in found)
        """Containers may be in groups of version 1 alone."""
        self._by_walk: dict[int, str] = {}
        self._mount_fd = -1
        if self._mounted is not None:
            try:
                self._mount_fd = os.open(self._mounted.path, _open_flags())
            except OSError:
                self._mounted = None
        if self._mounted is not None and not self._by_handle(os.fstat(self._mount_fd).st_ino):
            # Without CAP_DAC_READ_SEARCH there are no handles; groups made later stay unknown.
            self._by_walk = {number: path for path, number in walk(self._mounted, GROUPS_MAX)}

    def path(self, number: int) -> str | None:
        """The path of a group.

        Args:
            number: Its id.

        Returns:
            The path within the hierarchy; None where the group is gone or not to be found.
        """
        if self._mounted is None:
            return None
        return self._by_walk.get(number) if self._by_walk else self._by_handle(number)

    def _by_handle(self, number: int) -> str | None:
        assert self._mounted is not None
        mounted = (self._mount_fd, self._mounted.path)
        return self._proc.group_path(number, self._mounted.controllers, mounted)

    def close(self) -> None:
        """Let go of the hierarchy."""
        if self._mount_fd >= 0:
            os.close(self._mount_fd)
        self._mount_fd, self._mounted = -1, None


_Processes = tuple[npt.NDArray[Any], npt.NDArray[Any] | None, npt.NDArray[Any] | None]
"""Ids, start times and parents of the processes of events."""


class Containers:
    """The container columns of events.

    Args:
        proc: The proc file system.
        runtimes: Where names and images come from; made where None.
        controller: The controller of version 1 whose groups' ids events have; None for version 2.

    Example:
        >>> containers = Containers(ProcFS())
        >>> columns = containers.columns(np.array([1]), np.array([1]))
        >>> containers.close()
    """

    def __init__(
        self, proc: ProcFS, runtimes: Runtimes | None = None, *, controller: str | None = None
    ) -> None:
        self._proc = proc
        self._runtimes = Runtimes(prober=proc.prober) if runtimes is None else runtimes
        self._paths = Paths(proc, controller)
        self._by_id: Cache[int, Group | None] = Cache(GROUPS_MAX)
        self._by_process: Cache[tuple[int, int], Group | None] = Cache(GROUPS_MAX)
        self._latest: Cache[int, Group | None] = Cache(GROUPS_MAX)
        """The same by process id alone."""

    def columns(
        self,
        cgroup_ids: npt.NDArray[Any],
        pids: npt.NDArray[Any],
        *,
        started_ns: npt.NDArray[Any] | None = None,
        ppids: npt.NDArray[Any] | None = None,
    ) -> dict[str, list[str | bool | None]]:
        """Look up the containers of events.

        Each group is looked up once; where its id says nothing, each process is.

        Args:
            cgroup_ids: Id of the control group of each event.
            pids: Its process.
            started_ns: When that started: then a process is looked up once in all, not once a
                call, as its id alone may be another's the next time.
            ppids: Its parent, which stands in for a process that is gone already.

        Returns:
            The values of each of `COLUMNS` that has any, None where an event has none. Names and
            images may be missing at first, until they have been read.
        """
        numbers, of_event = np.unique(cgroup_ids, return_inverse=True)
        groups = [self._of_id(int(number)) for number in numbers]
        if not any(one is not None for one in groups) and not self._paths.has_version_1:
            return {}
        if self._paths.has_version_1:
            vague = np.array([one is None or one.path == "/" for one in groups], np.bool_)
            self._of_processes(
                np.flatnonzero(vague[of_event]), groups, of_event, (pids, started_ns, ppids)
            )
        rows = [self._row(one) for one in groups]
        if all(row is _NO_ROW for row in rows):
            return {}
        by_group = zip(COLUMNS, zip(*rows, strict=True), strict=True)
        codes = of_event.tolist()
        return {
            name: [values[code] for code in codes]
            for name, values in by_group
            if any(v is not None for v in values)
        }

    def group(self, cgroup_id: int, pid: int) -> Group | None:
        """The control group of one process.

        Args:
            cgroup_id: Its id of version 2.
            pid: The process.

        Returns:
            What its path says; None where it is not known.
        """
        found = self._of_id(cgroup_id)
        if self._paths.has_version_1 and (found is None or found.path == "/"):
            found = self._read(pid) or found
        return found

    @property
    def evicted(self) -> int:
        """Groups, processes and containers that were forgotten for want of room."""
        caches = (self._by_id, self._by_process, self._latest)
        return sum(cache.evicted for cache in caches) + self._runtimes.evicted

    def close(self) -> None:
        """End the thread that reads, and let go of the hierarchy."""
        self._runtimes.close()
        self._paths.close()

    def _of_id(self, number: int) -> Group | None:
        if number not in self._by_id:
            path = self._paths.path(number)
            # A group that is gone does not come back: ids are not used again.
            self._by_id.put(number, None if path is None else group(path))
        return self._by_id.get(number)

    def _of_processes(
        self,
        rows: npt.NDArray[np.intp],
        groups: list[Group | None],
        of_event: npt.NDArray[np.intp],
        processes: _Processes,
    ) -> None:
        """Put the groups of some events' processes, out of /proc, in place of their own.

        A loop over events: 0.1 µs each, and only where ids of groups say nothing.
        """
        pids, started_ns, ppids = processes
        if started_ns is None:
            self._by_process.clear()
            self._latest.clear()
        starts = np.zeros(len(rows), np.int64) if started_ns is None else started_ns[rows]
        keys = zip(pids[rows].tolist(), starts.tolist(), strict=True)
        codes: dict[tuple[int, int], int] = {}
        for row, key in zip(rows.tolist(), keys, strict=True):
            if key not in codes:
                if key not in self._by_process:
                    parent = 0 if ppids is None else int(ppids[row])
                    # What is known of the parent is what its child was started in.
                    found = self._read(key[0]) or self._latest.get(parent) or self._read(parent)
                    self._by_process.put(key, found)
                    self._latest.put(key[0], found)
                codes[key] = len(groups)
                groups.append(self._by_process.get(key))
            of_event[row] = codes[key]

    def _read(self, pid: int) -> Group | None:
        with self._proc.folder(pid, (CGROUP,)) as folder:
            content = None if folder is None else folder.content("cgroup")
        return of_process(content) if content else None

    def _row(self, one: Group | None) -> tuple[str | bool | None, ...]:
        if one is None or not (one.container_id or one.pod_uid):
            return _NO_ROW
        facts = self._runtimes.facts(one.container_id) if one.container_id else NOTHING
        return (one.container_id, *facts._replace(pod_uid=facts.pod_uid or one.pod_uid))


def column_of(
    values: Sequence[str | bool | None], codes: npt.NDArray[np.integer[Any]]
) -> Column | None:
    """A column of what `Containers.columns` says of a few processes, for many events.

    Args:
        values: Those of one name.
        codes: Which of them each event has.

    Returns:
        The column, None where no event has a value.
    """
    if any(isinstance(value, bool) for value in values):
        flags = np.array([bool(value) for value in values])[codes]
        rows = np.flatnonzero(np.array([value is not None for value in values])[codes])
        return Column(TypeClass.BOOL, pa.array(flags[rows]), rows.astype(np.int32))
    return coded([None if value is None else str(value) for value in values], codes)


_NO_ROW: Final[tuple[str | bool | None, ...]] = (None,) * len(COLUMNS)
assert COLUMNS[1:] == Facts._fields
