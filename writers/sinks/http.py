"""HTTP: events one a request, as a webhook gets them, or many as a JSON array or JSON lines."""

from __future__ import annotations

import email.utils
import gzip
import ssl
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple
from urllib.parse import quote, urlsplit, urlunsplit

import kcap
from kcap.errors import KcapError
from kcap.writers.sinks import server
from kcap.writers.sinks.deadline import Deadline
from kcap.writers.sinks.server import ServerOptions
from kcap.writers.sinks.transport import InterruptedDeliveryError, Message, Refused, option

BODIES: Final = ("event", "array", "ndjson")
"""What a request carries: one event, a JSON array of them, or a line each."""

TOO_LARGE: Final = 413

_JSON: Final = "application/json"
_LATER: Final = frozenset({408, 425, 429})
_NEVER: Final = {
    401: "check user and password, or the token",
    403: "check what this user, or this token, may do",
    404: "check the path of the URL",
    405: "check the path of the URL, and method",
    407: "check the proxy's user and password",
    410: "this address is not in use any more",
}
"""Statuses that mean the same however often one tries, and what helps."""

_OK: Final = range(200, 300)
_REDIRECTS: Final = range(300, 400)
_BROKEN: Final = range(500, 600)
_ANSWER_BYTES: Final = 16 << 20
_SAID_BYTES: Final = 1 << 12

_SLOWEST: Final = 16 << 10
"""Bytes a second: a server that takes less is as good as none."""


@dataclass(frozen=True, kw_only=True)
class ClientOptions(ServerOptions):
    """What the sinks that speak HTTP have in common."""

    endpoints: tuple[str, ...] = option("more URLs, tried in order where one fails", default=())
    headers: dict[str, str] = option(  # noqa: RUF009  (it makes a factory)
        "headers of each request, NAME: VALUE", default={}
    )
    gzip: bool = option("compress what is sent", default=False)
    token: str | None = option("a bearer token", default=None, secret=True)
    proxy: str | None = option("URL of a proxy; none is used else", default=None, secret=True)


@dataclass(frozen=True, kw_only=True)
class HttpOptions(ClientOptions):
    """The settings of `Http`."""

    method: str = option("POST, PUT or PATCH", default="POST")
    body: str = option("event: one a request; array, ndjson: many", default="event")
    content_type: str | None = option("content type; else told by the body", default=None)
    query: str = option("what stands behind the ? of the URL itself", default="", secret=True)


class Answer(NamedTuple):
    """What a server said."""

    status: int
    body: bytes
    wait_s: float | None
    """What ``Retry-After`` asks for."""
    said: str
    """The status and the beginning of the body, on one line."""


class Client:
    """Requests to one of several servers that do the same: the first that answers is kept.

    Redirects are not followed and the environment names no proxy: events go where they were sent.

    Args:
        settings: Where the servers are, and who we are.
        query: What stands behind the ``?`` of each URL.

    Raises:
        KcapError: An option is wrong, or a certificate can't be read.
    """

    def __init__(self, settings: ClientOptions, query: str = "") -> None:
        # Its own command line, which it loads if it can, takes two thirds of its time.
        sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
        import httpx  # with all that it takes: nothing can be read later

        self._httpx = httpx
        self._settings = settings
        self._urls = [_endpoint(url, query) for url in (settings.url, *settings.endpoints)]
        self._at = 0
        user, password = server.login(settings)
        if user is not None and settings.token is not None:
            raise KcapError("user and token are both given", hint="one of them says who we are")
        self._auth = None if user is None else httpx.BasicAuth(user, password or "")
        self._headers = {
            "Accept-Encoding": "identity",
            "User-Agent": f"kcap/{kcap.__version__}",
            **_checked(settings.headers),
        }
        if settings.token is not None:
            self._headers["Authorization"] = f"Bearer {settings.token}"
            _checked(self._headers)
        encrypted = [settings.proxy or "", *self._urls]
        self._tls: ssl.SSLContext | None = None
        if any(url.startswith("https:") for url in encrypted):
            self._tls = server.context(settings)
        self._client: Any = None
        self._deadline = Deadline(settings.timeout)
        self.open()
        self.close()

    @property
    def shown(self) -> str:
        """The server that is asked now, without what may be secret."""
        return _shown(self._urls[self._at])

    def open(self) -> None:
        """Get ready; connections are made when they are needed."""
        self.close()
        settings, httpx = self._settings, self._httpx
        self._deadline = Deadline(settings.timeout)
        proxy = settings.proxy
        if proxy is not None:
            proxy = httpx.Proxy(proxy, ssl_context=self._tls)
        self._client = httpx.Client(
            auth=self._auth,
            headers=self._headers,
            timeout=settings.timeout,
            # False means no check. Where https is in use it is never False.
            verify=False if self._tls is None else self._tls,
            trust_env=False,
            follow_redirects=False,
            proxy=proxy,
        )

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def watch(self) -> None:
        """Hang up if the server takes too long; see `kcap.writers.sinks.transport.Transport`."""
        self._deadline.check()

    def ask(
        self,
        method: str,
        path: str,
        body: bytes,
        content_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request; to the next server where one can't take it now.

        Args:
            method: ``POST``, ``PUT`` …
            path: What stands behind the URL's own path.
            body: What to send, compressed here where that is asked for.
            content_type: Its content type.
            headers: More headers.

        Returns:
            What the server said: it took this, or will never.

        Raises:
            InterruptedDeliveryError: No server takes anything now.
            KcapError: A server will never take anything from us.
        """
        if self._client is None:
            raise InterruptedDeliveryError(f"{self.shown}: not connected")
        given = {"Content-Type": content_type, **(headers or {})}
        if self._settings.gzip:
            body = gzip.compress(body, 6, mtime=0)
            given["Content-Encoding"] = "gzip"
        failed: list[InterruptedDeliveryError] = []
        for _ in self._urls:
            url = _with_path(self._urls[self._at], path)
            try:
                return self._asked(method, url, body, given)
            except InterruptedDeliveryError as e:
                failed.append(e)
                self._at = (self._at + 1) % len(self._urls)
        waits = [e.wait_s for e in failed]
        asked = [w for w in waits if w is not None]
        # Where one server did not ask for a pause, it can be tried as soon as that is due.
        wait_s = min(asked) if len(asked) == len(waits) else None
        raise InterruptedDeliveryError("; ".join(map(str, failed)), wait_s=wait_s)

    def _asked(self, method: str, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        shown, deadline = _shown(url), self._deadline
        watched = {"trace": deadline.trace}
        # Connecting and sending may each take as long as an answer, and longer for a long body.
        deadline.begin(2 * self._settings.timeout + len(body) / _SLOWEST)
        try:
            with self._client.stream(
                method, url, content=body, headers=headers, extensions=watched
            ) as response:
                answer = _answer(response)
            if deadline.passed:  # What ends where the connection does looks whole.
                raise TimeoutError
        except (self._httpx.TransportError, OSError) as e:
            raise _failure(shown, TimeoutError() if deadline.passed else e) from e
        finally:
            deadline.finish()
        if answer.status in _OK:
            return answer
        if answer.status in _LATER or answer.status in _BROKEN:
            raise InterruptedDeliveryError(f"{shown}: {answer.said}", wait_s=answer.wait_s)
        if answer.status in _REDIRECTS:
            raise KcapError(
                f"{shown}: {answer.said}: redirects are not followed",
                hint="give the URL where it is now",
            )
        if answer.status in _NEVER:
            raise KcapError(f"{shown}: {answer.said}", hint=_NEVER[answer.status])
        return answer


class Http:
    """Events to an HTTP server.

    Each request carries the id of its event, or of the first of its events and how many there are,
    as ``Idempotency-Key``.

    Args:
        settings: Where to send, and in which form.

    Raises:
        KcapError: An option is wrong, or a certificate can't be read.
    """

    options: ClassVar = HttpOptions
    batch: int = 500
    formats: ClassVar = ("jsonl", "template", "line", "tracee-json")
    needs: ClassVar = {"http": "httpx"}

    def __init__(self, settings: HttpOptions) -> None:
        if settings.body not in BODIES:
            raise KcapError(f"body {settings.body!r}", expected=", ".join(BODIES))
        if settings.method not in {"POST", "PUT", "PATCH"}:
            raise KcapError(f"method {settings.method!r}", expected="POST, PUT or PATCH")
        self._settings = settings
        self._client = Client(settings, settings.query)
        if settings.body == "event":
            self.batch = 1

    def open(self) -> None:
        """Get ready; the first request connects."""
        self._client.open()

    def send(self, messages: Sequence[Message]) -> Sequence[Refused]:
        """Send messages.

        Args:
            messages: What to send.

        Returns:
            Those that the server refuses.

        Raises:
            InterruptedDeliveryError: No server takes anything now.
            KcapError: A server will never take anything from us.
        """
        longest = 1 if self._settings.body == "event" else len(messages)
        return divided(messages, self._post, longest)

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def watch(self) -> None:
        """See `kcap.writers.sinks.transport.Transport`."""
        self._client.watch()

    def _post(self, messages: Sequence[Message]) -> str | None:
        first = quote(messages[0].id, safe=":")
        key = first if len(messages) == 1 else f"{first}+{len(messages)}"
        bodies = [message.body for message in messages]
        if self._settings.body == "array":
            body, kind = b"[" + b",".join(bodies) + b"]", _JSON
        elif self._settings.body == "ndjson":
            body, kind = b"\n".join(bodies) + b"\n", "application/x-ndjson"
        else:
            (body,) = bodies
            kind = _JSON if body[:1] in (b"{", b"[") else "text/plain; charset=utf-8"
        kind = self._settings.content_type or kind
        answer = self._client.ask(self._settings.method, "", body, kind, {"Idempotency-Key": key})
        return None if answer.status in _OK else answer.said


def divided(messages: Sequence[Message], post: Any, longest: int) -> list[Refused]:  # noqa: ANN401
    """Send messages in requests that the server takes: of one that it refuses, first one half.

    Args:
        messages: What to send.
        post: Sends some of them in one request; returns why the server refuses that, or None.
        longest: How many messages a request has at most.

    Returns:
        Those that are refused alone.

    Raises:
        InterruptedDeliveryError: See `Client.ask`; it says what was done before.
    """
    refused: list[Refused] = []
    at, step = 0, longest
    while at < len(messages):
        part = messages[at : at + step]
        try:
            why = post(part)
        except InterruptedDeliveryError as e:
            before = [Refused(at + r.at, r.reason) for r in e.refused]
            raise InterruptedDeliveryError(
                str(e), taken=at + e.taken, refused=[*refused, *before], wait_s=e.wait_s
            ) from e
        if isinstance(why, list):
            refused += [Refused(at + r.at, r.reason) for r in why]
            why = None
        elif why is not None and len(part) == 1:
            refused.append(Refused(at, why))
            why = None
        if why is not None:
            step = len(part) // 2
            continue
        at += len(part)
        step = min(2 * step, longest)
    return refused


def _answer(response: Any) -> Answer:  # noqa: ANN401  (an extra)
    body = b""
    for part in response.iter_raw():
        body += part
        if len(body) > _ANSWER_BYTES:
            break
    words = body[:_SAID_BYTES].decode("utf-8", "replace")
    said = server.said_short(f"{response.status_code} {response.reason_phrase} {words}")
    return Answer(response.status_code, body, _wait_s(response.headers.get("retry-after")), said)


def _wait_s(asked: str | None) -> float | None:
    """``Retry-After``: seconds, or a time."""
    if asked is None:
        return None
    if asked.strip().isdecimal():
        return float(asked)
    try:
        when = email.utils.parsedate_to_datetime(asked).timestamp()
    except ValueError:
        return None
    return max(0.0, when - time.time())


def _failure(shown: str, error: BaseException) -> KcapError:
    """What an error of httpx means, by what is behind it."""
    if "Timeout" in type(error).__name__:
        return server.failure(shown, TimeoutError())
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return server.failure(shown, cause)
        cause = cause.__cause__ or cause.__context__
    return server.failure(shown, error)


def _checked(headers: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in headers.items():
        if not name or not all(" " <= c <= "~" for c in name + value):
            raise KcapError(f"header {name!r}", expected="printable ASCII, NAME: VALUE")
    return headers


def _endpoint(url: str, query: str) -> str:
    """A URL as httpx gets it: without our own scheme before it, and without a password."""
    scheme, _, rest = url.partition("://")
    plain = scheme.rpartition("+")[2]
    parts = urlsplit(f"{plain}://{rest}")
    if plain not in ("http", "https") or not parts.hostname:
        raise KcapError(f"{_shown(url)!r} is no URL of an HTTP server")
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((plain, host, parts.path, query or parts.query, ""))


def _with_path(url: str, path: str) -> str:
    if not path:
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + path))


def _shown(url: str) -> str:
    """Scheme, host and port: a path may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
