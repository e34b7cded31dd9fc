"""Indicators: hashes, addresses, networks, domains and paths, and how people write them down."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from kcap.errors import BadInputError
from kcap.filter.values import fold

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DOMAIN_LABELS: Final = 127
"""Most labels of a domain name."""

_DOMAIN_CHARACTERS: Final = 253
_LEAST_LABELS: Final = 2
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")


class Kind(StrEnum):
    """What an indicator is; its value is what people call it."""

    MD5 = "md5"
    SHA1 = "sha1"
    SHA256 = "sha256"
    NETWORK = "ip"
    """One address or a network of them."""
    DOMAIN = "domain"
    PATH = "path"
    """A path, or a pattern of paths."""
    FILENAME = "filename"
    """The last part of a path, or a pattern of it."""


class Meaning(NamedTuple):
    """What an indicator's text says."""

    kind: Kind
    value: str
    """In its one spelling: hashes and domains in lower case, an address always as a network."""
    text: str
    """As it was given, no longer defanged."""


@dataclass(frozen=True, slots=True)
class Indicator:
    """Something that is looked for."""

    kind: Kind
    value: str
    """See `Meaning.value`."""
    text: str
    """See `Meaning.text`."""
    label: str | None = None
    """What its file says of it: a comment, a description."""
    file: str = ""
    line: int | None = None
    """Where it was given; None in a file that is one JSON document."""


HASH_DIGITS: Final = {32: Kind.MD5, 40: Kind.SHA1, 64: Kind.SHA256}
"""Hex digits of a hash to what it is."""

_HEX: Final = re.compile("[0-9A-Fa-f]+")
_DOT: Final = re.compile(r"\[\.\]|\(\.\)|\{\.\}|\[dot\]|\(dot\)", re.IGNORECASE)
_SCHEME: Final = re.compile(r"(?:h[xt]{2}p|f[xt]p)(s?)(?=\[?:)", re.IGNORECASE)
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?([^/?#]*)")
_PORT: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::\d{1,5})?")
_LABEL: Final = re.compile(r"(?!-)[\w-]{1,63}(?<!-)")
_DRIVE: Final = re.compile(r"[A-Za-z]:[\\/]")
_VARIABLE: Final = re.compile(r"%[\w()]+%(?=[\\/])")
_NAMED: Final = re.compile(r"([A-Za-z][A-Za-z0-9_|-]+)\s*:\s*(?!//)(.+)", re.DOTALL)

_WINDOWS_FILE: Final = re.compile(
    r".*\.(?:bat|chm|cmd|cpl|dll|docm?|docx|exe|hta|iso|jse?|lnk|msi|ocx|pdf|ppt|ps1|psm1|scr"
    r"|sys|tmp|vb[es]|wsf|xls[mx]?)",
    re.IGNORECASE,
)
_FILE: Final = re.compile(
    r".*\.(?:7z|bin|conf|cpp|dat|deb|elf|gz|jar|jpg|json|ko|log|php|png|rar|rpm|tar|txt|xz)",
    re.IGNORECASE,
)
"""Names of files that are no domains: nobody can register ``evil.exe``, anybody ``evil.sh``."""


def parse(text: str, kind: str | None = None) -> list[Meaning]:
    """Understand one indicator.

    Args:
        text: How it is written, perhaps defanged: ``hxxp://evil[.]example/a``, ``sha256:9f86…``.
        kind: What its file says it is; None where the text must tell.

    Returns:
        What is to be looked for; of a few kinds that are pairs, as ``domain|ip``, two.

    Raises:
        BadInputError: It is none, or not of that kind.
    """
    text = text.strip()
    if kind is None:
        named = _NAMED.fullmatch(text)
        if named and named[1].lower() in KINDS and not _DRIVE.match(text):
            kind, text = named[1], named[2].strip()
        elif "://" not in text and "|" in text:
            raise _bad(text, "one indicator, or type:value before a pair")
    if kind is None:
        return [_guessed(text)]
    return list(_read(KINDS[kind.lower()], text))


def _read(readers: tuple[Callable[[str], Meaning] | None, ...], text: str) -> Iterator[Meaning]:
    """The parts of an indicator, which are as many as their readers."""
    parts = text.split("|") if len(readers) > 1 else [text]
    if len(parts) != len(readers):
        raise _bad(text, f"{len(readers)} values with | between them")
    for read, part in zip(readers, parts, strict=True):
        if read is not None:
            yield read(part.strip())


def _bad(text: str, expected: str) -> BadInputError:
    shown = text if len(text) <= 60 else f"{text[:59]}…"  # noqa: PLR2004
    return BadInputError(f"{shown!r} is no indicator", expected=expected)


def refanged(text: str) -> str:
    """Undo what keeps people from clicking.

    Args:
        text: An address, domain or URL.

    Returns:
        It with plain dots, colons and schemes.
    """
    text = _DOT.sub(".", text).replace("[://]", "://").replace("[:]", ":")
    return _SCHEME.sub(lambda m: ("ftp" if m[0][0] in "fF" else "http") + m[1], text)


def is_windows(path: str) -> bool:
    """Whether case means nothing in a path or file name.

    Args:
        path: An indicator's path.

    Returns:
        True for one with a drive or a backslash, and for a name that ends as Windows' files do.
    """
    if _DRIVE.match(path) or "\\" in path:
        return True
    return "/" not in path and _WINDOWS_FILE.fullmatch(path) is not None


def is_pattern(path: str) -> bool:
    """Whether a path stands for several.

    Args:
        path: An indicator's path.

    Returns:
        True for one with ``*`` or ``?``.
    """
    return "*" in path or "?" in path


def unmapped(network: Network) -> Network:
    """An IPv4 network for one that is mapped into IPv6.

    Args:
        network: Any network.

    Returns:
        It, or the network of ``::ffff:a.b.c.d``.
    """
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        low = int(network.network_address) & 0xFFFFFFFF
        return ipaddress.IPv4Network((low, network.prefixlen - 96))
    return network


def _guessed(text: str) -> Meaning:
    """An indicator whose kind its text must tell."""
    plain = refanged(text)
    if _URL.match(plain):
        return _url(text)
    if len(plain) in HASH_DIGITS and _HEX.fullmatch(plain):
        return _hash(plain)
    try:
        return _network(plain)
    except BadInputError:
        pass  # then it is something else, and the last attempt names what would have been right
    if _DRIVE.match(text) or text.startswith(("/", "%", "~/")) or "\\" in text:
        return _path(text)
    host, _, rest = plain.partition("/")
    is_file = _WINDOWS_FILE.fullmatch(host) or _FILE.fullmatch(host)
    if is_file or is_pattern(host.removeprefix("*.")):
        return _path(text)
    try:
        found = _host(host, plain)
    except BadInputError:
        raise _bad(
            text, "a hash, an address, a domain, a URL, a path, or type:value as path:NAME"
        ) from None
    if found.kind is Kind.NETWORK and rest.isdigit():
        raise _bad(text, "a network with a shorter prefix")
    return found


def _hash(text: str, kind: Kind | None = None) -> Meaning:
    found = HASH_DIGITS.get(len(text)) if _HEX.fullmatch(text) else None
    if found is None or found is not (kind or found):
        digits = [n for n, k in HASH_DIGITS.items() if k is kind] or list(HASH_DIGITS)
        raise _bad(text, f"{' or '.join(map(str, digits))} hex digits")
    return Meaning(found, text.lower(), text)


def _network(text: str) -> Meaning:
    plain = refanged(text)
    if not (plain[:1].isdigit() or ":" in plain):  # half of the time of a list of domains
        raise _bad(text, "an IPv4 or IPv6 address, or a network as 10.0.0.0/8")
    with_port = _PORT.fullmatch(plain)
    address = plain if with_port is None else with_port[1] or with_port[2]
    try:
        network = unmapped(ipaddress.ip_network(address.partition("%")[0], strict=False))
    except ValueError:
        raise _bad(text, "an IPv4 or IPv6 address, or a network as 10.0.0.0/8") from None
    return Meaning(Kind.NETWORK, str(network), address)


def _domain(text: str, given: str | None = None) -> Meaning:
    plain = refanged(text)
    name = fold(plain.removeprefix("*.").strip("."))
    labels = name.split(".")
    if (
        len(labels) < _LEAST_LABELS
        or len(name) > _DOMAIN_CHARACTERS
        or not all(map(_LABEL.fullmatch, labels))
        or labels[-1].isdigit()
    ):
        raise _bad(text, "a domain of two labels or more, as example.com")
    return Meaning(Kind.DOMAIN, name, given or plain)


def _host(text: str, given: str | None = None) -> Meaning:
    """A domain or an address, perhaps with a port."""
    with_port = _PORT.fullmatch(refanged(text))
    host = text if with_port is None else with_port[1] or with_port[2]
    try:
        found = _network(host)
    except BadInputError:
        return _domain(host, given)
    return found._replace(text=given or found.text)


def _url(text: str) -> Meaning:
    plain = refanged(text)
    match = _URL.match(plain)
    return _host(match[1] if match else plain.partition("/")[0], plain)


def _path(text: str) -> Meaning:
    path = _VARIABLE.sub("*", text) if text.startswith("%") else text
    path = path.strip("\"'")
    if not path.strip("*?/\\"):
        raise _bad(text, "a path with more than wildcards")
    kind = Kind.PATH if "/" in path or "\\" in path else Kind.FILENAME
    return Meaning(kind, path, text)


def _of(kind: Kind) -> Callable[[str], Meaning]:
    return lambda text: _hash(text, kind)


_MD5, _SHA1, _SHA256 = _of(Kind.MD5), _of(Kind.SHA1), _of(Kind.SHA256)

KINDS: Final[Mapping[str, tuple[Callable[[str], Meaning] | None, ...]]] = {
    **dict.fromkeys(("md5", "md5_hash", "filehash-md5"), (_MD5,)),
    **dict.fromkeys(("sha1", "sha-1", "sha1_hash", "filehash-sha1"), (_SHA1,)),
    **dict.fromkeys(("sha256", "sha-256", "sha256_hash", "filehash-sha256"), (_SHA256,)),
    **dict.fromkeys(("hash", "filehash"), (_hash,)),
    **dict.fromkeys(
        ("ip", "ipv4", "ipv6", "cidr", "ip-src", "ip-dst", "ipv4-addr", "ipv6-addr", "ip:port"),
        (_network,),
    ),
    **dict.fromkeys(("ip-src|port", "ip-dst|port"), (_network, None)),
    **dict.fromkeys(("domain", "hostname", "host", "fqdn", "domain-name"), (_host,)),
    "hostname|port": (_host, None),
    "domain|ip": (_domain, _network),
    **dict.fromkeys(("url", "uri"), (_url,)),
    **dict.fromkeys(("path", "file", "filepath", "filename"), (_path,)),
    # A name beside a hash is known by the hash: alone it would be found in the wrong places.
    "filename|md5": (None, _MD5),
    "filename|sha1": (None, _SHA1),
    "filename|sha256": (None, _SHA256),
}
"""What files call kinds of indicators, to what reads their parts; None for a part not needed."""
