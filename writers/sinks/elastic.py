"""Elasticsearch and OpenSearch, by the bulk API: each event a document under its own id.

Documents are created, never replaced: one that is there already was sent before, and counts as
taken. An answer tells of each document how it fared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import quote

from kcap.errors import KcapError
from kcap.writers.sinks import server
from kcap.writers.sinks.http import Client, ClientOptions, divided
from kcap.writers.sinks.transport import InterruptedDeliveryError, Message, Refused, option

_NDJSON: Final = "application/x-ndjson"
_JSON: Final = "application/json"
_TEMPLATE_BYTES: Final = 1 << 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND_NS: Final = 10**9
_HOUR_NS: Final = 3600 * _SECOND_NS
_DIRECTIVE: Final = re.compile("%(.)", re.DOTALL)
_DIRECTIVES: Final[Mapping[str, Callable[[datetime], str]]] = {
    "Y": lambda at: f"{at.year:04d}",
    "y": lambda at: f"{at.year % 100:02d}",
    "m": lambda at: f"{at.month:02d}",
    "d": lambda at: f"{at.day:02d}",
    "H": lambda at: f"{at.hour:02d}",
    "j": lambda at: f"{at.timetuple().tm_yday:03d}",
    "%": lambda _: "%",
}
_OK: Final = range(200, 300)
_THERE: Final = 409
_BUSY: Final = 429
_NO_ANSWER: Final = (
    *(ValueError, TypeError, KeyError, AttributeError, StopIteration, RecursionError),
)
_BROKEN: Final = 500
_BLOCKED: Final = "cluster_block_exception"
_FORBIDDEN: Final = "security_exception"


@dataclass(frozen=True, kw_only=True)
class ElasticOptions(ClientOptions):
    """The settings of `Elastic`."""

    index: str = option(
        "index, alias or data stream; %Y %m %d %H %j by the event's time",
        default="kcap-%Y.%m.%d",
        template=True,
    )
    timestamp: str = option("field for the event's time, RFC 3339; none: ''", default="@timestamp")
    pipeline: str | None = option("ingest pipeline", default=None)
    index_template: str | None = option("a JSON file to put as index template", default=None)
    index_template_name: str = option("its name there", default="kcap")
    api_key: str | None = option("an API key, encoded", default=None, secret=True)
    bulk_bytes: int = option("longest request, before compression", default=5 << 20)


class Elastic:
    """Events to Elasticsearch or OpenSearch.

    Args:
        settings: Where the servers are, and which index to write to.

    Raises:
        KcapError: An option is wrong, or a file can't be read.
    """

    options: ClassVar = ElasticOptions
    batch: ClassVar = 1000
    formats: ClassVar = ("jsonl", "template", "tracee-json")
    needs: ClassVar = {"http": "httpx"}

    def __init__(self, settings: ElasticOptions) -> None:
        self._settings = settings
        self._client = Client(_with_key(settings))
        for match in _DIRECTIVE.finditer(settings.index):
            if match[1] not in _DIRECTIVES:
                known = " ".join(f"%{name}" for name in _DIRECTIVES)
                raise KcapError(f"index: {match[0]!r} is not known here", expected=known)
        path = settings.index_template
        self._template = None if path is None else _template(path)
        self._action = lru_cache(1024)(_action)
        name = settings.timestamp
        self._stamped = f'{{{json.dumps(name)}:"'.encode() if name else b""
        self._path = "/_bulk"
        if settings.pipeline:
            self._path += f"?pipeline={quote(settings.pipeline, safe='')}"

    def open(self) -> None:
        """Get ready; put the index template where there is one.

        Raises:
            InterruptedDeliveryError: No server answers.
            KcapError: The template is refused, or we are.
        """
        self._client.open()
        if self._template is None:
            return
        name = quote(self._settings.index_template_name, safe="")
        answer = self._client.ask("PUT", f"/_index_template/{name}", self._template, _JSON)
        if answer.status not in _OK:
            raise KcapError(
                f"{self._client.shown}: the index template is refused: {answer.said}",
                file=self._settings.index_template,
            )

    def send(self, messages: Sequence[Message]) -> Sequence[Refused]:
        """Create documents.

        Args:
            messages: The events.

        Returns:
            Those that the server refuses: with a field of another type than it knows, for example.

        Raises:
            InterruptedDeliveryError: No server answers, or it is too busy for some of them.
            KcapError: A server will never take anything from us.
        """
        refused: list[Refused] = []
        start = 0
        while start < len(messages):
            stop = self._fitting(messages, start)
            part = messages[start:stop]
            try:
                found = divided(part, self._post, len(part))
            except InterruptedDeliveryError as e:
                before = [Refused(start + r.at, r.reason) for r in e.refused]
                raise InterruptedDeliveryError(
                    str(e), taken=start + e.taken, refused=[*refused, *before], wait_s=e.wait_s
                ) from e
            refused += [Refused(start + r.at, r.reason) for r in found]
            start = stop
        return refused

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def watch(self) -> None:
        """See `kcap.writers.sinks.transport.Transport`."""
        self._client.watch()

    def _fitting(self, messages: Sequence[Message], start: int) -> int:
        """How far a request can go from a message on without becoming too long."""
        size, stop = 0, start
        while stop < len(messages):
            size += len(messages[stop].body)
            if size > self._settings.bulk_bytes and stop > start:
                break
            stop += 1
        return stop

    def _post(self, messages: Sequence[Message]) -> str | list[Refused] | None:
        answer = self._client.ask("POST", self._path, self._lines(messages), _NDJSON)
        if answer.status not in _OK:
            return answer.said
        try:
            said = json.loads(answer.body)
            # It says which operation it did; there is but one.
            items = [next(iter(item.values())) for item in said["items"]]
            states = [(int(item["status"]), item.get("error") or {}) for item in items]
        except _NO_ANSWER as e:
            raise KcapError(
                f"{self._client.shown}: this is no answer to a bulk request: {answer.said}",
                hint="is this Elasticsearch or OpenSearch?",
            ) from e
        if len(states) != len(messages):
            raise KcapError(
                f"{self._client.shown}: an answer about {len(states)} documents",
                expected=str(len(messages)),
            )
        return self._fared(states, answer.wait_s)

    def _fared(self, states: Sequence[tuple[int, Any]], wait_s: float | None) -> list[Refused]:
        """What came of each document."""
        refused: list[Refused] = []
        for at, (status, error) in enumerate(states):
            if status in _OK or status == _THERE:
                continue
            kind, reason = _why(error)
            said = server.said_short(f"{status} {kind}: {reason}")
            if kind == _FORBIDDEN:
                raise KcapError(
                    f"{self._client.shown}: {said}", hint="check what this user may write to"
                )
            if status == _BUSY or status >= _BROKEN or kind == _BLOCKED:
                # Those behind it that are taken are found there when they are sent again.
                raise InterruptedDeliveryError(
                    f"{self._client.shown}: {said}", taken=at, refused=refused, wait_s=wait_s
                )
            refused.append(Refused(at, said))
        return refused

    def _lines(self, messages: Sequence[Message]) -> bytes:
        parts: list[bytes] = []
        for message in messages:
            index = message.values.get("index", self._settings.index)
            hour = (message.ts_ns or 0) // _HOUR_NS
            parts += [
                self._action(index, hour),
                json.dumps(message.id).encode(),
                b"}}\n",
                self._dated(message),
                b"\n",
            ]
        return b"".join(parts)

    def _dated(self, message: Message) -> bytes:
        """A document with its time where dashboards look for it."""
        ns, body = message.ts_ns, message.body
        if not self._stamped or ns is None or body[:1] != b"{":
            return body
        rest = body[1:]
        if rest.lstrip()[:1] != b"}":
            rest = b"," + rest
        return b'%b%b.%09dZ"%b' % (self._stamped, _second(ns // _SECOND_NS), ns % _SECOND_NS, rest)


def _with_key(settings: ElasticOptions) -> ClientOptions:
    """The settings of a client: an API key is a header."""
    if settings.api_key is None:
        return settings
    user, _ = server.login(settings)
    if user is not None or settings.token is not None:
        raise KcapError("api-key, user and token: more than one is given", hint="give one")
    named = {**settings.headers, "Authorization": f"ApiKey {settings.api_key}"}
    values = {name: getattr(settings, name) for name in ClientOptions.__dataclass_fields__}
    return ClientOptions(**{**values, "headers": named})


def _template(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            found = file.read(_TEMPLATE_BYTES + 1)
        if len(found) > _TEMPLATE_BYTES:
            raise KcapError("the index template is too long", file=path, expected="1 MiB at most")
        json.loads(found)
    except OSError as e:
        raise KcapError(f"the index template can't be read: {e.strerror}", file=path) from e
    except ValueError as e:
        raise KcapError(f"the index template is no JSON: {e}", file=path) from e
    return found


def _why(error: Any) -> tuple[str, str]:  # noqa: ANN401  (as the server says it)
    if isinstance(error, Mapping):
        reason = error.get("reason")
        cause = error.get("caused_by")
        if isinstance(cause, Mapping) and cause.get("reason"):
            reason = f"{reason}: {cause['reason']}"
        return str(error.get("type")), str(reason)
    return "error", str(error)


def _action(index: str, hour: int) -> bytes:
    """What stands before the id of a document, for an index of an hour's events."""
    at = _EPOCH + timedelta(hours=hour)
    named = _DIRECTIVE.sub(lambda m: _spelled(m, at), index)
    return f'{{"create":{{"_index":{json.dumps(named)},"_id":'.encode()


def _spelled(match: re.Match[str], at: datetime) -> str:
    """A directive, or what looks like one because an event's text came in its place."""
    directive = _DIRECTIVES.get(match[1])
    return match[0] if directive is None else directive(at)


@lru_cache(256)
def _second(seconds: int) -> bytes:
    return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}".encode()
