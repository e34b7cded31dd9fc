"""What must not be seen: which values are secret, and how they are shown instead."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

from kcap.errors import KcapError
from kcap.tools.settings import places
from kcap.tools.settings.document import Reference
from kcap.transform import patterns

MASK: Final = "********"
"""Stands for any secret, whatever its length."""

SECRET_BYTES: Final = 64 << 10
"""The longest secret in a file of its own."""

_LEAST_CHARS: Final = 4
"""Shorter ones are masked where they stand, but not looked for in other text: they are in it."""

# A word of its own, so that not every "author" and "tokens" is one; "key" alone is too common.
_NAME: Final = re.compile(
    r"(?:^|[-_. ])(?:pass|passwd|password|passphrase|pwd|secret|secrets|token|credential"
    r"|credentials|authorization|cookie|auth|(?:api|access|private|secret|shared)[-_]?key"
    r"|apikey)(?:$|[-_. ])",
    re.IGNORECASE,
)
_NOT: Final = re.compile(r"[-_](?:file|path|env|method|mechanism|type|timeout)$", re.IGNORECASE)
"""Ends of names of what stands beside a secret: where it is, how it is used."""

# Each begins only where a word or a parameter does: else time is the square of the length.
_URL: Final = re.compile(r"(?<![A-Za-z0-9+.\-])([A-Za-z0-9+.\-]+://)([^\s\"'<>|\\^`]*)")
_PORT: Final = re.compile(r"(?:(?:\[[^\]]*\]|[^:,]*)(?::\d*)?(?:,|$))*")
_SPLIT: Final = re.compile(r"[/?#]")
_ASSIGNED: Final = re.compile(r"(?:^|(?<=[&;]))([^&;=]+)=([^&;]*)")
_HEADER: Final = re.compile(
    r"((?:proxy-)?authorization|(?:set-)?cookie)(\"?\s*[:=]\s*)[^\r\n]*", re.IGNORECASE
)
_BEARER: Final = re.compile(r"\b(bearer|basic|apikey)\s+[A-Za-z0-9+/=._~\-]{4,}", re.IGNORECASE)
_HARMLESS: Final = frozenset(
    [
        *("accept", "accept-charset", "accept-encoding", "accept-language", "cache-control"),
        *("connection", "content-encoding", "content-language", "content-length", "content-type"),
        *("date", "expect", "from", "host", "idempotency-key", "origin", "pragma", "prefer"),
        *("referer", "te", "user-agent", "via", "x-request-id"),
    ]
)
"""Headers that tell no secret: of any other one nobody knows what a server takes it for."""

_HEADERS: Final = "headers"
_HEADER_CHARS: Final = 12
"""Such a header's value is looked for in other text from so many characters on: a shorter one may
be a word that stands there for another reason."""

_WEB: Final = re.compile(r"(?:[a-z0-9.-]*\+)?https?://", re.IGNORECASE)
"""The beginnings of URLs in which a user without a password is one: a token."""

_TOKEN: Final = re.compile(r"(?=[^\d]*\d)(?=[^A-Za-z]*[A-Za-z])[\w-]{20,}", re.ASCII)
"""What no user is called who has a name."""

_MADE: Final = tuple(
    patterns.KNOWN[name].matches for name in ("aws-key", "service-token", "private-key")
)
"""Secrets that are known by how they are made, wherever they stand."""

_HOOK: Final = re.compile(r"slack\+https?://.*|https?://hooks\.slack\.com", re.IGNORECASE)
"""The beginnings of URLs whose path is what gives the right to write there."""


def is_secret_name(name: str) -> bool:
    """Whether a setting, a header or a parameter of that name is one that nobody should see.

    Args:
        name: Its name.

    Returns:
        True for ``password``, ``api-key``, ``Authorization`` and such; False for ``password-file``.
    """
    return _NAME.search(name) is not None and _NOT.search(name) is None


def is_secret_header(name: str) -> bool:
    """Whether the value of a header is one that nobody should see.

    Args:
        name: Its name.

    Returns:
        False for ``Content-Type`` and others that are known to tell nothing.
    """
    return name.strip().lower() not in _HARMLESS


def telling(name: str, value: Any, secret: Collection[str]) -> Iterator[str]:  # noqa: ANN401
    """The texts in an option that nobody should see, wherever they stand.

    Args:
        name: The option.
        value: Its value, without references.
        secret: Names that are secret whatever they look like.

    Yields:
        Those that are secrets.
    """
    if name == _HEADERS:
        for header, text in _headers(value):
            if is_secret_name(header) or (is_secret_header(header) and len(text) >= _HEADER_CHARS):
                yield text
    elif isinstance(value, dict):
        for inner, text in value.items():
            if name in secret or is_secret_name(inner):
                yield str(text)
    elif isinstance(value, list):
        for inner in value:
            yield from telling(name, inner, secret)
    elif value is not None and (name in secret or is_secret_name(name)):
        yield str(value)


def resolve(found: Reference, environ: Mapping[str, str]) -> str:
    """The value that a reference stands for.

    Args:
        found: The reference.
        environ: The environment.

    Returns:
        The variable's value, or the file's text without the end of its last line.

    Raises:
        KcapError: There is none.
    """
    if found.kind == "env":
        value = environ.get(found.name)
        if value is None:
            raise KcapError(
                f"the variable {found.name!r} is not set", hint="set it where kcap is started"
            )
        return value
    read = places.content(found.name, SECRET_BYTES + 1, "the value")
    if len(read) > SECRET_BYTES:
        raise KcapError(
            "this is too long for a value", file=found.name, expected=f"at most {SECRET_BYTES:,} B"
        )
    try:
        return read.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise KcapError("this is not UTF-8", file=found.name, offset=error.start) from error


def masked_url(url: str, *, secret: Iterable[str] = ()) -> str:
    """A URL without its password, the values of its secret parameters, and secret paths.

    Args:
        url: The URL, or any text without one.
        secret: Further names of parameters that are secret.

    Returns:
        The same with `MASK` in their places.
    """
    named = {name.replace("_", "-").lower() for name in secret}
    return _URL.sub(lambda match: match[1] + _masked_rest(match[1], match[2], named), url)


def masked(text: str, known: Iterable[str] = ()) -> str:
    """Text without secrets: those that are known, and whatever looks like one.

    Args:
        text: Any text.
        known: Secrets, as `Known` has them.

    Returns:
        The text with `MASK` in their places.
    """
    for value in known:
        text = text.replace(value, MASK)
    text = masked_url(text)
    text = _HEADER.sub(rf"\1\2{MASK}", text)
    for made in _MADE:
        text = made.sub(MASK, text)
    return _BEARER.sub(rf"\1 {MASK}", text)


class Known:
    """The secrets that the settings of this run have, to be kept out of what it writes."""

    def __init__(self) -> None:
        self._values: set[str] = set()

    def add(self, value: str) -> None:
        """Take note of a secret, and of how it looks in a URL.

        Args:
            value: The secret.
        """
        for form in (value, quote(value, safe=""), quote(value), *value.splitlines()):
            if len(form) >= _LEAST_CHARS:
                self._values.add(form)

    def add_url(self, url: str, *, secret: Iterable[str] = ()) -> None:
        """Take note of the secrets in a URL.

        Args:
            url: The URL.
            secret: Further names of parameters that are secret.
        """
        named = {name.replace("_", "-").lower() for name in secret}
        for scheme, rest in _URL.findall(url):
            authority, query = _parts(rest)
            user, at, _ = authority.rpartition("@")
            name, _, password = user.partition(":")
            found = [password] if at else []
            if at and _is_token(scheme, name, password):
                found.append(name)
            for parameter, value in _ASSIGNED.findall(query):
                if _hidden(parameter, named):
                    found.append(value)
                elif parameter == _HEADERS:
                    found += telling(_HEADERS, unquote(value), ())
            if _HOOK.match(scheme + authority):
                found.append(rest[len(authority) :])
            for value in found:
                self.add(value)
                self.add(unquote(value))

    def masked(self, text: str) -> str:
        """Text without them, and without whatever else looks like a secret.

        Args:
            text: Any text.

        Returns:
            The text with `MASK` in their places.
        """
        # The longest first: one may be part of another.
        return masked(text, sorted(self._values, key=lambda value: (-len(value), value)))


def masked_value(name: str, value: Any, *, secret: Iterable[str] = ()) -> Any:  # noqa: ANN401
    """A setting as it may be shown.

    Args:
        name: Its name.
        value: Its value, as YAML has it.
        secret: Names that are secret whatever they look like.

    Returns:
        The value, with `MASK` in place of secrets in it.
    """
    hidden = _hidden(name, {other.replace("_", "-").lower() for other in secret})
    if isinstance(value, Reference):
        return value
    if isinstance(value, dict):
        of_headers = name == _HEADERS
        return {
            key: MASK
            if (hidden or (of_headers and is_secret_header(key)))
            and not isinstance(inner, Reference)
            else masked_value(key, inner, secret=secret)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [masked_value(name, inner, secret=secret) for inner in value]
    if hidden:
        return MASK
    return masked(masked_url(value, secret=secret)) if isinstance(value, str) else value


def _hidden(name: str, named: Iterable[str]) -> bool:
    return name.replace("_", "-").lower() in named or is_secret_name(name)


def _headers(value: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401
    """Names and values of headers: by name, or as ``NAME: VALUE`` in a URL."""
    if isinstance(value, dict):
        yield from ((str(name), str(text)) for name, text in value.items())
    else:
        name, _, text = str(value).partition(":")
        yield name.strip(), text.strip()


def _is_token(scheme: str, user: str, password: str) -> bool:
    """Whether the user of a URL is what lets somebody in: a token, without a password beside it."""
    if not user:
        return False
    alone = not password and _WEB.fullmatch(scheme) is not None
    return alone or _TOKEN.fullmatch(unquote(user)) is not None


def _masked_parameter(name: str, value: str, named: set[str]) -> str:
    """What follows the sign of equality in a parameter of a URL."""
    if name == _HEADERS and is_secret_header(unquote(value).partition(":")[0]):
        return MASK
    return MASK if _hidden(name, named) else value


def _parts(rest: str) -> tuple[str, str]:
    """Host with user, and the parameters, of what follows ``scheme://``."""
    found = _SPLIT.search(rest)
    authority = rest if found is None else rest[: found.start()]
    return authority, rest.partition("?")[2].partition("#")[0]


def _masked_rest(scheme: str, rest: str, named: set[str]) -> str:
    """What follows the scheme of a URL, without secrets."""
    authority, _ = _parts(rest)
    tail = rest[len(authority) :]
    user, at, host = authority.rpartition("@")
    if at:
        name, colon, password = user.partition(":")
        if _is_token(scheme, name, password):
            name = MASK
        authority = f"{name}{colon}{MASK if colon else ''}@{host}"
    elif not _PORT.fullmatch(authority) or (":" in authority and "@" in tail.partition("=")[0]):
        # No host has such a name: a password with a character that had to be escaped.
        return f"{authority.partition(':')[0]}:{MASK}"
    if tail.strip("/") and _HOOK.match(scheme + authority):
        return f"{authority}/{MASK}"
    path, question, query = tail.partition("?")
    if not question:
        return authority + tail
    shown = _ASSIGNED.sub(lambda m: f"{m[1]}={_masked_parameter(m[1], m[2], named)}", query)
    return f"{authority}{path}?{shown}"
