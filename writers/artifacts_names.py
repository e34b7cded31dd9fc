"""Names of extracted artifacts: whatever a capture says, a name that is safe everywhere."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kcap.format.blobs import Manifest
from kcap.model.tracee_names import INDEXES, PCAP, PROFILE, kernel_device

ID_CHARS: Final = 12
"""Characters of an artifact's short name."""

INCOMPLETE: Final = ".incomplete"
"""How the name of a file ends that lacks a part."""

_TAKEN: Final = {*INDEXES, PCAP, PROFILE}
_NAME_BYTES: Final = 120
_FOLDER_BYTES: Final = 80
_KEPT: Final = frozenset("._-+@=,~ ")
_RESERVED: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def artifact_id(manifest: Manifest) -> str:
    """What an artifact is called: its content's hash, or where there is none its manifest's.

    Args:
        manifest: The artifact.

    Returns:
        64 hex digits of the content, or ``m`` and 63 of the manifest: the same in every copy of
        the capture.
    """
    if manifest.sha256 is not None:
        return manifest.sha256
    return f"m{hashlib.sha256(manifest.pack()).hexdigest()[:-1]}"


def kind_of(manifest: Manifest) -> str:
    """The kind of an artifact.

    Args:
        manifest: The artifact.

    Returns:
        ``exec``, ``write`` and so on; ``other`` where its capture does not say.
    """
    kind = manifest.details.get("kind")
    return kind if isinstance(kind, str) and kind else "other"


def number(details: Mapping[str, Any], name: str) -> int | None:
    """A detail that is an integer.

    Args:
        details: Details of a manifest.
        name: Which one.

    Returns:
        The integer; None where it is not there or something else.
    """
    value = details.get(name)
    return value if type(value) is int else None


def text(details: Mapping[str, Any], name: str) -> str | None:
    """A detail that is a text.

    Args:
        details: Details of a manifest.
        name: Which one.

    Returns:
        The text; None where it is not there, empty or something else.
    """
    value = details.get(name)
    return value if isinstance(value, str) and value else None


def safe(name: str, most: int = _NAME_BYTES) -> str:
    """A name without what any system gives a meaning to.

    Args:
        name: Any text.
        most: Bytes that it may take.

    Returns:
        Letters and digits of any script and ``._-+@=,~`` and inner spaces, ``_`` for all else; no
        name of a Windows device, none that is empty,
        begins with a dot, dash or space, or ends with a dot or space.
    """
    plain = unicodedata.normalize("NFC", name[: 4 * most])
    kept = "".join(c if c.isalnum() or c in _KEPT else "_" for c in plain)
    cut = kept.encode()[:most].decode("utf-8", "ignore").strip(" ")
    if cut.startswith((".", "-")):
        cut = f"_{cut[1:]}"
    if cut.endswith("."):
        cut = f"{cut[:-1]}_"
    return f"_{cut}" if not cut or _RESERVED.fullmatch(cut) else cut


def basename(path: str | None) -> str:
    """The last part of a path of any system, as a safe name; ``-`` where there is none."""
    parts = [p for p in re.split(r"[/\\]", path or "") if p]
    return safe(parts[-1]) if parts else "-"


def flat(manifest: Manifest) -> tuple[str, ...]:
    """Where an artifact goes in a flat folder.

    Args:
        manifest: The artifact.

    Returns:
        Its name: kind, short name and the last part of its path.
    """
    name = f"{safe(kind_of(manifest), 20)}.{artifact_id(manifest)[:ID_CHARS]}"
    end = "" if manifest.complete else INCOMPLETE
    return (f"{name}.{basename(manifest.path or text(manifest.details, 'name'))}{end}",)


def container(manifest: Manifest) -> str:
    """The folder of a container in Tracee's layout: its id, ``host`` for none."""
    name = safe(text(manifest.details, "container_id") or "host", _FOLDER_BYTES)
    return f"_{name}" if name.casefold() in _TAKEN else name


def tracee(manifest: Manifest) -> tuple[str, ...]:
    """Where an artifact goes in Tracee's layout.

    Args:
        manifest: The artifact.

    Returns:
        ``out``, the container's folder and the name that Tracee would give it.
    """
    details, kind = manifest.details, kind_of(manifest)
    pid, time = number(details, "pid"), number(details, "time_ns")
    end = "" if manifest.complete else INCOMPLETE
    digest = f".{manifest.sha256}" if manifest.sha256 else ""
    if kind == "exec":
        name = f"exec.{time or 0}.{basename(manifest.path or text(details, 'name'))}{end}"
    elif kind == "mem":
        name = f"bin{_part('pid', pid)}.ts-{time or 0}{end}"
    elif kind == "module":
        # Without a hash it is one that lacks its end: so does Tracee mark it.
        name = f"module{_file(details)}{_part('pid', pid)}{digest}"
    elif kind == "bpf":
        called = safe(text(details, "name") or "", _FOLDER_BYTES)
        name = f"bpf.name-{called}{_part('pid', pid)}{digest or end}"
    elif kind in {"write", "read"} and number(details, "inode") is not None:
        # Writes to this device are kept apart by process.
        apart = _part("pid", pid) if manifest.path == "/dev/null" else ""
        name = f"{kind}{_file(details)}{apart}{end}"
    else:
        (name,) = flat(manifest)
    return ("out", container(manifest), name)


def _file(details: Mapping[str, Any]) -> str:
    dev, inode = number(details, "dev"), number(details, "inode")
    return _part("dev", None if dev is None else kernel_device(dev)) + _part("inode", inode)


def _part(name: str, value: int | None) -> str:
    return "" if value is None else f".{name}-{value}"


def folded(parts: Sequence[str]) -> tuple[str, ...]:
    """What a path is on a system that does not tell upper and lower case apart."""
    return tuple(unicodedata.normalize("NFKC", part.casefold()) for part in parts)


def numbered(parts: Sequence[str], count: int) -> tuple[str, ...]:
    """Another name for what clashes with others: ``NAME.2`` and so on."""
    return (*parts[:-1], f"{parts[-1]}.{count}")
