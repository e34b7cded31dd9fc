"""Numbers of flags and enums as text, and their text as numbers.

A table (``decoders.tsv``) says what numbers are called. The text of a flag word is the names of
its flags joined by ``|``, bits without a name in hex behind them; the text of an enum's number is
its name, or the number in decimal. `number_of` is the exact inverse of `text_of`: it reads a text
only where that very text is written for the number, so nothing is lost by keeping the number.

Other programs write the same numbers in their own way. ``TABLE@SPELLING`` is such a way: its rows
stand in the order in which that program looks for them. `spelled` finds the table that a text was
written with, and `text_of` with that table gives the text back.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import pyarrow as pa

from kcap.model import catalogue
from kcap.model.classes import I64_MIN, U64_MAX

HEX: Final = "hex"
"""The decoder of addresses, which has no table: ``0x7ffd0000``."""

DECIMAL: Final = "decimal"
"""The decoder of numbers that a program wrote in digits for want of a name."""

SPELLING: Final = "@"
"""What stands between a table's name and that of another program's way to write it."""

_BUILT_IN: Final = frozenset({HEX, DECIMAL})
_FLAGS: Final = ("_flags", "_prot", "socket_type")
_CHOICES: Final = {
    "file_mode_flags": 0o170000,
    "futex_op_flags": 0x7F,
    "open_flags": 0x3,
    "socket_type": 0xF,
}
"""Bits of a table of flags that together hold one number, as SOCK_DGRAM beside SOCK_CLOEXEC."""

_ZERO_NAMED: Final = frozenset({"open_flags"})
"""Tables whose choice of zero is named beside other flags, too: ``O_RDONLY|O_CLOEXEC``."""

_OVERLAPPING: Final = frozenset({"open_flags@tracee"})
"""Spellings that name every flag whose bits are all there, as O_DSYNC beside O_SYNC."""

_NUMBERED: Final = frozenset(
    {
        "fsnotify_flags@tracee",
        "io_uring_request_flags@tracee",
        "io_uring_setup_flags@tracee",
        "vm_flags@tracee",
    }
)
"""Spellings that go through the bits and have a word for those without a name."""

_UNNAMED: Final = "UNKNOWN_FLAG_0X"
_HEX_TEXT: Final = re.compile("0x(?:0|[1-9a-f][0-9a-f]{0,15})")
_DECIMAL_TEXT: Final = re.compile("0|-?[1-9][0-9]{0,19}")
_UNNAMED_TEXT: Final = re.compile(f"{_UNNAMED}([1-9A-F][0-9A-F]{{0,15}})")
_LONGEST: Final = 4096
"""Longer texts are no flags; all names of the largest table take less."""


class _Table(NamedTuple):
    """A table of `catalogue.decoder`, ready for use."""

    texts: dict[int, str]
    numbers: dict[str, int]
    masks: tuple[tuple[int, str], ...] | None
    """Flags in the order in which they are looked for; None for an enum."""
    choice: int


@lru_cache(maxsize=256)
def _table(name: str) -> _Table:
    texts = catalogue.decoder(name)
    shared = Counter(texts.values())
    numbers = {text: number for number, text in texts.items() if shared[text] == 1}
    base = name.partition(SPELLING)[0]
    if not base.endswith(_FLAGS):
        return _Table(texts, numbers, None, 0)
    masks = list(texts.items())
    if SPELLING not in name:
        # What consists of others comes first, so that it is not given as its pieces.
        masks.sort(key=lambda item: (-item[0].bit_count(), item[0]))
    return _Table(texts, numbers, tuple(masks), _CHOICES.get(base, 0))


def known(decoder: str) -> bool:
    """Whether there is such a decoder.

    Args:
        decoder: The name of a table or spelling, `HEX` or `DECIMAL`.

    Returns:
        False for an empty name and for one that no table has.
    """
    return decoder in _BUILT_IN or bool(decoder and _table(decoder).texts)


@lru_cache(maxsize=1 << 14)
def text_of(decoder: str, number: int) -> str:
    """Write a number as text.

    Args:
        decoder: The name of a table or spelling, `HEX` or `DECIMAL`.
        number: Any integer.

    Returns:
        Its text; digits where the table has no name for it.
    """
    if decoder == HEX:
        return f"0x{number & U64_MAX:x}"
    table = _table(decoder)
    if decoder == DECIMAL or table.masks is None or number < 0:
        return table.texts.get(number, str(number))
    if SPELLING in decoder:
        return _listed(decoder, table, number)
    exact = table.texts.get(number)
    if exact is not None and (decoder not in _ZERO_NAMED or number & table.choice == number):
        return exact
    if number == 0:
        return "0"
    found = _found(decoder, table, number)
    rest = number
    for mask, _ in found:
        rest &= ~mask
    words = [name for _, name in sorted(found)]
    return "|".join([*words, f"0x{rest:x}"] if rest else words)


def _found(decoder: str, table: _Table, number: int) -> list[tuple[int, str]]:
    """The flags of a number, in the table's order."""
    zero = decoder.partition(SPELLING)[0] in _ZERO_NAMED
    overlapping = decoder in _OVERLAPPING
    found = []
    rest = number
    for mask, name in table.masks or ():
        chosen = mask & table.choice in (0, number & table.choice)
        if mask == 0:
            if zero and number & table.choice == 0:
                found.append((mask, name))
        elif chosen and (number if overlapping else rest) & mask == mask:
            found.append((mask, name))
            rest &= ~mask
    return found


def _listed(decoder: str, table: _Table, number: int) -> str:
    """Flags as another program lists them."""
    if decoder in _NUMBERED:
        bits = [1 << i for i in range(number.bit_length()) if number >> i & 1]
        return "|".join(table.texts.get(bit, f"{_UNNAMED}{bit:X}") for bit in bits)
    return "|".join(name for _, name in _found(decoder, table, number))


@lru_cache(maxsize=1 << 14)
def number_of(decoder: str, text: str) -> int | None:
    """Read what `text_of` wrote.

    Args:
        decoder: The name of a table or spelling, `HEX` or `DECIMAL`.
        text: Any text.

    Returns:
        The number for which alone `text_of` gives this very text, None where there is none that
        fits 64 bits.
    """
    if not text or len(text) > _LONGEST:
        return None
    number = _read(decoder, text)
    if number is None or not I64_MIN <= number <= U64_MAX:
        return None
    return number if text_of(decoder, number) == text else None


def _read(decoder: str, text: str) -> int | None:
    if decoder == HEX:
        return int(text, 16) if _HEX_TEXT.fullmatch(text) else None
    table = _table(decoder)
    number = table.numbers.get(text)
    if number is None and _DECIMAL_TEXT.fullmatch(text):
        number = int(text)
    if number is not None or table.masks is None:
        return number
    number = 0
    for word in text.split("|"):
        unnamed = _UNNAMED_TEXT.fullmatch(word)
        if word in table.numbers:
            number |= table.numbers[word]
        elif _HEX_TEXT.fullmatch(word):
            number |= int(word, 16)
        elif unnamed:
            number |= int(unnamed[1], 16)
        else:
            return None
    return number


def spelled(spellings: Sequence[str], text: str) -> tuple[str, int] | None:
    """Find out how a number was written.

    Args:
        spellings: Decoders, the likeliest first.
        text: Any text.

    Returns:
        The first decoder that gives this very text, and the number it gives it for; None where
        no decoder does.
    """
    for decoder in spellings:
        number = number_of(decoder, text)
        if number is not None:
            return decoder, number
    return None


def texts_of(decoder: str, values: pa.Array) -> pa.Array:
    """Write a column's numbers as text, one look-up for each distinct number.

    Args:
        decoder: The name of a table or spelling, `HEX` or `DECIMAL`.
        values: Integers.

    Returns:
        Their texts, utf8; null for null.
    """
    numbers = values.dictionary_encode()
    texts = [text_of(decoder, number) for number in numbers.dictionary.to_pylist()]
    return pa.array(texts, pa.utf8()).take(numbers.indices)


def numbers_of(decoder: str, texts: pa.Array) -> list[int | None]:
    """Read a column's texts, one look-up for each distinct text.

    Args:
        decoder: The name of a table or spelling, `HEX` or `DECIMAL`.
        texts: Texts, plain or dictionary-coded.

    Returns:
        Their numbers, None for a text that none has and for null.
    """
    coded = texts if pa.types.is_dictionary(texts.type) else texts.dictionary_encode()
    read = [number_of(decoder, text) for text in coded.dictionary.to_pylist()]
    return [None if code is None else read[code] for code in coded.indices.to_pylist()]
