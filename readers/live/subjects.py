"""What was there when a recording began, as far as a scope asks for it.

Trees of processes grow in the kernel program; their first members are found here. Control groups
that are there, and are not meant, are named to it, so that those to come are never missed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from kcap.errors import KcapError
from kcap.readers.live.cgroups import GROUPS_MAX, walk
from kcap.readers.live.probe.hierarchies import Mounted, hierarchies
from kcap.readers.live.scopes import Scope
from kcap.state.containers import container_id


class Subjects(NamedTuple):
    """What was there."""

    cgroups: Mapping[int, str | None] = {}
    """Control groups whose container is certain, with it; None for those outside of any."""
    containers: frozenset[str] = frozenset()
    """The ids of all containers."""
    members: frozenset[int] = frozenset()
    """The processes of the trees that are meant."""
    others: frozenset[int] = frozenset()
    """Those of the trees that are not."""


def look(scope: Scope, *, proc: str = "/proc", hierarchy: Mounted | None = None) -> Subjects:
    """Look at this host.

    Args:
        scope: What is to be recorded; only what it asks for is looked at.
        proc: Where the proc file system is mounted.
        hierarchy: The control groups whose ids events have; None for those of version 2 where
            this host uses them, else none are told apart early.

    Returns:
        What is there now.

    Raises:
        KcapError: The root of a tree is no process.
    """
    found = Subjects()
    if scope.containers.restricts:
        mounted = hierarchies(proc)
        groups = {each: _groups(each) for each in mounted}
        of_events = hierarchy or next((m for m in mounted if not m.controllers), None)
        if hierarchy is None and not _uses_unified(proc):
            of_events = None
        known = {} if of_events is None else dict(groups.get(of_events) or _groups(of_events))
        if any(each.controllers for each in mounted):
            # Where containers are in groups of version 1, what is in the root of another
            # hierarchy may be in any container, or in none.
            known = {number: path for number, path in known.items() if path != "/"}
        paths = {path for each in groups.values() for path in each.values()}
        found = found._replace(
            cgroups={number: container_id([path]) for number, path in known.items()},
            containers=frozenset(i for path in paths if (i := container_id([path]))),
        )
    if scope.roots or scope.others:
        parents = _parents(proc)
        for pid in sorted(scope.roots):
            if pid not in parents:
                hint = "'pid=new' and 'follow' ask for processes that are yet to start"
                raise KcapError(f"tree={pid}: there is no process {pid}", hint=hint)
        found = found._replace(
            members=descendants(scope.roots, parents), others=descendants(scope.others, parents)
        )
    return found


def members(scope: Scope, proc: str = "/proc") -> list[int]:
    """The processes of the trees that are meant, as they are now.

    Args:
        scope: What is to be recorded.
        proc: Where the proc file system is mounted.

    Returns:
        Their ids.
    """
    return sorted(descendants(scope.roots, _parents(proc))) if scope.roots else []


def descendants(roots: Iterable[int], parents: Mapping[int, int]) -> frozenset[int]:
    """Processes and all that descend from them.

    Args:
        roots: Their ids.
        parents: The parent of each process.

    Returns:
        The ids, those of the roots included.
    """
    children = defaultdict(list)
    for pid, parent in parents.items():
        children[parent].append(pid)
    found: set[int] = set()
    todo = list(roots)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo += children[pid]
    return frozenset(found)


def _uses_unified(proc: str) -> bool:
    """Whether processes are in groups of version 2, not all in the root of that hierarchy."""
    lines = Path(proc, "self/cgroup").read_text("utf-8", "replace").splitlines()
    return any(line.startswith("0::/") and line != "0::/" for line in lines)


def _groups(mounted: Mounted) -> dict[int, str]:
    return {number: path for path, number in walk(mounted, GROUPS_MAX)}


def _parents(proc: str) -> dict[int, int]:
    """The parent of each process."""
    found = {}
    for entry in Path(proc).iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_bytes()
            except OSError:
                continue  # it has ended since
            found[int(entry.name)] = int(stat[stat.rfind(b")") + 2 :].split()[1])
    return found
