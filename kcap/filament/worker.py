"""The process of a filament: it calls the filament's functions and says what came of it.

It is a `kcap.guard.child.Child`: `prepare` loads what the filament imports, and with `run` the
rights are gone. The filament itself begins to run only then. Nothing but the standard library is
imported, so that it starts fast and has little that could be turned against anyone.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import io
import mmap
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import Any, BinaryIO, Final, NoReturn

from kcap.errors import KcapError
from kcap.filament import dotdict, frames
from kcap.filament.api import Api
from kcap.filament.dicts import dicts
from kcap.filament.watch import Watch, forbid

BEGIN: Final = -(1 << 62)
"""Position of what is done before the first event."""

END: Final = 1 << 62
"""Position of what is done behind the last."""

IDLE: Final = BEGIN - 1
"""Position where no call is done."""

CELL_BYTES: Final = 4096
"""Memory that it shares with the run: the position of the call that it is in."""

_LAZY: Final = (
    "_strptime", "collections.abc", "decimal", "encodings.ascii", "encodings.cp1252",
    "encodings.idna", "encodings.latin_1", "encodings.punycode", "encodings.utf_16",
    "encodings.utf_16_le", "encodings.utf_8_sig", "stringprep", "unicodedata", "warnings",
)  # fmt: skip
"""What Python's own library imports only when it is needed; a user without rights may be unable
to read its folder."""

_ONE_THREAD: Final = ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PENDING_BYTES: Final = 256 << 10
"""When what was given is handed on, in the middle of a call too."""

_ITEM_BYTES: Final = 64
_MESSAGE_CHARS: Final = 500
_RESERVE_BYTES: Final = 2 << 20


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is ready before the rights are given up."""

    given: Mapping[str, Any]
    """See `kcap.filament.connection.settings`."""
    code: CodeType
    modules: Mapping[str, tuple[CodeType, bool]]
    """Modules beside the filament: their code, and whether they are packages."""
    cell: memoryview


def prepare(given: Mapping[str, Any]) -> Prepared:
    """Load what the filament needs.

    Args:
        given: See `kcap.filament.connection.settings`.

    Returns:
        What `run` takes.

    Raises:
        KcapError: It can't be loaded.
    """
    for name in _ONE_THREAD:
        os.putenv(name, "1")  # C libraries look at it; a filament is one thread
    for name in (*_LAZY, *given["imports"]):
        # What can't be imported fails again where the filament imports it, which tells the line.
        with contextlib.suppress(Exception, SystemExit):
            importlib.import_module(name)
    code = _compiled(given["text"], given["path"])
    modules = {
        name: (_compiled(text, path), package) for name, path, text, package in given["modules"]
    }
    try:
        with open(given["cell"], "r+b") as file:  # noqa: PTH123  (a descriptor of the parent's)
            shared = mmap.mmap(file.fileno(), CELL_BYTES)
    except OSError as e:
        raise KcapError(f"no memory to share: {e.strerror}", file=given["path"]) from e
    return Prepared(given, code, modules, memoryview(shared).cast("q"))


def run(prepared: Prepared, requests: BinaryIO, replies: BinaryIO) -> None:
    """Run the filament until no request follows.

    Args:
        prepared: What `prepare` gave.
        requests: Where events come from.
        replies: Where it says what came of them.
    """
    Worker(prepared, requests, replies).run()


class Worker:
    """A filament at work.

    Args:
        prepared: What `prepare` gave.
        requests: Where events come from.
        replies: Where it says what came of them.
    """

    def __init__(self, prepared: Prepared, requests: BinaryIO, replies: BinaryIO) -> None:
        given = prepared.given
        self._given = given
        self._prepared = prepared
        self._requests = requests
        self._replies = replies
        self._cell = prepared.cell
        self._files = {given["path"], *(path for _, path, _, _ in given["modules"])}
        self._items: list[list[Any]] = []
        self._texts: list[str] = []
        self._stream = ""
        self._at = BEGIN
        self._call_bytes = 0
        self._pending = 0
        self._now: int | None = None
        self._nows: memoryview | None = None
        self._function = "its module"
        self._reserve: bytearray | None = bytearray(_RESERVE_BYTES)
        self._api = Api(self, given["severities"], given["rows"])
        self._watch = Watch(given["call_s"], self._cell, self._too_long)
        self._module = ModuleType(given["name"])

    @property
    def now_ns(self) -> int | None:
        """The logical clock."""
        at = self._cell[0]
        nows = self._nows
        return self._now if nows is None or not 0 <= at < len(nows) else nows[at]

    def run(self) -> None:
        """See `run`."""
        sys.stdout, sys.stderr = _Printed(self, "out"), _Printed(self, "err")
        sys.argv = [self._given["name"], *self._given["arguments"]]
        sys.meta_path.insert(0, _Beside(self._prepared))
        if self._next() is None:
            return
        self._watch.start()
        forbid(self._refused)
        self._began()
        while (request := self._next()) is not None:
            kind, body = request
            if kind == frames.STOP:
                self._now = frames.loads(body)
                self._called("on_stop", END)
            else:
                self._events(body)
            self._cell[0] = IDLE
            self._reply(frames.frame(frames.DONE))
        self._watch.stop()

    def _next(self) -> tuple[bytes, bytes] | None:
        """The next request, None where there will be none."""
        with self._watch.paused():
            return frames.read(self._requests)

    def add(self, kind: str, *values: Any) -> None:  # noqa: ANN401
        """See `kcap.filament.api.Run`."""
        self._cut_text()
        self._count(size_of(values))
        self._items.append([self._cell[0], kind, *values])

    def ask(self, what: str, arguments: Sequence[Any]) -> Any:  # noqa: ANN401
        """See `kcap.filament.api.Run`."""
        self._cut_text()  # what an event before printed stays that event's
        self._count(size_of(arguments))
        with self._watch.paused():
            self._replies.write(frames.said(frames.ASK, [self._cell[0], what, *arguments]))
            self._replies.flush()
            answer = self._next()
            if answer is None:
                os._exit(1)  # the run has ended
            return frames.loads(answer[1])

    def printed(self, stream: str, text: str) -> None:
        """Take what the filament prints.

        Args:
            stream: ``out`` or ``err``.
            text: The text.
        """
        if stream != self._stream or self._at != self._cell[0]:
            self._cut_text()
        self._count(size_of([text]))
        self._stream = stream
        self._texts.append(text)

    def _count(self, size: int) -> None:
        """Count what one call gives, and hand on what has gathered."""
        if self._at != self._cell[0]:
            self._at, self._call_bytes = self._cell[0], 0
        self._call_bytes += size
        if self._call_bytes > self._given["output_bytes"]:
            self._fail(
                f"gave more than {self._given['output_bytes']:,} bytes in one call",
                *self._place(sys._getframe()),  # noqa: SLF001
            )
        if self._pending > PENDING_BYTES:
            self._reply()
        self._pending += size

    def _cut_text(self) -> None:
        """What was printed so far is one item; another call's is another."""
        if self._texts:
            self._items.append([self._at, self._stream, "".join(self._texts)])
            self._texts = []
        if self._at != self._cell[0]:
            self._at, self._call_bytes = self._cell[0], 0

    def _reply(self, last: bytes = b"") -> None:
        """Send what has gathered."""
        self._cut_text()
        with self._watch.paused():
            if self._items:
                self._replies.write(frames.said(frames.ITEMS, self._items))
            self._items, self._pending = [], 0
            self._replies.write(last)
            self._replies.flush()

    def _began(self) -> None:
        """Run the module, then ``on_init``."""
        self._cell[0] = BEGIN
        self._module.__file__ = self._given["path"]
        self._module.__dict__.update(self._api.functions())
        # Classes of some kinds look for their module there; a module that is needed stays.
        sys.modules.setdefault(self._given["name"], self._module)
        with self._caught():
            exec(self._prepared.code, self._module.__dict__)  # noqa: S102
            self._function = "on_init"
        self._called("on_init", BEGIN)
        with self._caught():
            self._api.check()
            handler = getattr(self._module, self._given["handler"], None)
            if not callable(handler):
                raise TypeError(f"{self._given['handler']} is no function")
        self._handler: Callable[[dict[str, Any]], Any] = handler
        self._api.begun = True
        said = {
            "filter": self._api.filter,
            "filter_line": self._api.filter_line,
            "interval_s": self._api.interval_s,
            "ticks": callable(getattr(self._module, "on_interval", None)),
        }
        self._reply(frames.said(frames.READY, said))

    def _events(self, body: bytes) -> None:
        """Call the filament for events, and for the ticks among them."""
        count, ticks, packed_bytes = frames.BATCH.unpack_from(body)
        at = frames.BATCH.size
        packed = body[at : at + packed_bytes]
        words = memoryview(body[at + packed_bytes :]).cast("q")
        self._nows, places, times = (
            words[:count],
            words[count : count + ticks],
            words[count + ticks :],
        )
        self._watch.requests += 1
        events = dicts(packed) if count else iter(())
        done = 0
        for number, (place, now_ns) in enumerate(zip(places, times, strict=True)):
            done = self._handled(events, done, place)
            self._now = now_ns
            self._called("on_interval", -1 - number)
        self._handled(events, done, count)
        if count:
            self._now = self._nows[count - 1]

    def _handled(self, events: Iterator[dict[str, Any]], start: int, stop: int) -> int:
        """Call the filament for the events up to one: the loop over events that filaments are."""
        self._function = self._given["handler"]
        cell, handler = self._cell, self._handler
        with self._caught():
            for at, event in zip(range(start, stop), events, strict=False):
                cell[0] = at
                handler(event)
        return stop

    def _called(self, name: str, position: int) -> None:
        """Call a function without arguments, if there is one."""
        function = getattr(self._module, name, None)
        if function is None:
            return
        self._cell[0] = position
        self._function = name
        with self._caught():
            function()

    @contextlib.contextmanager
    def _caught(self) -> Iterator[None]:
        """End the filament, and say why, whatever it raises."""
        try:
            yield
        except BaseException as e:  # noqa: BLE001  (said to the run, which ends with it)
            self._reserve = None  # room to say it, where there is no memory left
            path, line = self._blamed(e)
            self._fail(self._told(e), path, line)

    def _told(self, error: BaseException) -> str:
        """What is wrong, in a few words."""
        if isinstance(error, MemoryError):
            most = self._given["memory_bytes"] >> 20
            return f"asked for more memory than the {most:,} MiB that it has"
        if isinstance(error, SystemExit):
            return "called sys.exit, which would end the run"
        try:
            text = str(error)
        except Exception:  # noqa: BLE001  (the error's own text is broken; its name is not)
            text = ""
        return f"{type(error).__name__}: {text}"[:_MESSAGE_CHARS] if text else type(error).__name__

    def _blamed(self, error: BaseException) -> tuple[str, int | None]:
        """File and line of the filament in which something was raised."""
        if isinstance(error, SyntaxError) and error.filename in self._files:
            return str(error.filename), error.lineno
        found: tuple[str, int | None] = (self._given["path"], None)
        step: TracebackType | None = error.__traceback__
        while step is not None:
            if step.tb_frame.f_code.co_filename in self._files:
                found = step.tb_frame.f_code.co_filename, step.tb_lineno
            step = step.tb_next
        return found

    def _place(self, frame: FrameType | None) -> tuple[str, int | None]:
        """File and line of the filament that a call comes from."""
        while frame is not None:
            if frame.f_code.co_filename in self._files:
                return frame.f_code.co_filename, frame.f_lineno
            frame = frame.f_back
        return self._given["path"], None

    def _too_long(self, frame: FrameType | None) -> NoReturn:
        path, line = self._place(frame)
        self._fail(f"took longer than {self._given['call_s']:g} s", path, line)

    def _refused(self, what: str) -> NoReturn:
        path, line = self._place(sys._getframe())  # noqa: SLF001
        self._fail(f"{what}, which a filament may not", path, line)

    def _fail(self, what: str, path: str, line: int | None) -> NoReturn:
        """Say why the filament ends, and end at once: it gets no chance to go on."""
        self._watch.stop()
        said = {"what": what, "path": path, "line": line}
        said |= {"function": self._function, "position": self._cell[0]}
        try:
            self._reply(frames.said(frames.FAILED, said))
        finally:
            os._exit(1)


class _Printed(io.TextIOBase):
    """Standard output or error of the filament."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, worker: Worker, stream: str) -> None:
        self._worker = worker
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() takes text, not {type(text).__name__}")
        self._worker.printed(self._stream, text)
        return len(text)


class _Beside:
    """Imports the modules beside the filament, whose files were read while there were rights."""

    def __init__(self, prepared: Prepared) -> None:
        self._modules = prepared.modules
        self._ours = {"utils": dotdict, "utils.dotdict": dotdict}

    def find_spec(
        self, name: str, _path: object = None, _target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        inside = any(known.startswith(f"{name}.") for known in self._modules)
        if name not in self._modules and name not in self._ours and not inside:
            return None
        _, package = self._modules.get(name, (None, inside or name == "utils"))
        return importlib.machinery.ModuleSpec(name, self, is_package=package)  # type: ignore[arg-type]

    def create_module(self, _spec: importlib.machinery.ModuleSpec) -> None:
        """See `importlib.abc.Loader`."""

    def exec_module(self, module: ModuleType) -> None:
        """See `importlib.abc.Loader`."""
        known = self._modules.get(module.__name__)
        if known is not None:
            exec(known[0], module.__dict__)  # noqa: S102
        elif module.__name__ == "utils.dotdict":
            module.__dict__.update(DotDict=dotdict.DotDict, dotdictify=dotdict.dotdictify)


def _compiled(text: str, path: str) -> CodeType:
    try:
        return compile(text, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise KcapError(f"no Python: {e}", file=path, line=getattr(e, "lineno", None)) from e


def size_of(values: Sequence[Any]) -> int:
    """What a limit of bytes counts.

    Args:
        values: Texts, and lists of them.

    Returns:
        Bytes of text, roughly.
    """
    total = _ITEM_BYTES
    for value in values:
        if isinstance(value, str):
            total += len(value) if value.isascii() else 4 * len(value)
        elif isinstance(value, list):
            total += size_of(value)
    return total
