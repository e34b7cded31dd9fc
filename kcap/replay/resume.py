"""Going on where a run was interrupted: the place up to which every output has everything.

What a run has dealt with is kept in a small file, which is replaced as a whole: JSON with the
input, digests of the options, and the row behind the last one that all outputs have for certain.
What came behind it is sent once more: nothing is skipped, something may come twice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from kcap.errors import BadInputError, KcapError, OutputError, VersionError
from kcap.format.reader import CaptureReader
from kcap.model.stream import Source
from kcap.replay.manifest import content_of

VERSION: Final = 1
"""Of the file's form."""

BYTES_MAX: Final = 1 << 20
"""A longer file is no such file."""

_PRIVATE: Final = 0o600


@dataclass(frozen=True, slots=True)
class Place:
    """How far a run has come."""

    row: int = 0
    """The input's row behind the last one that was dealt with."""
    events_in: int = 0
    events_out: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)
    """The length of each output file there."""
    started: bool = False
    """The outputs are there."""
    done: bool = False
    """The run has ended."""


@dataclass(frozen=True, slots=True)
class Run:
    """What must be the same for a run to go on."""

    capture: Mapping[str, str | None]
    options: Mapping[str, str]
    """A digest of the value of each option: there may be secrets among them."""

    @classmethod
    def of(cls, source: Source, digest: Callable[[], str], options: Mapping[str, Any]) -> Run:
        """Describe a run.

        Args:
            source: The input.
            digest: Gives the digest of its bytes, where it has no id of its own.
            options: The options that the output depends on, as plain JSON values.

        Returns:
            The description.
        """
        if isinstance(source, CaptureReader):
            captured = {"file_id": source.header.file_id.hex(), "content": content_of(source)}
        else:
            captured = {"file_id": None, "content": digest()}
        return cls(captured, {name: _digest(value) for name, value in sorted(options.items())})

    def differing(self, other: Run) -> list[str]:
        """What is not the same.

        Args:
            other: The run that goes on.

        Returns:
            ``the capture`` and names of options; a capture may have been closed in the meantime.
        """
        found = []
        for name, said in self.capture.items():
            grown = name == "content" and said is None and other.capture.get("file_id") is not None
            if said != other.capture.get(name) and not grown:
                found.append("the capture")
        names = sorted({*self.options, *other.options})
        found += [f"--{n}" for n in names if self.options.get(n) != other.options.get(n)]
        return list(dict.fromkeys(found))


class Checkpoint:
    """The file that says how far a run has come.

    Args:
        path: The file; need not be there.
        run: The run.
    """

    def __init__(self, path: str, run: Run) -> None:
        self._path = path
        self._run = run
        self._last: Place | None = None

    def load(self) -> Place:
        """Where to go on.

        Returns:
            The place; the start where there is no such file.

        Raises:
            BadInputError: The file is none of this kind.
            VersionError: It is of a later form.
            KcapError: It is of another run, or can't be read.
        """
        try:
            with Path(self._path).open("rb") as stream:
                raw = stream.read(BYTES_MAX + 1)
        except FileNotFoundError:
            return Place()
        except OSError as e:
            raise KcapError(f"can't be read: {e.strerror}", file=self._path) from e
        run, place = _unpacked(raw, self._path)
        if other := run.differing(self._run):
            raise KcapError(
                f"this is the place of another run: {', '.join(other)} differ"
                + ("s" if len(other) == 1 else ""),
                file=self._path,
                hint="give the same options, or another file to begin anew",
            )
        self._last = place
        return place

    def save(self, place: Place) -> None:
        """Note how far the run has come.

        Args:
            place: All outputs have everything before it.

        Raises:
            OutputError: It can't be written.
        """
        if place == self._last:
            return
        found = {"kcap_resume": VERSION, **asdict(self._run), "place": asdict(place)}
        raw = f"{json.dumps(found, sort_keys=True, indent=2)}\n".encode()
        try:
            _replace(Path(self._path), raw)
        except OSError as e:
            raise OutputError(f"can't be written: {e.strerror}", file=self._path) from e
        self._last = place


class Confirmed:
    """Finds the place up to which outputs that lag behind have everything.

    Args:
        counts: Of each such output, how many messages it is known to have.
    """

    def __init__(self, counts: Sequence[Callable[[], int]]) -> None:
        self._counts = counts
        self._waiting: deque[tuple[list[int], Place]] = deque()
        self._place: Place | None = None

    def note(self, handed: Sequence[int], place: Place) -> None:
        """Note that outputs were given everything before a place.

        Args:
            handed: Of each output, how many messages that were.
            place: The place.
        """
        if self._counts:
            self._waiting.append((list(handed), place))
        else:
            self._place = place

    def place(self) -> Place | None:
        """The last place that all outputs have reached; None where they have not reached any."""
        counts = [count() for count in self._counts]
        while self._waiting:
            handed, place = self._waiting[0]
            if any(has < needed for has, needed in zip(counts, handed, strict=True)):
                break
            self._place = place
            self._waiting.popleft()
        return self._place


def _digest(value: Any) -> str:  # noqa: ANN401  (a plain JSON value)
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _unpacked(raw: bytes, path: str) -> tuple[Run, Place]:
    """Read such a file."""
    try:
        found = json.loads(raw) if len(raw) <= BYTES_MAX else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or "kcap_resume" not in found:
        hint = "name a file that is not there to begin anew"
        expected = "what kcap replay --resume has written"
        raise BadInputError("this is no place of a run", file=path, expected=expected, hint=hint)
    if found["kcap_resume"] != VERSION:
        raise VersionError(
            f"a place of form {found['kcap_resume']}", file=path, hint="a newer kcap"
        )
    try:
        place = Place(**found["place"])
        run = Run(dict(found["capture"]), dict(found["options"]))
        sizes = dict(place.sizes)
    except (KeyError, TypeError, ValueError) as e:
        raise BadInputError("the place of a run is damaged", file=path) from e
    numbers = (place.row, place.events_in, place.events_out, *sizes.values())
    if not all(type(n) is int and n >= 0 for n in numbers) or {
        type(place.done),
        type(place.started),
    } != {bool}:
        raise BadInputError("the place of a run is damaged", file=path)
    return run, place


def _replace(path: Path, raw: bytes) -> None:
    """Put a file in place of another: whoever looks sees the one or the other, never a part."""
    temporary = path.with_name(f"{path.name}.partial")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(temporary, flags, _PRIVATE), "wb") as stream:
        stream.write(raw)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
