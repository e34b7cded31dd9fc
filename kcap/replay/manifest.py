"""Run manifests: what went into a run and what came out, so that it can be repeated and compared.

A manifest is a JSON object with sorted keys::

    {"capture": {"name", "format", "bytes", "sha256", "file_id", "content_hash"},
     "counts": {"in", "out", "alerts", "lost": {kind: number}},
     "exit_code": 0,
     "kcap_manifest": 1,
     "made_by": {"kcap", "format", "python", "pyarrow", ...},
     "options": {"where", "era", "start", "format", ...},
     "outputs": [{"name", "format", "bytes", "sha256"}, ...],
     "parts": [{"part": "filament", "name", "sha256", ...}, ...]}

It holds no time and no secret. Versions are told and not compared: that another kcap or pyarrow
makes the same of the capture is what the comparison is for.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, Final

import kcap
from kcap.errors import BadInputError, KcapError, VersionError
from kcap.format.payloads import MAJOR, MINOR
from kcap.format.reader import CaptureReader
from kcap.model.stream import Source
from kcap.replay.pipeline import Summary

VERSION: Final = 1
"""Of the manifest's form."""

BYTES_MAX: Final = 16 << 20
"""A longer file is no manifest."""

_TELLS: Final = ("made_by",)
"""What is not compared."""

_SHAPE: Final = {
    "capture": dict,
    "counts": dict,
    "exit_code": int,
    "made_by": dict,
    "options": dict,
    "outputs": list,
    "parts": list,
}

_LIBRARIES: Final = ("numpy", "pyarrow", "zstandard")
_SHOWN_CHARS: Final = 100

Json = Any
"""A plain JSON value."""


class Digested:
    """A stream that hashes what is written to it.

    Args:
        stream: Where the bytes go; everything but `write` is that stream's.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.size = 0
        """Bytes that the stream has taken."""

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write to the stream.

        Args:
            data: The bytes.

        Returns:
            How many of them it took.
        """
        taken = self._stream.write(data)
        self._hash.update(memoryview(data).cast("B")[:taken])
        self.size += taken
        return taken

    @property
    def sha256(self) -> str:
        """The digest of what was taken so far, in hex."""
        return self._hash.hexdigest()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  (whatever the stream has)
        return getattr(self._stream, name)


def capture(path: str, source: Source) -> dict[str, Json]:
    """Describe the input of a run.

    Args:
        path: The file.
        source: What reads it.

    Returns:
        The manifest's ``capture``.

    Raises:
        KcapError: It can't be read.
    """
    size, digest = file_digest(path)
    file_id = source.header.file_id.hex() if isinstance(source, CaptureReader) else None
    return {
        "bytes": size,
        "content_hash": content_of(source),
        "file_id": file_id,
        "format": source.info.format,
        "name": path,
        "sha256": digest,
    }


def content_of(source: Source) -> str | None:
    """What the events of a capture are, however it is stored.

    Args:
        source: What reads it.

    Returns:
        The ``content_hash`` of a closed capture; None of anything else.
    """
    footer = source.footer if isinstance(source, CaptureReader) else None
    return None if footer is None else footer.totals.get("content_hash")


def made(
    captured: Mapping[str, Json],
    options: Mapping[str, Json],
    parts: Sequence[Mapping[str, Json]],
    outputs: Sequence[Mapping[str, Json]],
    summary: Summary,
) -> dict[str, Json]:
    """Put a manifest together.

    Args:
        captured: What `capture` gave.
        options: The options that the output depends on.
        parts: Filaments, rules, transformers: what they are called, digests of what they are.
        outputs: What came out, in order.
        summary: What the run did.

    Returns:
        The manifest.
    """
    return {
        "capture": dict(captured),
        "counts": {
            "alerts": summary.alerts,
            # Where a limit ends a run, it depends on --speed how much more was read.
            "in": None if "limit" in options else summary.events_in,
            "lost": summary.lost(),
            "out": summary.events_out,
        },
        "exit_code": summary.exit_code,
        "kcap_manifest": VERSION,
        "made_by": versions(),
        "options": dict(options),
        "outputs": [dict(output) for output in outputs],
        "parts": [dict(part) for part in parts],
    }


def versions() -> dict[str, str]:
    """The versions of what makes the output."""
    import zstandard

    found = {name: _version(name) for name in _LIBRARIES}
    found["format"] = f"{MAJOR}.{MINOR}"
    found["kcap"] = kcap.__version__
    found["libzstd"] = ".".join(map(str, zstandard.ZSTD_VERSION))
    found["python"] = ".".join(map(str, sys.version_info[:3]))
    return dict(sorted(found.items()))


def packed(manifest: Mapping[str, Json]) -> bytes:
    """A manifest as it stands in a file: the same values give the same bytes.

    Args:
        manifest: The manifest.

    Returns:
        JSON with sorted keys, indented, UTF-8, a line feed at its end.
    """
    text = json.dumps(manifest, sort_keys=True, indent=2, ensure_ascii=False)
    return f"{text}\n".encode()


def read(path: str) -> dict[str, Json]:
    """Read a manifest.

    Args:
        path: The file.

    Returns:
        The manifest; its parts are of the right types.

    Raises:
        BadInputError: It is none.
        VersionError: It is of a later form.
        KcapError: It can't be read.
    """
    raw = _bytes_of(path)
    expected = "what kcap replay --manifest has written"
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as e:
        line = getattr(e, "lineno", None)
        raise BadInputError("this is no JSON", file=path, line=line, expected=expected) from e
    if not isinstance(found, dict) or type(found.get("kcap_manifest")) is not int:
        raise BadInputError("this is no run manifest", file=path, expected=expected)
    if found["kcap_manifest"] != VERSION:
        what = f"a run manifest of form {found['kcap_manifest']}"
        raise VersionError(what, file=path, expected=f"form {VERSION}", hint="use a newer kcap")
    for name, kind in _SHAPE.items():
        if type(found.get(name)) is not kind:
            raise BadInputError(f"its {name!r} is missing or no {kind.__name__}", file=path)
    for name in ("name", "sha256"):
        if type(found["capture"].get(name)) is not str:
            raise BadInputError(f"its capture has no {name!r}", file=path)
    if not all(isinstance(each, dict) for each in (*found["outputs"], *found["parts"])):
        raise BadInputError("an output or a part is no JSON object", file=path)
    return found


def find_capture(manifest: Mapping[str, Json], path: str) -> str:
    """Find the capture that a manifest is about.

    Args:
        manifest: The manifest.
        path: Its file.

    Returns:
        The capture's path: beside the manifest, else as it was given, else of that name beside the
        manifest. It is the very same file, to the byte.

    Raises:
        KcapError: There is none, or another one.
    """
    name = manifest["capture"]["name"]
    folder = Path(path).parent
    places = dict.fromkeys([folder / name, Path(name), folder / Path(name).name])
    there = [place for place in places if place.is_file()]
    if not there:
        tried = ", ".join(map(str, places))
        raise KcapError("the capture of this run is missing", file=name, expected=f"it at {tried}")
    expected = manifest["capture"]["sha256"]
    digests = {place: file_digest(str(place))[1] for place in there}
    for place, digest in digests.items():
        if digest == expected:
            return str(place)
    place, digest = next(iter(digests.items()))
    raise KcapError(
        f"the capture is not the one of this run: its SHA-256 is {digest}",
        file=str(place),
        expected=expected,
    )


def differences(says: Mapping[str, Json], now: Mapping[str, Json]) -> list[str]:
    """What two manifests of a run say differently.

    Args:
        says: The one that was kept.
        now: The one of the run that was made to compare.

    Returns:
        A line a difference: where it is, and both values.
    """
    kept = {name: value for name, value in says.items() if name not in _TELLS}
    new = {name: value for name, value in now.items() if name not in _TELLS}
    return list(_differing("", kept, new))


def other_versions(says: Mapping[str, Json]) -> list[str]:
    """What made a manifest in another version than is here.

    Args:
        says: The manifest.

    Returns:
        A line for each.
    """
    return list(_differing("made_by", says["made_by"], versions()))


def _differing(at: str, says: Json, now: Json) -> Iterator[str]:
    if isinstance(says, dict) and isinstance(now, dict):
        for name in sorted({*says, *now}):
            inner = f"{at}.{name}" if at else name
            yield from _differing(inner, says.get(name, _ABSENT), now.get(name, _ABSENT))
    elif isinstance(says, list) and isinstance(now, list):
        for i in range(max(len(says), len(now))):
            pair = (each[i] if i < len(each) else _ABSENT for each in (says, now))
            yield from _differing(f"{at}[{i}]", *pair)
    elif type(says) is not type(now) or says != now:
        yield f"{at}: {_shown(says)} in the manifest, {_shown(now)} now"


class _Absent:
    """Stands for a value that is not there."""


_ABSENT: Final = _Absent()


def _shown(value: Json) -> str:
    if isinstance(value, _Absent):
        return "nothing"
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"


def file_digest(path: str) -> tuple[int, str]:
    """Size and SHA-256 of a file.

    Args:
        path: The file.

    Returns:
        Bytes, and the digest in hex.

    Raises:
        KcapError: It can't be read.
    """
    try:
        with Path(path).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return stream.tell(), digest
    except OSError as e:
        raise KcapError(f"can't be read: {e.strerror}", file=path) from e


def _bytes_of(path: str) -> bytes:
    try:
        with Path(path).open("rb") as stream:
            raw = stream.read(BYTES_MAX + 1)
    except OSError as e:
        raise KcapError(f"can't be opened: {e.strerror}", file=path) from e
    if len(raw) > BYTES_MAX:
        raise BadInputError("this is too long for a run manifest", file=path)
    return raw


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
