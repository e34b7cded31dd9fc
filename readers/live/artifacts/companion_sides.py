"""Artifacts that wait for their event, and what was lost of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from kcap.model import text
from kcap.model.artifact import Artifact, Content, Gap, Parts
from kcap.model.naming import argument
from kcap.model.side import Loss, Side
from kcap.model.tracee_names import kernel_device, user_device
from kcap.readers.live.artifacts import files, programs
from kcap.readers.live.artifacts.companion_rows import CTIME, Rows
from kcap.readers.live.artifacts.left_out import OF_ROW, LeftOut, not_held
from kcap.readers.live.artifacts.protocol import Shared
from kcap.readers.live.artifacts.spool import Spooled
from kcap.readers.live.artifacts.wanted import REGULAR, Wanted
from kcap.readers.live.host import Clocks

if TYPE_CHECKING:
    from kcap.readers.live.artifacts.companion_hashes import Executions, Hashed
    from kcap.readers.live.artifacts.streams import Finished

NEAR_NS: Final = 100_000_000
"""An execution that is so near to when its file was read is the one."""

CALL_NS: Final = 5_000_000
"""How far a system call is from what the kernel's program told of it."""

PENDING_MAX: Final = 8192
"""Artifacts that wait, from which on no more are taken from readers."""

WAITING_S: Final = 1.0
WAITING_CALLS: Final = 3
"""What an event has to come in: the longer of some seconds and some batches."""

WAITING_MAX_S: Final = 10.0
"""Longer nobody waits for events that are behind, as where the clock was set."""

_NAMES_MAX: Final = 4096
"""Names of BPF programs that are remembered."""

_TIMEOUT: Final = "timeout"
_OF_MESSAGE: Final = (
    "pid", "tid", "process_name", "cgroup_id", "dev", "inode", "mode", "mtime_ns", "ctime_ns",
    "address", "length", "protection", "former", "name", "md5", "sha1", "sha256", "fd",
)  # fmt: skip
_MARKS: Final = ("deleted", "changed", "was_executable", "former_unknown", "map", "presumed")
_OF_CONTENT: Final = frozenset({"sha256", "sha1", "md5", "truncated"})
_OF_FILE: Final = frozenset(
    {"mode", "mtime_ns", "ctime_ns", "path", "deleted", "changed", "file_type"}
)
_CALLS: Final = frozenset({"mem", "module", "bpf"})


class Pending:
    """An artifact whose event is looked for.

    Args:
        about: What a reader said of it.
        content: Its bytes.
        stream: It, where it came through the kernel's program.
    """

    def __init__(
        self, about: dict[str, Any], content: Content, stream: Artifact | None = None
    ) -> None:
        self.about = about
        self.content = content
        self.stream = stream
        self.since_s = time.monotonic()
        self.calls = 0


class Sides:
    """What goes beside the events.

    Args:
        wanted: What is to be kept.
        shared: Where it is said that no more content is taken.
        rows: The events.
        scoped: Only of processes that events tell of: the recorder leaves others out.
    """

    def __init__(self, wanted: Wanted, shared: Shared, rows: Rows, *, scoped: bool) -> None:
        self._scoped = scoped
        self.left_out = 0
        """Files of processes that are out of scope."""
        self.source: str | None = None
        """Id of the source, once that has said it."""
        self.heard_ns = 0
        """Events were heard of up to this time."""
        self.awaited: Callable[[int, int, int], bool] = lambda *_: False
        """Whether the execution of a file by a process is known, and is still to be given."""
        self._caps = wanted.caps
        self._shared = shared
        self._rows = rows
        self._pending: list[Pending] = []
        self._losses: dict[Loss, Loss] = {}
        self._groups: dict[int, int] = {}
        self._names: dict[tuple[int, int], str] = {}
        self._kept_bytes = 0
        self._seen: dict[tuple[Any, ...], None] = {}
        self._outside = LeftOut[dict[str, Any]]()
        """What processes out of scope executed, by its hash: one in scope may execute it, too."""
        self._clocks = Clocks.measure()

    def add(self, pending: Pending) -> None:
        """Take an artifact."""
        about = pending.about
        if "ts_boot_ns" in about:
            clocks = self._clocks
            boot_ns = about["ts_boot_ns"] - clocks.boottime_ns
            about["time_ns"] = boot_ns + clocks.realtime_ns
        if about["kind"] == "exec" and about.get("sha256"):
            # Two readers may have seen one file. That of the next dropper may have its inode and
            # its content, not its time; the time of its last change is another once it is unlinked.
            key = (about["dev"], about["inode"], about["sha256"], about.get("mtime_ns"))
            if key in self._seen:
                return
            self._seen[key] = None
            if len(self._seen) > 1 << 16:
                del self._seen[next(iter(self._seen))]
        self._pending.append(pending)

    def forget(self) -> None:
        """Take again what was taken before."""
        self._seen.clear()

    def named(self, ts_ns: int, tid: int, name: str) -> None:
        """Take what a BPF program is called.

        Args:
            ts_ns: When it was loaded, CLOCK_BOOTTIME.
            tid: By which thread.
            name: Its name.
        """
        self._names[ts_ns, tid] = name
        if len(self._names) > _NAMES_MAX:
            del self._names[next(iter(self._names))]

    def stream(self, finished: Finished) -> None:
        """Take what came through the kernel's program."""
        artifact = finished.artifact
        about = {**artifact.details, "kind": artifact.kind, "pid": finished.pid}
        about |= {"tid": finished.tid, "nr": finished.nr, "ts_ns": finished.ts_ns}
        self._pending.append(Pending(about, artifact.content, artifact))

    def lost(
        self, reason: str, count: int | None = 1, kind: str = "lost", time_ns: int | None = None
    ) -> None:
        """Count something that is not there."""
        at_ns = time.time_ns() if time_ns is None else time_ns
        loss = Loss(kind, count, reason, self.source, start_ns=at_ns, end_ns=at_ns)
        like = loss.like
        self._losses[like] = self._losses[like].plus(loss) if like in self._losses else loss

    @property
    def crowded(self) -> bool:
        """Whether readers had better keep what they have."""
        return len(self._pending) >= PENDING_MAX

    def ready(self, *, last: bool, most_s: float = math.inf) -> Iterator[Side]:
        """Artifacts whose event is known, or does not come any more; and losses.

        Args:
            last: No more events come.
            most_s: How long it may take; the rest is for the next time.

        Yields:
            Each once.
        """
        waiting = []
        pending, self._pending = self._pending, []
        until_s = time.monotonic() + most_s
        for at, each in enumerate(pending):
            if time.monotonic() > until_s:
                self._pending = pending[at:] + self._pending
                break
            each.calls += 1
            row, sure, role = self._event(each.about)
            late = self._is_late(each)
            if sure or late or last:
                pending[at] = _TAKEN  # its bytes are free when whoever takes it is done
                if self._in_scope(each, row):
                    yield self._made(each, row, role)
                else:
                    self._leave_out(each)
            else:
                waiting.append(each)
        self._pending = waiting + self._pending
        losses, self._losses = self._losses, {}
        yield from losses.values()

    def executed(self, found: Executions) -> list[Side]:
        """Artifacts of executions that are given next: to be given with these, not behind them.

        A hash comes behind the content that it is of, so what is executed with a hash is here.

        Args:
            found: The executions; their events are among those that artifacts may belong to.

        Returns:
            Each once.
        """
        pids = {pid for pid, _, _ in found.files}
        contents = found.contents
        sides: list[Side] = []
        waiting = []
        for each in self._pending:
            about = each.about
            of = contents.get(_content(about)) if about["kind"] == "exec" else None
            if of is None and not (about["kind"] == "exec" and about.get("pid") in pids):
                waiting.append(each)
                continue
            row, sure, role = self._event(about)
            if not sure and of is not None:
                # Two processes have executed it at once, and its reader named the later one.
                about["pid"] = of
                row, sure, role = self._event(about)
            if not sure:
                waiting.append(each)
            elif self._in_scope(each, row):
                sides.append(self._made(each, row, role))
            else:
                self._leave_out(each)
        self._pending = waiting
        sides += [side for each in found.hashed for side in self._again(each)]
        return sides

    def _leave_out(self, each: Pending) -> None:
        """Leave out what a process did that is out of scope."""
        self.left_out += 1
        if each.about["kind"] == "exec" and each.about.get("sha256"):
            self._outside.put(each.about["sha256"], each.about, each.content)

    def _again(self, execution: Hashed) -> Iterator[Side]:
        """What was executed out of scope before, for its first execution within."""
        sha256 = execution.sha256
        if sha256 not in self._outside:
            return
        held = self._outside.take(sha256)
        file = execution.dev, execution.inode
        about = {"kind": "exec", "dev": user_device(file[0]), "inode": file[1], "sha256": sha256}
        if held is not None:
            known = held[0]
            same = (kernel_device(known.get("dev", 0)), known.get("inode")) == file
            kept = _OF_CONTENT | (_OF_FILE if same else frozenset())
            about |= {name: value for name, value in known.items() if name in kept}
        about |= {"pid": execution.pid, "time_ns": execution.time_ns}
        row, _, role = self._event(about)
        if held is not None:
            yield self._made(Pending(about, held[1]), row, role)
        elif self._outside.is_gone(sha256):
            yield not_held(row or {}, self.source)

    def _is_late(self, each: Pending) -> bool:
        """Whether its event should have come."""
        waited_s = time.monotonic() - each.since_s
        if each.calls < WAITING_CALLS or waited_s < WAITING_S:
            return False
        return self.heard_ns > each.about.get("time_ns", 0) or waited_s > WAITING_MAX_S

    def _in_scope(self, each: Pending, row: dict[str, Any] | None) -> bool:
        # What the kernel's program told was of its scope.
        if not self._scoped or row is not None or each.stream or "ts_boot_ns" in each.about:
            return True
        return self._rows.knows(each.about.get("pid", 0))

    def _event(self, about: dict[str, Any]) -> tuple[dict[str, Any] | None, bool, str | None]:
        """The event of an artifact, whether no better one can come, and the role of the file."""
        kind, pid, time_ns = about["kind"], about.get("pid", 0), about.get("time_ns", 0)
        if kind in _CALLS:
            table = self._rows.calls.get(programs.NAMES.get(about.get("nr", -1), ""))
            near = None if table is None else table.nearest(time_ns, about.get("tid", 0))
            if near is not None and near[0] < CALL_NS:
                # What a program is called comes by another way.
                return near[1], kind != "bpf" or self._name(about) is not None, None
            return None, table is None, None
        if "inode" not in about:
            near = self._rows.processes.nearest(time_ns, pid)
            return None if near is None else near[1], True, None
        file = (kernel_device(about["dev"]), about["inode"])
        if kind == "exec":
            near = self._rows.executions.nearest(time_ns, pid, *file)
            if near is not None:
                return near[1], True, "executable"
            near = self._rows.processes.nearest(time_ns, pid)
            role = "script" if about.get("script") else "interpreter"
            if near is None:
                return None, False, role
            # Who starts one program through another has both within a moment.
            return near[1], near[0] < NEAR_NS and not self.awaited(pid, *file), role
        path: str | None = None
        if "path" in about:
            path = text.clean(str(about["path"]).encode("latin-1"))[0]
        row = self._rows.opens.before(time_ns, path, pid, *file)
        if row is not None:
            # Of another name: it was renamed since, or its event is still to come.
            return row, path in (None, row.get(argument("pathname"))), None
        # Another process opened it, and this one closed it last; of a pipe there is none.
        row = self._rows.any_opens.before(time_ns, path, *file)
        if row is None and about.get("file_type", REGULAR) != REGULAR:
            near = self._rows.processes.nearest(time_ns, pid)
            return None if near is None else near[1], near is not None, "process"
        return row, False, None

    def _made(self, each: Pending, row: dict[str, Any] | None, role: str | None) -> Artifact:
        about = each.about
        row = row or {}
        if about["kind"] == "exec" and about.get("sha256"):
            self._outside.drop(about["sha256"])
        if each.stream is not None:
            return self._streamed(each, each.stream, row)
        details: dict[str, Any] = {"time_ns": about.get("time_ns")}
        details |= {name: about[name] for name in _OF_MESSAGE if about.get(name) is not None}
        details |= {name: True for name in _MARKS if about.get(name)}
        details |= {name: row[name] for name in OF_ROW if row.get(name) is not None}
        if "mode" in about:
            details["file_type"] = files.file_type(about["mode"])
        if role is not None:
            details["role"] = role
        if role == "executable" and about.get("mtime_ns", 0) > row.get(CTIME, 0) > 0:
            details["changed"] = True  # before it could be read: this is not what was executed
        path = self._path(about, row, details)
        content, truncated = self._bounded(each, details)
        return Artifact(
            kind=about["kind"],
            content=content,
            path=path,
            origin=row.get("origin"),
            ord=row.get("ord"),
            truncated=truncated,
            details=details,
        )

    def _streamed(self, each: Pending, stream: Artifact, row: dict[str, Any]) -> Artifact:
        details = dict(stream.details)
        name = self._name(each.about) if stream.kind == "bpf" else None
        if name is not None:
            details["name"] = name
        for name in OF_ROW:
            if row.get(name) is not None:
                details.setdefault(name, row[name])
        content, truncated = self._bounded(each, details)
        return replace(
            stream,
            content=content,
            origin=row.get("origin"),
            ord=row.get("ord"),
            truncated=truncated or stream.truncated,
            details=details,
        )

    def _name(self, about: dict[str, Any]) -> str | None:
        return self._names.get((about.get("ts_ns", 0), about.get("tid", 0)))

    @staticmethod
    def _path(about: dict[str, Any], row: dict[str, Any], details: dict[str, Any]) -> str | None:
        told = about.get("path")
        if told is None:
            return row.get(argument("pathname")) if about["kind"] not in _CALLS else None
        path, raw = text.clean(str(told).encode("latin-1"))
        if raw is not None:
            details["path_raw"] = raw.hex()
        return path

    def _bounded(self, each: Pending, details: dict[str, Any]) -> tuple[Content, str | None]:
        """The content, as far as it may be kept."""
        truncated = each.about.get("truncated")
        if truncated and truncated != _TIMEOUT:
            self.lost(f"artifacts: {truncated}", kind="cut")
        gaps = _gaps(each.content)
        for reason in {gap.reason for gap in gaps if gap.reason} - {_TIMEOUT}:
            kind = "lost" if reason.startswith(_TIMEOUT) else "cut"
            self.lost(f"artifacts: {reason}", kind=kind)
        group, size = details.get("cgroup_id") or 0, each.content.nbytes
        if self._kept_bytes + size > self._caps.capture_bytes:
            self._shared.hash_only = True
            why = f"over {self._caps.capture_bytes} bytes of the capture"
        elif self._groups.get(group, 0) + size > self._caps.cgroup_bytes:
            why = f"over {self._caps.cgroup_bytes} bytes of its control group"
        else:
            self._kept_bytes += size
            self._groups[group] = self._groups.get(group, 0) + size
            return each.content, truncated
        if not size:
            return each.content, truncated
        self.lost(f"artifacts: {why}", kind="cut")
        return Parts((Gap(size + sum(gap.length for gap in gaps), why),)), None


def _content(about: dict[str, Any]) -> tuple[int, int, str]:
    """What was executed, as `Executions.contents` has it."""
    file = kernel_device(about.get("dev", 0)), about.get("inode", -1)
    return *file, about.get("sha256") or ""


def _gaps(content: Content) -> list[Gap]:
    if isinstance(content, Spooled):
        return content.gaps
    return [part for part in content.parts() if isinstance(part, Gap)]


_TAKEN: Final[Any] = None
