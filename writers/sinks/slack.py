"""Slack, by an incoming webhook: alerts as messages of a channel."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from kcap.writers.sinks.http import Client, ClientOptions, divided
from kcap.writers.sinks.transport import Message, Refused, option

_COLORS: Final = {"low": "#2eb886", "medium": "#daa038", "high": "#d9534f", "critical": "#8b0000"}
_TEXT_CHARS: Final = 3000
"""What Slack shows of a text."""
_ABOUT: Final = (
    ("Rule", "arg_rule"),
    ("Severity", "arg_severity"),
    ("Host", "host"),
    ("Process", "process_name"),
    ("Pid", "pid"),
    ("User", "user"),
)
_ESCAPES: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_SECOND_NS: Final = 10**9
_OK: Final = range(200, 300)


@dataclass(frozen=True, kw_only=True)
class SlackOptions(ClientOptions):
    """The settings of `Slack`."""

    channel: str | None = option("channel, where the webhook is an old one", default=None)
    username: str | None = option("who posts, where the webhook is an old one", default=None)
    icon_emoji: str | None = option("its picture, as :rotating_light:", default=None)


class Slack:
    """Alerts to a channel.

    An alert is shown with its title, text, severity and process. Another event is shown by its
    name. A body of another format is the text; one that is a message of Slack's own (``text`` or
    ``blocks``) goes as it is.

    Args:
        settings: The webhook.

    Raises:
        KcapError: An option is wrong.
    """

    options: ClassVar = SlackOptions
    batch: ClassVar = 1
    formats: ClassVar = ("jsonl", "template", "line")
    needs: ClassVar = {"http": "httpx"}
    what: ClassVar = "alerts"
    secret_path: ClassVar = True
    """Who knows the path of a webhook can post."""

    def __init__(self, settings: SlackOptions) -> None:
        self._client = Client(settings)
        given = {
            "channel": settings.channel,
            "username": settings.username,
            "icon_emoji": settings.icon_emoji,
        }
        self._always = {name: value for name, value in given.items() if value is not None}

    def open(self) -> None:
        """Get ready; the first request connects."""
        self._client.open()

    def send(self, messages: Sequence[Message]) -> Sequence[Refused]:
        """Post messages, one a request.

        Args:
            messages: What to post.

        Returns:
            Those that Slack refuses.

        Raises:
            InterruptedDeliveryError: It asks to wait, or does not answer.
            KcapError: The webhook is not in use any more.
        """
        return divided(messages, self._post, 1)

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def watch(self) -> None:
        """See `kcap.writers.sinks.transport.Transport`."""
        self._client.watch()

    def _post(self, messages: Sequence[Message]) -> str | None:
        payload = json.dumps(self._always | shown(messages[0]), ensure_ascii=False)
        answer = self._client.ask("POST", "", payload.encode(), "application/json")
        return None if answer.status in _OK else answer.said


def shown(message: Message) -> dict[str, Any]:
    """An event as a message of Slack's.

    Args:
        message: The event.

    Returns:
        Its payload.
    """
    try:
        found = json.loads(message.body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, Mapping):
        return {"text": _escaped(message.body.decode("utf-8", "replace"))}
    if "event" not in found and ("text" in found or "blocks" in found):
        return dict(found)
    title = str(found.get("arg_title") or found.get("event") or "event")
    fields = [
        {"title": name, "value": _escaped(str(found[column])), "short": True}
        for name, column in _ABOUT
        if column in found
    ]
    attachment: dict[str, Any] = {
        "fallback": _escaped(title),
        "color": _COLORS.get(str(found.get("arg_severity")), "#888888"),
        "title": _escaped(title),
        "text": _escaped(str(found.get("arg_text", ""))),
        "fields": fields,
        "footer": f"kcap {message.id}",
    }
    if message.ts_ns is not None:
        attachment["ts"] = message.ts_ns // _SECOND_NS
    return {"attachments": [attachment]}


def _escaped(text: str) -> str:
    """What Slack would take for a link or a mention, as text."""
    cut = text if len(text) <= _TEXT_CHARS else f"{text[: _TEXT_CHARS - 1]}…"
    return cut.translate(_ESCAPES)
