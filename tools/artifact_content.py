"""What ``kcap artifacts show`` says of the content of an artifact."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from kcap.errors import KcapError

if TYPE_CHECKING:
    from kcap.format.blobs import Manifest
    from kcap.format.reader import CaptureReader

_ITEMS_SHOWN: Final = 40


def described(reader: CaptureReader, manifest: Manifest) -> dict[str, Any]:
    """What the content of an artifact says of itself.

    Args:
        reader: The capture.
        manifest: The artifact; zeros stand for what is missing of it.

    Returns:
        What `kcap.binaries.describe` says of its first 64 MiB, or ``why`` nothing can be said.
    """
    from kcap.binaries import describe, parts

    if sum(extent.length for extent in manifest.missing) == manifest.size:
        return {"why": "none of its bytes are there"}
    content = bytearray()
    for part in reader.blob(manifest, lenient=True):
        content += part[: parts.CONTENT_BYTES - len(content)]
        if len(content) >= parts.CONTENT_BYTES:
            break
    try:
        return describe(bytes(content))
    except KcapError as e:
        return {"why": f"{e.what}; {e.hint}" if e.hint else e.what}


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The same for people, not yet safe to print.

    Args:
        found: What `described` gives.

    Yields:
        Lines of a name and a value.
    """
    for name, value in found.items():
        if isinstance(value, Mapping):
            for inner, said in value.items():
                yield from _line(f"{name}.{inner}", said)
        elif value is not None:
            yield from _line(name, value)


def _line(name: str, value: object) -> Iterator[str]:
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for item in value[:_ITEMS_SHOWN]:
            yield f"{name:<14} {_text(item)}"
        if len(value) > _ITEMS_SHOWN:
            yield f"{name:<14} and {len(value) - _ITEMS_SHOWN:,} more; --json has all"
    else:
        yield f"{name:<14} {_text(value)}"


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(said)}" for name, said in value.items())
    if isinstance(value, Sequence):
        more = [f"and {len(value) - _ITEMS_SHOWN:,} more"] if len(value) > _ITEMS_SHOWN else []
        return ", ".join([*map(_text, value[:_ITEMS_SHOWN]), *more])
    return json.dumps(value)
