"""What stands in place of a redacted value: the same for the same value, and for one key only."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from functools import cached_property
from pathlib import Path
from typing import Final

from kcap.errors import KcapError

KEY_BYTES: Final = 32

PREFIX: Final = "redacted:"
TOKEN: Final = re.compile(rf"{PREFIX}[0-9a-f]{{16}}")
"""A token: 64 bits of the HMAC, in which a million values do not meet by chance."""

_ID: Final = b"kcap redaction key id"
_LINE: Final = "kcap-redaction-key:"
_FILE_BYTES: Final = 4096
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_DIGITS: Final = 16
_I64_BIT: Final = 1 << 62
_U64_BIT: Final = 1 << 63
_EXTENSION: Final = re.compile(r"[^.].*?(\.[A-Za-z][A-Za-z0-9]{0,4})", re.DOTALL)
_SEPARATORS: Final = re.compile(r"([/\\]+)")
_PATH: Final = re.compile(r"[/\\~]|[A-Za-z]:[/\\]|\.{1,2}[/\\]")
_DRIVE: Final = re.compile(r"[A-Za-z]:|\.{1,2}|~|")


class Key:
    """A secret that turns values into tokens.

    Args:
        secret: 32 bytes that nobody else knows.

    Example:
        >>> Key(bytes(32)).token("hunter2") == Key(bytes(32)).token("hunter2")
        True
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            what = f"a redaction key of {len(secret)} bytes"
            raise KcapError(what, expected=f"{KEY_BYTES} bytes", hint="kcap redact --new-key FILE")
        self._secret = secret

    @cached_property
    def id(self) -> str:
        """8 hex digits that tell keys apart, and say nothing of them."""
        return self._digest(_ID).hex()[:8]

    def token(self, text: str) -> str:
        """What stands in place of a text.

        Args:
            text: The text.

        Returns:
            ``redacted:`` and 16 hex digits, however long it was.
        """
        return self.data(text.encode()).decode()

    def data(self, value: bytes) -> bytes:
        """What stands in place of bytes.

        Args:
            value: The bytes.

        Returns:
            The token of the text that they are, if they are one.
        """
        return f"{PREFIX}{self.digits(value)}".encode()

    def digits(self, value: bytes) -> str:
        """What stands in place of an id.

        Args:
            value: The id.

        Returns:
            The 16 hex digits of its token.
        """
        return self._digest(value).hex()[:_DIGITS]

    def number(self, value: int) -> int:
        """What stands in place of an integer.

        Args:
            value: The integer.

        Returns:
            One of the same class, so far up that no one takes it for an id, an address or a port:
            at least 2^62. It comes of the digits of the token of the number's decimal text.
        """
        found = int(self.digits(str(value).encode()), 16)
        if value >= _U64_BIT:
            return _U64_BIT | (found >> 1)
        return _I64_BIT | (found >> 2)

    def real(self, value: float) -> float:
        """What stands in place of a float.

        Args:
            value: The float.

        Returns:
            A whole number of 53 bits.
        """
        return float((1 << 52) | (int(self.digits(value.hex().encode()), 16) >> 12))

    def path(self, text: str) -> str:
        """What stands in place of a path whose structure stays.

        Args:
            text: Any text.

        Returns:
            Of a path its separators, its drive and the extension of its last part, with a token in
            place of each part; of any other text its token.
        """
        if not _PATH.match(text):
            return self.token(text)
        parts = _SEPARATORS.split(text)
        for i in range(0, len(parts), 2):
            if parts[i] and not _DRIVE.fullmatch(parts[i]):
                parts[i] = self._part(parts[i], last=i == len(parts) - 1)
        return "".join(parts)

    def _part(self, part: str, *, last: bool) -> str:
        named = _EXTENSION.fullmatch(part) if last else None
        extension = named[1] if named else ""
        return self.token(part[: len(part) - len(extension)]) + extension

    def _digest(self, value: bytes) -> bytes:
        return hmac.digest(self._secret, value, hashlib.sha256)


def written(secret: bytes) -> bytes:
    """The content of a key file.

    Args:
        secret: The key's 32 bytes.

    Returns:
        One line of text.
    """
    return f"{_LINE}{secret.hex()}\n".encode()


def load(path: str) -> bytes:
    """Read a key file.

    Args:
        path: Its name.

    Returns:
        The key's bytes.

    Raises:
        KcapError: There is none, it is no key, or others can read it.
    """
    hint = "'kcap redact --new-key FILE' makes one"
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_FILE_BYTES + 1)
    except OSError as e:
        raise KcapError(f"the key can't be read: {e.strerror}", file=path, hint=hint) from e
    if os.name == "posix" and stat.S_ISREG(mode) and mode & _OTHERS:
        what = "others may read or change the key"
        raise KcapError(what, file=path, expected="mode 0600", hint=f"chmod 600 {path}")
    try:
        text = content.decode("ascii").strip()
        secret = bytes.fromhex(text.removeprefix(_LINE))
    except ValueError:
        text, secret = "", b""
    if not text.startswith(_LINE) or len(secret) != KEY_BYTES:
        expected = f"{_LINE} and {2 * KEY_BYTES} hex digits"
        raise KcapError("this is no redaction key", file=path, expected=expected, hint=hint)
    return secret
