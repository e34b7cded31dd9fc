"""What is in executable files: of artifacts, never of the host's own files."""

from __future__ import annotations

from typing import Any


def describe(content: bytes) -> dict[str, Any]:
    """What can be said of a file by its content.

    Args:
        content: The file's bytes; of a long one the first `kcap.binaries.parts.CONTENT_BYTES`.

    Returns:
        Plain JSON values: ``format`` (``pe``, ``elf``, or None for anything else), ``entropy`` in
        bits a byte, and what `kcap.binaries.pe.facts` or `kcap.binaries.elf.facts` say, under the
        format's name. Of a file that only begins like one, ``damaged`` says what is wrong.

    Raises:
        MissingExtraError: It is a PE, and the extra ``binaries`` is not installed.
    """
    from kcap.binaries import elf, parts, pe

    content = content[: parts.CONTENT_BYTES]
    found: dict[str, Any] = {"format": None, "entropy": parts.entropy(content)}
    for name, sniff, facts in (("pe", pe.sniff, pe.facts), ("elf", elf.sniff, elf.facts)):
        if sniff(content):
            try:
                found |= {"format": name, name: facts(content)}
            except parts.MalformedError as e:
                found |= {"format": name, "damaged": e.what}
            break
    return found
