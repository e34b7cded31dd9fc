"""What PE and ELF have in common: sections, names, and limits of what is looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np

from kcap.errors import KcapError, MissingExtraError

_P = ParamSpec("_P")
_T = TypeVar("_T")

CONTENT_BYTES: Final = 64 << 20
"""What is looked at of one file."""

SECTIONS: Final = 96
"""Sections that are told of: Windows loads no image with more."""

IMPORTS: Final = 10_000
"""Names of imports, of exports and of symbols that are told of."""

NAME_BYTES: Final = 512
"""Longest name of a section, an import, an export."""

HASHED_BYTES: Final = 4 * CONTENT_BYTES
"""What all sections together may make to be hashed: a hostile file lets them all be the whole."""

_STEP: Final = 1 << 20

EXTRA: Final = "binaries"


class MalformedError(KcapError):
    """A file begins like an executable, and is none."""


def entropy(data: bytes | memoryview) -> float:
    """Shannon's entropy.

    Args:
        data: Any bytes.

    Returns:
        Bits a byte, 0 to 8, to six digits; 0 for no bytes.
    """
    if not len(data):
        return 0.0
    raw = np.frombuffer(data, np.uint8)
    counts = np.zeros(256, np.int64)
    for start in range(0, len(raw), _STEP):
        # (Each byte becomes a number of 8 bytes on its way.)
        counts += np.bincount(raw[start : start + _STEP], minlength=256)
    shares = counts[counts > 0] / len(data)
    # Rounded, as a sum of floats may differ in its last bits from machine to machine.
    return round(float(-(shares * np.log2(shares)).sum()), 6) + 0.0


class Hashing:
    """Tells of sections what is in them, and of no more than `HASHED_BYTES` in all.

    Args:
        content: The file.
    """

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)
        self._left = HASHED_BYTES

    def section(self, name: str, start: int, size: int) -> dict[str, Any]:
        """A section.

        Args:
            name: Its name.
            start: Where it begins in the file.
            size: Its length in the file, in bytes, as the file says.

        Returns:
            ``name``, ``size``; ``entropy`` and ``md5`` of what of it is in the file, left out
            where all sections together are too much.
        """
        data = self._content[max(start, 0) : max(start, 0) + max(size, 0)]
        said: dict[str, Any] = {"name": name, "size": size}
        if len(data) <= self._left:
            self._left -= len(data)
            said["entropy"] = entropy(data)
            said["md5"] = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return said


def text(raw: bytes, limit: int = NAME_BYTES) -> str:
    """A name out of a file.

    Args:
        raw: Its bytes, perhaps with zeros behind them.
        limit: Bytes that are kept.

    Returns:
        Text; what is not UTF-8 is escaped.
    """
    return raw.partition(b"\0")[0][:limit].decode("utf-8", "backslashreplace")


def guarded(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let nothing but KcapError out of a parser of hostile files.

    Args:
        function: The parser.

    Returns:
        One that raises `MalformedError` for all that libraries raise on such files.
    """

    def made(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except KcapError:
            raise
        except (Exception, RecursionError) as e:  # whatever the library says of such a file
            what = f"{type(e).__name__}: {e}" if str(e) else type(e).__name__
            raise MalformedError(f"it can't be understood: {what[:200]}") from e

    made.__doc__ = function.__doc__
    return made


def missing(package: str) -> MissingExtraError:
    """The error where the extra is not installed.

    Args:
        package: What was to be imported.

    Returns:
        The error.
    """
    return MissingExtraError(
        f"looking into executables needs {package}", hint=f"pip install 'kcap[{EXTRA}]'"
    )
