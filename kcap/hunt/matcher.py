"""Which indicators a text holds: all of them at once, never one after the other.

Hashes, domains and paths are looked up in tables, addresses in a table for each length of a prefix;
a pattern of paths is tried on texts that hold its longest word. What can hold nothing of a kind is
sorted out by Arrow, for all texts in one pass.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kcap.filter.values import fold
from kcap.hunt.indicators import (
    DOMAIN_LABELS,
    HASH_DIGITS,
    Address,
    Indicator,
    Kind,
    is_pattern,
    is_windows,
    unmapped,
)

Spotted = Iterator[tuple[int, str]]
"""Places of indicators, and what of the text is meant."""


class Match(NamedTuple):
    """An indicator in a text."""

    number: int
    """Its place among the indicators."""
    part: str
    """What of the text it is."""


_HASH: Final = re.compile(
    r"(?<![0-9A-Za-z])(?:[0-9A-Fa-f]{64}|[0-9A-Fa-f]{40}|[0-9A-Fa-f]{32})(?![0-9A-Za-z])"
)
_OCTET: Final = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
# Not within a longer number or name, as a version's: a tuple's "->" may follow, "-" may not.
_IPV4: Final = re.compile(rf"(?<![\w.-]){_OCTET}(?:\.{_OCTET}){{3}}(?!\w|\.\w|-(?!>))")
_IPV6: Final = re.compile(
    r"(?<![\w:.%])(?=[0-9A-Fa-f]*:[0-9A-Fa-f]*:)([0-9A-Fa-f:.]{2,60}+)(?![\w:.])"
)
_PORT: Final = re.compile(r"(.*[^:]):[0-9]{1,5}")
_DOMAIN: Final = re.compile(r"(?<![\w-])[\w-]++(?:\.[\w-]++)+")
_WORD: Final = re.compile(r"\w+")
_WHOLE_WORD: Final = re.compile(r"(?<![*?\w])\w+(?![*?\w])")

_PLAIN: Final = re.compile(r"[\w .+@~-]+")
_PATHS: Final = frozenset({Kind.PATH, Kind.FILENAME})
_WORDS_CHARACTERS: Final = 1 << 12
"""Length of all words that Arrow looks for at once: it prepares for each look."""


class _Pattern(NamedTuple):
    """A path with wildcards."""

    number: int
    regex: re.Pattern[str]
    windows: bool
    name: bool
    """It is about the last part of a path."""


class Matcher:
    """Finds indicators in texts.

    Args:
        indicators: What to look for.
        exact: Only texts that are an indicator as a whole, as it was given or in lower or upper
            case; patterns and networks stay what they are.
    """

    def __init__(self, indicators: Sequence[Indicator], *, exact: bool = False) -> None:
        self.indicators = tuple(indicators)
        self._exact = exact
        self._hashes: dict[str, int] = {}
        self._domains: dict[str, int] = {}
        self._networks: dict[int, dict[int, dict[int, int]]] = {4: {}, 6: {}}
        self._paths: dict[str, int] = {}
        self._windows_paths: dict[str, int] = {}
        self._names: dict[str, int] = {}
        self._windows_names: dict[str, int] = {}
        self._patterns: dict[str, list[_Pattern]] = {}
        self._wordless: list[_Pattern] = []
        self._spelled: dict[str, list[int]] = {}
        self._finite = True
        for number, indicator in enumerate(self.indicators):
            self._add(number, indicator)
        self._searches = list(self._planned())

    def _add(self, number: int, indicator: Indicator) -> None:
        kind, value = indicator.kind, indicator.value
        if kind in HASH_DIGITS.values():
            self._hashes[value] = number
        elif kind is Kind.DOMAIN:
            for name in _both_spellings(value):
                self._domains.setdefault(name, number)
        elif kind is Kind.NETWORK:
            network = ipaddress.ip_network(value)
            bits = network.max_prefixlen - network.prefixlen
            if bits or not self._exact:
                table = self._networks[network.version].setdefault(bits, {})
                table[int(network.network_address) >> bits] = number
            if bits and self._exact:
                self._finite = False
                return
        elif is_pattern(value):
            self._add_pattern(number, indicator)
            self._finite = False
            return
        else:
            self._add_path(number, kind, value)
        if self._exact:
            for text in sorted(_spellings(indicator)):
                self._spelled.setdefault(text, []).append(number)
        elif kind is not Kind.PATH or is_windows(value):
            self._finite = False

    def _add_path(self, number: int, kind: Kind, value: str) -> None:
        windows = is_windows(value)
        if kind is Kind.PATH:
            table = self._windows_paths if windows else self._paths
        else:
            table = self._windows_names if windows else self._names
        table.setdefault(_folded(value) if windows else value, number)

    def _add_pattern(self, number: int, indicator: Indicator) -> None:
        windows = is_windows(indicator.value)
        value = _folded(indicator.value) if windows else indicator.value
        regex = re.compile(fnmatch.translate(value.replace("[", "[[]")))
        pattern = _Pattern(number, regex, windows, indicator.kind is Kind.FILENAME)
        words = sorted(_WHOLE_WORD.findall(fold(value)), key=lambda word: (-len(word), word))
        if words:
            self._patterns.setdefault(words[0], []).append(pattern)
        else:
            self._wordless.append(pattern)

    def whole_texts(self) -> tuple[str, ...] | None:
        """The only texts in which something can be found.

        Returns:
            All of them; None where there is no end to them, as where an address may stand within
            a longer text.
        """
        if not self._finite:
            return None
        return tuple(sorted(self._spelled if self._exact else self._paths))

    def in_json(self) -> str | None:
        r"""What JSON must have to hold anything, where no text in it has ``\u`` or ``\/``.

        Returns:
            A pattern for Arrow; None where there is no such thing.
        """
        found = list(self._kinds().values())
        if self._has(*_PATHS):
            parts = {_last_part(i.value) for i in self.indicators if i.kind in _PATHS}
            needles = _any_of({_needle(part) for part in parts})
            if needles is None and self._has(Kind.FILENAME):
                return None
            found.append(needles or r"[/\\]")
        return "|".join(found)

    def _kinds(self) -> dict[str, str]:
        """What a text must have to hold an indicator of a kind, of the kinds that there are."""
        made = {}
        if self._has(*HASH_DIGITS.values()):
            made["hash"] = "[0-9A-Fa-f]{32}"
        if self._has(Kind.NETWORK):
            made["ipv4"] = r"[0-9]\.[0-9]+\.[0-9]"
            made["ipv6"] = ":[0-9A-Fa-f]*:"
        if self._domains:
            last = _any_of({name.rpartition(".")[2] for name in self._domains})
            made["domain"] = rf"\.{last or ''}"
        return made

    def _has(self, *kinds: Kind) -> bool:
        return any(indicator.kind in kinds for indicator in self.indicators)

    def find(self, texts: Sequence[str]) -> dict[str, tuple[Match, ...]]:
        """Look into texts.

        Args:
            texts: Distinct texts.

        Returns:
            The texts that hold indicators, to what they hold, by the indicators' places.
        """
        found: dict[str, dict[int, str]] = {}
        column = pa.array(texts, pa.utf8())
        for may_hold, search in self._searches:
            chosen: Sequence[str] = texts
            if may_hold is not None:
                mask = pc.match_substring_regex(column, may_hold)
                chosen = [texts[i] for i in np.flatnonzero(np.asarray(mask)).tolist()]
            for text in chosen:
                for number, part in search(text):
                    found.setdefault(text, {}).setdefault(number, part)
        return {
            text: tuple(Match(number, parts[number]) for number in sorted(parts))
            for text, parts in found.items()
        }

    def _planned(self) -> Iterator[tuple[str | None, Callable[[str], Spotted]]]:
        """What to do with texts, each with what Arrow sorts out before."""
        if self._exact:
            yield None, self._as_a_whole
            if any(bits for tables in self._networks.values() for bits in tables):
                yield None, self._whole_address
        else:
            searches = {
                "hash": self._hashes_in,
                "ipv4": self._ipv4_in,
                "ipv6": self._ipv6_in,
                "domain": self._domains_in,
            }
            for kind, may_hold in self._kinds().items():
                yield may_hold, searches[kind]
            if self._paths or self._windows_paths or self._names or self._windows_names:
                yield None, self._path_of
        if self._patterns or self._wordless:
            yield None, self._patterns_of

    def _as_a_whole(self, text: str) -> Spotted:
        for number in self._spelled.get(text, ()):
            yield number, text

    def _whole_address(self, text: str) -> Spotted:
        if "." in text or ":" in text:
            for number in self._containing(text):
                yield number, text

    def _hashes_in(self, text: str) -> Spotted:
        for run in _HASH.findall(text):
            number = self._hashes.get(run.lower())
            if number is not None:
                yield number, run

    def _ipv4_in(self, text: str) -> Spotted:
        for run in _IPV4.findall(text):
            for number in self._containing(run):
                yield number, run

    def _ipv6_in(self, text: str) -> Spotted:
        for run in _IPV6.findall(text):
            # Without brackets nothing tells a port from the last group: both are possible.
            with_port = _PORT.fullmatch(run)
            for address in (run.rstrip("."), with_port[1] if with_port else ""):
                for number in self._containing(address):
                    yield number, address

    def _containing(self, text: str) -> Iterator[int]:
        """The networks that an address is in."""
        try:
            address: Address = ipaddress.ip_address(text)
        except ValueError:
            return
        address = unmapped(ipaddress.ip_network(address)).network_address
        value = int(address)
        for bits, table in self._networks[address.version].items():
            number = table.get(value >> bits)
            if number is not None:
                yield number

    def _domains_in(self, text: str) -> Spotted:
        for name in _DOMAIN.findall(text):
            rest = ".".join(fold(name).split(".")[-DOMAIN_LABELS:])
            while "." in rest:
                number = self._domains.get(rest)
                if number is not None:
                    yield number, name
                rest = rest.partition(".")[2]

    def _path_of(self, text: str) -> Spotted:
        name = _last_part(text)
        folded = _folded(text)
        for table, key, part in (
            (self._paths, text, text),
            (self._windows_paths, folded, text),
            (self._names, name, name),
            (self._windows_names, fold(name), name),
        ):
            number = table.get(key)
            if number is not None:
                yield number, part

    def _patterns_of(self, text: str) -> Spotted:
        folded = _folded(text)
        tried = list(self._wordless)
        for word in dict.fromkeys(_WORD.findall(fold(text))):
            tried += self._patterns.get(word, ())
        for pattern in tried:
            subject = folded if pattern.windows else text
            if pattern.regex.match(_last_part(subject) if pattern.name else subject):
                yield pattern.number, text


def _folded(path: str) -> str:
    """A path as Windows compares it."""
    return fold(path).replace("/", "\\")


def _last_part(path: str) -> str:
    return path[max(path.rfind("/"), path.rfind("\\")) + 1 :]


def _needle(part: str) -> str | None:
    """What a text must have, in any case, to be the last part of a path; None for no such thing."""
    if is_pattern(part):
        return max(_WHOLE_WORD.findall(part), key=len, default=None)
    return part if _PLAIN.fullmatch(part) else None


def _any_of(words: Collection[str | None]) -> str | None:
    """A pattern of words in any case; None where they are too many, or not of ASCII."""
    known = sorted(word for word in words if word is not None and word.isascii())
    if len(known) < len(words) or sum(map(len, known)) > _WORDS_CHARACTERS:
        return None
    return rf"(?i:{'|'.join(map(_quoted, known))})"


def _quoted(word: str) -> str:
    return rf"\Q{word}\E"


def _both_spellings(domain: str) -> tuple[str, ...]:
    """A domain in its letters and as DNS has it."""
    try:
        if domain.isascii():
            return domain, domain.encode().decode("idna")
        return domain, domain.encode("idna").decode()
    except UnicodeError:
        return (domain,)


def _spellings(indicator: Indicator) -> set[str]:
    """The whole texts that are an indicator, where only those count."""
    given = [indicator.text, indicator.value]
    if indicator.kind is Kind.NETWORK:
        given[1] = indicator.value.partition("/")[0]
    if indicator.kind is Kind.DOMAIN:
        given = [name + dot for name in (indicator.value, *given) for dot in ("", ".")]
    return {spelled for text in given for spelled in (text, text.lower(), text.upper())}
