"""Slack: alerts as messages of a channel, nothing else unless asked."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from sink_support import T0, Request, Response, alerts, events, peer, sink

from kcap.errors import KcapError, OutputError
from kcap.model.batch import concat
from kcap.writers.sinks import slack, spec
from kcap.writers.sinks.transport import Message


def test_alerts_are_posted_and_events_are_not() -> None:
    """By default a channel gets alerts alone, one a message, in order."""
    with peer() as server:
        to = sink(f"slack+http://{server.place}/services/T/B/secret", username="kcap")
        to.write(concat([events(5), alerts(2), events(5, 5)]))
        to.close()

    assert [r.path for r in server.requests] == ["/services/T/B/secret"] * 2
    first = server.taken[0]
    assert first["username"] == "kcap"
    (shown,) = first["attachments"]
    assert shown["title"] == "A &lt;shell&gt;"
    assert shown["text"] == "bash &amp; co"
    assert shown["color"] == "#d9534f"
    assert shown["ts"] == T0 // 10**9
    fields = {f["title"]: f["value"] for f in shown["fields"]}
    assert fields == {"Rule": "T1059", "Severity": "high"}
    assert (to.sent, to.confirmed) == (2, 2)


def test_a_limit_is_kept() -> None:
    """When Slack asks to wait the next message waits that long, and none is lost."""
    times: list[float] = []

    def answer(_: Request) -> Response:
        times.append(time.monotonic())
        return Response(429, headers={"Retry-After": "1"}) if len(times) == 2 else Response()

    with peer(answer) as server:
        to = sink(f"slack+http://{server.place}/services/x")
        to.write(alerts(3))
        to.close()

        assert len(server.requests) == 3
    assert times[2] - times[1] >= 1


def test_the_path_is_a_secret(tmp_path: Path) -> None:
    """Who knows a webhook's path can post, so no message shows it."""
    found = spec.parse("slack+https://hooks.example/services/T/B/secret")

    assert found.shown == "slack+https://hooks.example/***"
    with peer(lambda _: Response(404, b"no_service")) as server:
        to = sink(f"slack+http://{server.place}/services/T0pS3cret", spool=str(tmp_path))
        to.write(alerts(1))
        with pytest.raises(OutputError, match="no_service") as caught:
            to.close()
    assert "T0pS3cret" not in f"{caught.value} {caught.value.hint}"
    assert isinstance(caught.value, KcapError)


def body(of: bytes) -> dict[str, object]:
    return slack.shown(Message("a:1", of))


def test_other_bodies_are_text() -> None:
    """A line or the text of a template is the message's text, without links or mentions."""
    assert body(b"<!channel> a & b") == {"text": "&lt;!channel&gt; a &amp; b"}
    assert body(b"[1]") == {"text": "[1]"}
    assert str(body(b"[" * 100_000)["text"]).startswith("[[[")
    assert len(str(body(b"x" * 10_000)["text"])) == 3000


def test_a_message_of_slack_goes_as_it_is() -> None:
    """A template may make the whole payload."""
    payload = {"blocks": [{"type": "divider"}], "text": "<https://a|b>"}

    assert body(json.dumps(payload).encode()) == payload


def test_an_event_is_shown_by_its_name() -> None:
    """With what=events an event has its name and process."""
    (shown,) = body(b'{"event":"execve","pid":7,"text":"x"}')["attachments"]  # type: ignore[misc]

    assert shown["title"] == "execve"  # type: ignore[index]
    assert shown["fields"] == [{"title": "Pid", "value": "7", "short": True}]  # type: ignore[index]
