"""Questions and answers between the process that has kept its rights and the one that has none.

A question is a name and bytes, an answer bytes or an error, and maybe a descriptor. Nothing else is
understood, and every length has a limit: whoever has taken over the worker can say what it likes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from kcap.errors import FullError, KcapError, OutputError

NAME_BYTES: Final = 64
QUESTION_BYTES: Final = 1 << 16
ANSWER_BYTES: Final = 16 << 20
"""The longest name, question and answer."""

_HEAD: Final = struct.Struct("<BII")
_QUESTION, _ANSWER, _ERROR = range(3)
_PART: Final = 1 << 18


class GoneError(KcapError):
    """There is nobody at the other end any more."""


_ERRORS: Final[tuple[type[KcapError], ...]] = (KcapError, OutputError, FullError)
"""The errors that go over as what they are; others as the first. Behind them is a file's name that
is taken."""


class Answer(NamedTuple):
    """What is said to a question."""

    content: bytes = b""
    descriptor: int | None = None
    """Goes over to whoever asked, and is closed here."""


Serve = Callable[[bytes], Answer]


class Channel:
    """One end.

    Args:
        end: A connected stream socket.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._limit_s: float | None = None

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Two ends."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return cls(one), cls(other)

    def wait_at_most(self, limit_s: float) -> None:
        """Take an end that does not come to the end of what it says for one that is gone.

        Args:
            limit_s: Seconds for a message.
        """
        self._limit_s = limit_s
        self._end.settimeout(limit_s)

    def fileno(self) -> int:
        """The descriptor, to wait for questions with."""
        return self._end.fileno()

    def close(self) -> None:
        """Close this end."""
        self._end.close()

    def ask(self, name: str, argument: bytes = b"") -> bytes:
        """Ask, and wait for the answer.

        Args:
            name: The question.
            argument: What stands with it.

        Returns:
            The answer.

        Raises:
            GoneError: Nobody answers.
            KcapError: That is the answer.
        """
        content, descriptors = self._asked(name, argument)
        for descriptor in descriptors:
            os.close(descriptor)
        return content

    def descriptor(self, name: str, argument: bytes = b"") -> int:
        """Ask for a descriptor.

        Args:
            name: The question.
            argument: What stands with it.

        Returns:
            The descriptor, which is ours.

        Raises:
            GoneError: Nobody answers.
            KcapError: That is the answer, or it came without a descriptor.
        """
        _, descriptors = self._asked(name, argument)
        if not descriptors:
            raise KcapError(f"{name!r} was answered without a descriptor")
        return descriptors[0]

    def serve(self, answers: Mapping[str, Serve]) -> bool:
        """Answer one question, which must be there or come soon.

        Args:
            answers: What can be asked.

        Returns:
            False where nobody will ask again.
        """
        try:
            kind, name, argument, descriptors = self._receive(QUESTION_BYTES)
        except KcapError:
            return False
        for descriptor in descriptors:
            os.close(descriptor)
        if kind != _QUESTION:
            return False
        try:
            if name not in answers:
                raise KcapError(f"there is no answer to {name!r}")
            answer = answers[name](argument)
        except (KcapError, FileExistsError) as error:
            return self._told(error)
        try:
            self._send(_ANSWER, "", answer.content, answer.descriptor)
        except OSError:
            return False
        finally:
            if answer.descriptor is not None:
                os.close(answer.descriptor)
        return True

    def _told(self, error: KcapError | FileExistsError) -> bool:
        kind, fields = len(_ERRORS), [str(error), "", "", ""]
        if isinstance(error, KcapError):
            kind = _ERRORS.index(type(error)) if type(error) in _ERRORS else 0
            fields = [error.what, error.file or "", error.expected or "", error.hint or ""]
        with contextlib.suppress(OSError):
            self._send(_ERROR + kind, "", "\0".join(fields).encode("utf-8", "replace"), None)
            return True
        return False

    def _asked(self, name: str, argument: bytes) -> tuple[bytes, list[int]]:
        try:
            self._send(_QUESTION, name, argument, None)
        except OSError as e:
            raise _gone() from e
        kind, _, content, descriptors = self._receive(ANSWER_BYTES)
        if kind >= _ERROR:
            raise _error(kind - _ERROR, content.decode("utf-8", "replace"))
        return content, descriptors

    def _send(self, kind: int, name: str, content: bytes, descriptor: int | None) -> None:
        spelled = name.encode()
        head = _HEAD.pack(kind, len(spelled), len(content)) + spelled
        sent = socket.send_fds(self._end, [head], [] if descriptor is None else [descriptor])
        self._end.sendall(head[sent:] + content)

    def _receive(self, limit: int) -> tuple[int, str, bytes, list[int]]:
        """A message, and the descriptors that came with it."""
        until_s = None if self._limit_s is None else time.monotonic() + self._limit_s
        try:
            flags = socket.MSG_CMSG_CLOEXEC
            head, descriptors, _, _ = socket.recv_fds(self._end, _HEAD.size, 1, flags)
            head += self._exactly(_HEAD.size - len(head), until_s) if head else b""
            if not head:
                raise _gone()
            kind, name_bytes, length = _HEAD.unpack(head)
            if name_bytes > NAME_BYTES or length > limit:
                raise KcapError("a message between the recorder's processes is too long")
            name = self._exactly(name_bytes, until_s).decode("utf-8", "replace")
            return kind, name, self._exactly(length, until_s), list(descriptors)
        except OSError as e:
            raise _gone() from e
        finally:
            if until_s is not None:
                self._end.settimeout(self._limit_s)

    def _exactly(self, count: int, until_s: float | None) -> bytes:
        parts = []
        while count:
            if until_s is not None:
                # Of each part alone it could be whole days: a byte now and then.
                self._end.settimeout(max(0.001, until_s - time.monotonic()))
            part = self._end.recv(min(count, _PART))
            if not part:
                raise _gone()
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


def _error(kind: int, text: str) -> Exception:
    what, file, expected, hint = (*text.split("\0", 3), "", "", "")[:4]
    if kind >= len(_ERRORS):
        return FileExistsError(what)
    return _ERRORS[kind](what, file=file or None, expected=expected or None, hint=hint or None)


def _gone() -> GoneError:
    return GoneError("the recorder's process that has its rights is gone")
