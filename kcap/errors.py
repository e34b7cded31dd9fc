"""Every error kcap raises on purpose.

::

    KcapError
    ├── NotACaptureError     the content is no capture that kcap can read
    ├── VersionError         a newer major version, or a required feature unknown here
    ├── DamagedError         a checksum, a structure or a value does not hold
    ├── TruncatedError       the input ends before what it announced
    ├── LimitError           a length or count beyond what the specification allows
    ├── BadInputError        a foreign record (a line, an event) that cannot be understood
    ├── FilterError          a filter that can't be understood (kcap.filter.errors)
    ├── ChoiceError          what to record can't be understood (kcap.readers.live.choosing)
    ├── PrivilegeError       this host or user may not do what was asked
    ├── MissingExtraError    an optional dependency is not installed
    └── OutputError          the output cannot be written, or would overwrite something
        └── FullError        there is no room left for it
"""

from __future__ import annotations


class KcapError(Exception):
    """An error a user can act on: what is wrong, where, what was expected, what to do.

    Args:
        what: What is wrong, without the file's name.
        file: The file or stream concerned, as the user named it.
        offset: Byte position in it.
        record: Record number in a ``.kcap`` file.
        chunk: Chunk number in a ``.kcap`` file.
        line: Line number of a text input, from 1.
        expected: What would have been right.
        hint: A command or an action that helps.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        file: str | None = None,
        offset: int | None = None,
        record: int | None = None,
        chunk: int | None = None,
        line: int | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.file = file
        self.offset = offset
        self.record = record
        self.chunk = chunk
        self.line = line
        self.expected = expected
        self.hint = hint

    @property
    def place(self) -> str:
        """Where it is, as text; empty when the place is not known."""
        at = []
        if self.line is not None:
            at.append(f"line {self.line}")
        if self.offset is not None:
            at.append(f"byte {self.offset}")
        inside = []
        if self.record is not None:
            inside.append(f"record {self.record}")
        if self.chunk is not None:
            inside.append(f"chunk {self.chunk}")
        text = ", ".join(at)
        if inside:
            text += f" ({', '.join(inside)})" if text else ", ".join(inside)
        return text

    def __str__(self) -> str:
        """One line: file, what, place, expectation."""
        text = f"{self.file}: {self.what}" if self.file else self.what
        if self.place:
            text += f" at {self.place}"
        if self.expected:
            text += f": expected {self.expected}"
        return text


class NotACaptureError(KcapError):
    """The content is no capture that kcap can read."""


class VersionError(KcapError):
    """The capture needs a newer kcap."""


class DamagedError(KcapError):
    """A checksum, a structure or a value does not hold."""


class TruncatedError(KcapError):
    """The input ends before what it announced."""


class LimitError(KcapError):
    """A length or a count beyond what the specification allows."""


class BadInputError(KcapError):
    """A foreign record that cannot be understood."""


class PrivilegeError(KcapError):
    """This host or this user may not do what was asked."""


class MissingExtraError(KcapError):
    """An optional dependency is not installed."""


class OutputError(KcapError):
    """The output cannot be written, or would overwrite something."""


class FullError(OutputError):
    """There is no room left for the output: what is there already is whole."""


class LossWarning(UserWarning):
    """A table lacks events, because they were lost, skipped or damaged in the input."""
