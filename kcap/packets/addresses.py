"""Addresses as text: as inet_ntop(3) spells them, on any system and by any Python."""

from __future__ import annotations

import re
from typing import Final

_ZEROS: Final = re.compile(r"(?:^|:)0(?::0)+(?=:|$)")


def ipv4(raw: bytes) -> str:
    """An address of IPv4.

    Args:
        raw: Its 4 bytes.

    Returns:
        The text.
    """
    return ".".join(map(str, raw))


def ipv6(raw: bytes) -> str:
    """An address of IPv6.

    Args:
        raw: Its 16 bytes.

    Returns:
        The text; the longest run of zeros is left out, an IPv4 address inside is dotted.
    """
    dotted = not any(raw[:10]) and (
        raw[10:12] == b"\xff\xff" or (not any(raw[10:12]) and any(raw[12:14]))
    )
    groups = [f"{raw[i] << 8 | raw[i + 1]:x}" for i in range(0, 12 if dotted else 16, 2)]
    text = ":".join([*groups, ipv4(raw[12:])] if dotted else groups)
    runs = list(_ZEROS.finditer(text))
    if not runs:
        return text
    longest = max(runs, key=lambda run: run[0].count("0"))
    return f"{text[: longest.start()]}::{text[longest.end() :].removeprefix(':')}"
