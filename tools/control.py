"""The control socket: a running recorder answers who may ask, and never waits for whom it answers.

One JSON object a line each way: ``{"ask": "stats"}`` gets ``{"stats": {…}}``, another request that
the recording knows gets ``{"done": …}``, and everything else ``{"error": …}``. The socket is made
with the rights of whoever started the recorder; a worker without rights serves it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

from kcap.errors import KcapError, PrivilegeError
from kcap.tools import logs

CLIENTS: Final = 8
"""Most clients at once."""

REQUEST_BYTES: Final = 4096
"""Longest request."""

REQUESTS: Final = 16
"""Most requests that a client may send without waiting for an answer."""

ANSWER_BYTES: Final = 128 << 10
"""Longest answer; also the most that waits for a client that does not read."""

PATIENCE_S: Final = 2.0
"""How long a client may take to read an answer."""

IDLE_S: Final = 30.0
"""How long a client may say nothing."""

ASK_S: Final = 5.0
"""How long an asker waits: a recorder looks at its socket four times a second."""

STATS: Final = "stats"

_ROOT: Final = Path("/run/kcap")
_USER: Final = "XDG_RUNTIME_DIR"
_SUFFIX: Final = ".sock"
_CREDENTIALS: Final = struct.Struct("3i")
_ACCEPTED: Final = 2 * CLIENTS
"""Connections that are looked at in one go."""

Answer = Mapping[str, Any]


class Control:
    """The listening end, made before rights are given up; a context manager.

    Args:
        folder: Where its socket is to be; made where missing, of this user alone.

    Raises:
        KcapError: The folder is no private one of this user, or the socket can't be made.
    """

    def __init__(self, folder: Path) -> None:
        _make_private(folder)
        for path in _in(folder):
            if not _listens(path):
                path.unlink(missing_ok=True)
        self.path = folder / f"{os.getpid()}{_SUFFIX}"
        """The socket's name."""
        self.refused = 0
        """Clients that were turned away: of another user, too many, too slow, or not understood."""
        self._owner_pid = os.getpid()
        self._may_ask = {0, os.getuid()}
        self._requests: dict[str, Callable[[], Answer]] = {}
        self._clients: list[_Client] = []
        self._listening = _bound(self.path)

    def on(self, request: str, act: Callable[[], Answer]) -> None:
        """Know a request beside ``stats``.

        Args:
            request: What clients ask: ``rotate``, ``trigger``.
            act: Does it, at once, and gives what there is to say of it; may raise `KcapError`.
        """
        self._requests[request] = act

    def serve(self, status: Callable[[], Answer]) -> None:
        """Answer what was asked since the last time. Never blocks, never raises.

        Args:
            status: Gives what ``stats`` is answered with; called once at most.
        """
        now_s = time.monotonic()
        self._accept(now_s)
        said: bytes | None = None
        for client in tuple(self._clients):
            try:
                for line in client.requests(now_s):
                    request = _request(line)
                    if request == STATS:
                        said = said or self._tried(lambda: {STATS: status()})
                        client.answer(said)
                    else:
                        client.answer(self._done(request))
                client.send(now_s)
            except _DroppedError:
                self.refused += 1
                self._drop(client)
            except (OSError, EOFError):
                self._drop(client)  # it went away

    def close(self) -> None:
        """Close the socket, and take its name away where this process made it."""
        for client in tuple(self._clients):
            self._drop(client)
        self._listening.close()
        if os.getpid() == self._owner_pid:
            with contextlib.suppress(OSError):  # whoever took the name away did that for us
                self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self, now_s: float) -> None:
        for _ in range(_ACCEPTED):
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return  # nobody else is there, or went away again, or there is no descriptor left
            connection.setblocking(False)
            if len(self._clients) < CLIENTS and _user_of(connection) in self._may_ask:
                self._clients.append(_Client(connection, now_s))
            else:
                self.refused += 1
                connection.close()

    def _done(self, request: str | None) -> bytes:
        act = self._requests.get(request or "")
        if act is None:
            known = ", ".join([STATS, *sorted(self._requests)])
            what = "this is no request" if request is None else "this recording knows no such thing"
            return _line({"error": what, "expected": f'{{"ask": NAME}}, NAME one of {known}'})
        return self._tried(lambda: {"done": request, **act()})

    def _tried(self, act: Callable[[], Answer]) -> bytes:
        try:
            answer = _line(act())
        except KcapError as e:
            return _line({"error": str(e), **({"hint": e.hint} if e.hint else {})})
        except Exception as e:  # noqa: BLE001  (whoever asks is told; no question ends a recording)
            return _line({"error": f"internal error: {e!r}"[:REQUEST_BYTES]})
        if len(answer) > ANSWER_BYTES:
            return _line({"error": f"the answer has more than {ANSWER_BYTES:,} bytes"})
        return answer

    def _drop(self, client: _Client) -> None:
        client.connection.close()
        self._clients.remove(client)


class _DroppedError(Exception):
    """A client is not to be served any more."""


class _Client:
    """A connection, and what is under way on it."""

    def __init__(self, connection: socket.socket, now_s: float) -> None:
        self.connection = connection
        self._received = b""
        self._unsent = b""
        self._moved_s = now_s

    def requests(self, now_s: float) -> list[bytes]:
        """The lines that came; none while an answer still waits to be read."""
        if self._unsent:
            return []
        try:
            fresh = self.connection.recv(REQUEST_BYTES)
        except BlockingIOError:
            if now_s - self._moved_s > IDLE_S:
                raise _DroppedError from None
            return []
        if not fresh:
            raise EOFError
        self._moved_s = now_s
        *lines, self._received = (self._received + fresh).split(b"\n")
        longest = max(map(len, (*lines, self._received)))
        if longest >= REQUEST_BYTES or len(lines) > REQUESTS:
            raise _DroppedError
        return lines

    def answer(self, line: bytes) -> None:
        """Queue an answer."""
        if self._unsent and len(self._unsent) + len(line) > ANSWER_BYTES:
            raise _DroppedError  # it asks much and reads nothing
        self._unsent += line

    def send(self, now_s: float) -> None:
        """Send what the client takes now."""
        while self._unsent:
            try:
                sent = self.connection.send(self._unsent)
            except BlockingIOError:
                if now_s - self._moved_s > PATIENCE_S:
                    raise _DroppedError from None
                return
            self._unsent = self._unsent[sent:]
            self._moved_s = now_s


@contextlib.contextmanager
def opened() -> Iterator[Control | None]:
    """The control socket of this recorder; a recording without one is better than none.

    Yields:
        The socket, whose name is gone afterwards; None where this user can't have one.
    """
    try:
        made = Control(_folder())
    except KcapError as e:
        from kcap.model.text import printable

        note = f"kcap: 'kcap stats --live' will not see this recording: {e}"
        logs.tell(printable(note))
        yield None
        return
    with made:
        yield made


def folders() -> list[Path]:
    """Where this user's recorders have their sockets, the best place first; maybe nowhere."""
    found = [_ROOT] if os.geteuid() == 0 else []
    if os.environ.get(_USER):
        found.append(Path(os.environ[_USER]) / "kcap")
    return found


def sockets() -> list[Path]:
    """The control sockets of this user's recorders that run, by name."""
    return [path for folder in folders() for path in _in(folder) if _listens(path)]


def ask(path: Path, request: str, timeout_s: float = ASK_S) -> dict[str, Any]:
    """Ask a recorder.

    Args:
        path: Its socket.
        request: ``stats``, ``rotate``, ``trigger``.
        timeout_s: How long it may take.

    Returns:
        The answer.

    Raises:
        PrivilegeError: It does not answer this user.
        KcapError: Nobody answers, or not in time, or the answer is an error.
    """
    deadline_s = time.monotonic() + timeout_s
    received = b""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            connection.sendall(_line({"ask": request}))
            while b"\n" not in received and len(received) <= ANSWER_BYTES:
                connection.settimeout(max(0.001, deadline_s - time.monotonic()))
                fresh = connection.recv(ANSWER_BYTES)
                if not fresh:
                    break
                received += fresh
    except TimeoutError:
        raise KcapError(
            f"the recorder did not answer within {timeout_s:g} s",
            file=str(path),
            hint="it may be stopped, or wait for its output",
        ) from None
    except PermissionError as e:
        raise PrivilegeError(
            "this is another user's recorder", file=str(path), hint="ask as root"
        ) from e
    except (ConnectionResetError, BrokenPipeError):
        received = b""
    except OSError as e:
        raise KcapError(
            f"no recorder answers: {e.strerror or e}",
            file=str(path),
            hint="'kcap stats --live' finds those that run",
        ) from e
    return _answer(received, path)


def _answer(received: bytes, path: Path) -> dict[str, Any]:
    """What a line says."""
    if not received.endswith(b"\n"):
        what = "the recorder closed the connection: it ends, or does not answer this user"
        raise KcapError(what, file=str(path))
    try:
        found = json.loads(received)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise KcapError("this is no answer of a recorder", file=str(path), expected="JSON objects")
    if "error" in found:
        raise KcapError(f"the recorder says: {found['error']}", file=str(path))
    return found


def _request(line: bytes) -> str | None:
    """The request in a line, None where there is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    name = found.get("ask") if isinstance(found, dict) else None
    return name if isinstance(name, str) else None


def _line(answer: Answer) -> bytes:
    return json.dumps(answer, separators=(",", ":")).encode() + b"\n"


def _in(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"[0-9]*{_SUFFIX}"))


def _listens(path: Path) -> bool:
    """Whether somebody is behind a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # too many wait there, or it is not ours: somebody's it is
    return True


def _user_of(connection: socket.socket) -> int | None:
    """The user at the other end, as the kernel noted when it connected."""
    try:
        held = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return None
    return int(_CREDENTIALS.unpack(held)[1])


def _folder() -> Path:
    """The place for a socket.

    Raises:
        PrivilegeError: Not as root, and the system gave the user no folder for such things.
    """
    for folder in folders():
        return folder
    raise PrivilegeError(
        "there is no folder for a control socket", expected=f"{_ROOT} as root, or ${_USER}"
    )


def _make_private(folder: Path) -> None:
    """Make a folder that nobody else may enter, or see that it is one.

    Raises:
        PrivilegeError: It can't be made, or is no such folder.
    """
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=stat.S_IRWXU)
        found = folder.lstat()
    except OSError as e:
        raise PrivilegeError(
            f"no control socket can be here: {e.strerror or e}", file=str(folder)
        ) from e
    private = not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    if not (stat.S_ISDIR(found.st_mode) and private and found.st_uid == os.geteuid()):
        raise PrivilegeError(
            "this is no place for a control socket: others may enter or replace it",
            file=str(folder),
            expected="a folder of this user with mode 0700",
            hint="remove it, or give it to this user alone",
        )


def _bound(path: Path) -> socket.socket:
    """A socket that listens; it gets its name when it does, so that a name without one is stale.

    Raises:
        KcapError: It can't be made.
    """
    early = path.with_name(f".{path.name}")
    listening = socket.socket(socket.AF_UNIX)
    before = os.umask(stat.S_IRWXG | stat.S_IRWXO | stat.S_IXUSR)
    try:
        early.unlink(missing_ok=True)
        listening.bind(str(early))
        listening.listen(CLIENTS)
        listening.setblocking(False)
        if path.exists():
            raise FileExistsError(0, "a recorder of another PID namespace has the name")
        early.rename(path)
    except OSError as e:
        listening.close()
        with contextlib.suppress(OSError):  # the error on its way says what went wrong
            early.unlink()
        raise KcapError(f"no control socket: {e.strerror or e}", file=str(path)) from e
    finally:
        os.umask(before)
    return listening
