"""Processes of kcap that have few rights: what runs other people's code, or speaks to servers.

Such a process is a fresh Python that loads one module of kcap, its *target*, which has two
functions. ``prepare(settings)`` still has the rights of its parent: it loads what is to be loaded
and opens files. Then the rights are given up, for good, and ``run(prepared, requests, replies)``
does the work: it reads from one pipe and writes to the other.

On Linux it then has no capability, can't execute, fork, trace, mount, send signals or, without
``network``, make a socket; where the parent is root it is an ordinary user, and where the kernel
has Landlock it can't look into other processes of its own user. Elsewhere it is only a process of
its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final, Self

from kcap import trust
from kcap.errors import KcapError

if TYPE_CHECKING:
    from kcap.guard.rights import User

interpreter: list[str] = [sys.executable]
"""How this Python is started; a bundle, which brings its own loader, says so itself."""

_ENVIRONMENT: Final = {
    "LC_ALL": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "TZ": "UTC",
}
"""All that it knows of the environment: what it does must not depend on the parent's."""

_KEPT: Final = ("OPENSSL_CONF", "SYSTEMROOT", "TEMP", "TMP")
"""What Windows can't start a program without; and where a bundle lets OpenSSL read nothing."""

_BOOT: Final = (
    "import json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given['path']; "
    "from kcap.guard import child; child.main(given)"
)
_READY_S: Final = 30.0
_GRACE_S: Final = 5.0
_LINE_BYTES: Final = 1 << 16


class Child:
    """Such a process, seen from its parent.

    Args:
        target: Name of the module that it runs.
        settings: What ``prepare`` gets; plain JSON values.
        network: It may make sockets.
        memory_bytes: Address space that it may have once it is prepared; None for no limit.
        user: Who it becomes; None to stay who this is.
        stderr_pipe: Its standard error is `errors` instead of this process's.

    Raises:
        KcapError: It could not be started, or ``prepare`` refused.
    """

    def __init__(
        self,
        target: str,
        settings: Mapping[str, Any],
        *,
        network: bool,
        memory_bytes: int | None = None,
        user: User | None = None,
        stderr_pipe: bool = False,
    ) -> None:
        given = {
            "path": [str(trust.HOME), *(p for p in sys.path if p)],
            "target": target,
            "network": network,
            "memory_bytes": memory_bytes,
            "user": None if user is None else list(user),
        }
        self._name = target.rpartition(".")[2]
        self._owner = os.getpid()
        try:
            self._process = subprocess.Popen(  # noqa: S603  (this Python, and nothing from outside)
                [*interpreter, "-P", "-s", "-S", "-c", _BOOT, json.dumps(given)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if stderr_pipe else None,
                env=_ENVIRONMENT | {k: os.environ[k] for k in _KEPT if k in os.environ},
                # Keys of the terminal are for the parent, which passes on what they mean.
                start_new_session=True,
            )
        except OSError as e:
            raise KcapError(f"can't start a {self._name}: {e.strerror}") from e
        self.pid = self._process.pid
        try:
            self.requests.write(json.dumps(dict(settings)).encode() + b"\n")
            self.requests.flush()
            self._await_ready()
        except BaseException:
            self.kill()
            raise

    @property
    def requests(self) -> IO[bytes]:
        """What it reads."""
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def replies(self) -> IO[bytes]:
        """What it writes."""
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def errors(self) -> IO[bytes]:
        """Its standard error, where that is a pipe."""
        assert self._process.stderr is not None
        return self._process.stderr

    def ended(self) -> int | None:
        """How it ended.

        Returns:
            Its exit code, or minus the signal that ended it; None while it runs. In a process that
            was forked from its parent nobody can tell: 0 where its pipe is closed.
        """
        if self._is_parent:
            return self._process.poll()
        hung_up = select.poll()
        hung_up.register(self.replies, 0)
        return 0 if hung_up.poll(0) else None

    def close(self, grace_s: float = _GRACE_S) -> int:
        """Let it see the end of its requests, and wait until it ends.

        Args:
            grace_s: Seconds that it has for that; then it is killed.

        Returns:
            See `ended`.
        """
        with contextlib.suppress(OSError, ValueError):
            self.requests.close()
        code = 0
        if self._is_parent:
            try:
                code = self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.kill()
                code = self._process.returncode
        self._let_go()
        return code

    def kill(self) -> None:
        """End it at once; may be called twice.

        In a process that was forked from its parent, which may kill nobody, its pipes are closed;
        it ends with its parent at the latest.
        """
        if self._is_parent:
            with contextlib.suppress(OSError):
                self._process.kill()
            self._process.wait()
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill() if self.ended() is None else self._let_go()

    @property
    def _is_parent(self) -> bool:
        return os.getpid() == self._owner

    def _let_go(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError, ValueError):
                    pipe.close()

    def _await_ready(self) -> None:
        if sys.platform != "win32" and not select.select([self.replies], [], [], _READY_S)[0]:
            raise KcapError(f"a {self._name} did not get ready within {_READY_S:.0f} s")
        line = self.replies.readline(_LINE_BYTES)
        try:
            said = json.loads(line)
        except ValueError:
            code = self._process.wait()
            raise KcapError(f"a {self._name} ended before it began (exit code {code})") from None
        if said is not None:
            raise KcapError(**said)


def main(given: Mapping[str, Any]) -> None:
    """What such a process does.

    Args:
        given: What `Child` said on its command line.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, replies = _pipes()
    settings = json.loads(requests.readline())
    try:
        target = importlib.import_module(given["target"])
        prepared = target.prepare(settings)
        _confine(given)
    except KcapError as e:
        places = ("file", "offset", "line", "expected", "hint")
        said = {"what": e.what} | {name: getattr(e, name) for name in places}
        replies.write(json.dumps(said).encode() + b"\n")
        replies.flush()
        sys.exit(e.exit_code)
    replies.write(b"null\n")
    replies.flush()
    target.run(prepared, requests, replies)


def _pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes, out of the way of libraries that print or ask something."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def _confine(given: Mapping[str, Any]) -> None:
    """Give up what the target does not need."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if (limit := given["memory_bytes"]) is not None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if not sys.platform.startswith("linux"):
        return
    from kcap.guard import landlock, rights, seccomp

    if given["user"] is not None:
        rights.become(rights.User(*given["user"]))
    if rights.keep(()):
        raise KcapError("a thread of a library kept its rights", hint="report it")
    landlock.keep_apart()
    seccomp.forbid(network=given["network"])
    rights.end_with_parent(signal.SIGTERM)
