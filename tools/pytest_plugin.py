"""A pytest plugin for who writes rules: fixtures that run rules over captures.

::

    def test_injection(alerts):
        found = alerts("hides.kcap", "./rules", "TRC-3")
        assert [one["arg_rule"] for one in found] == ["TRC-3"]

    def test_all(alerts, golden):
        golden("hides.jsonl", alerts("hides.kcap"))

Paths are those beside the test's file. ``pytest --kcap-update`` writes golden files anew. Nothing
of kcap is imported before a test asks for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from kcap.capture import Capture
    from kcap.model.stream import Source
    from kcap.replay.pipeline import Stage

Events = str | Path | Sequence[Mapping[str, Any]]
"""A capture, or a few events as `kcap.detect.feed` takes them."""


class Captures(Protocol):
    """What the fixture ``capture`` is."""

    def __call__(self, path: str | Path) -> Capture:
        """Open a capture."""


class Alerts(Protocol):
    """What the fixture ``alerts`` is."""

    def __call__(
        self, events: Events, *rules: str | Path, signatures: str | None = None
    ) -> list[dict[str, Any]]:
        """Run rules over events, and give their alerts."""


class Replay(Protocol):
    """What the fixture ``replay`` is."""

    def __call__(self, events: Events, where: str | None = None) -> list[dict[str, Any]]:
        """Replay events, and give them."""


class Golden(Protocol):
    """What the fixture ``golden`` is."""

    def __call__(self, path: str | Path, found: Sequence[Mapping[str, Any]]) -> None:
        """Compare alerts or events with a file."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare ``--kcap-update``.

    Args:
        parser: pytest's.
    """
    text = "Write the golden files of kcap's fixtures anew."
    parser.getgroup("kcap").addoption("--kcap-update", action="store_true", help=text)


@pytest.fixture
def capture(request: pytest.FixtureRequest) -> Iterator[Captures]:
    """Opens captures, and closes them when the test ends.

    Args:
        request: pytest's.

    Yields:
        The function: from a path to a `kcap.capture.Capture`.
    """
    import kcap

    with ExitStack() as stack:

        def opened(path: str | Path) -> Capture:
            return stack.enter_context(kcap.open(_beside(request, path)))

        yield opened


@pytest.fixture
def replay(request: pytest.FixtureRequest) -> Replay:
    """Replays events.

    Args:
        request: pytest's.

    Returns:
        The function: from events, and a filter, to events as JSON has them.
    """

    def replayed(events: Events, where: str | None = None) -> list[dict[str, Any]]:
        import io

        from kcap.filter import Filter
        from kcap.replay.pipeline import Pipeline
        from kcap.replay.stages import EventsOnly, Matching
        from kcap.writers.jsonl import JsonLines

        out = io.BytesIO()
        stages: list[Stage] = [EventsOnly()]
        if where is not None:
            stages.append(Matching(Filter.of(where)))
        with closing(_source(request, events)) as source:
            Pipeline(source, [JsonLines(out)], stages=stages).run()
        return [json.loads(line) for line in out.getvalue().splitlines()]

    return replayed


@pytest.fixture
def alerts(request: pytest.FixtureRequest) -> Alerts:
    """Runs rules.

    Args:
        request: pytest's.

    Returns:
        The function: from events and rules, files, folders or IDs, to alerts as JSON has them.
    """

    def raised(
        events: Events, *rules: str | Path, signatures: str | None = None
    ) -> list[dict[str, Any]]:
        from kcap.tools import rule_tests, ruleset

        beside = [_beside(request, rule) for rule in rules]
        words = [str(b if b.exists() else r) for b, r in zip(beside, rules, strict=True)]
        chosen = ruleset.selected(words, signatures)
        for problem in chosen.problems:
            raise problem.error
        with closing(_source(request, events)) as source:
            found = rule_tests.alerts_of(source, chosen.rules)
        return [json.loads(line) for line in found.splitlines()]

    return raised


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compares alerts or events with a file of JSON lines, as ``kcap detect`` prints them.

    Args:
        request: pytest's.

    Returns:
        The function: from the file and what was found to nothing; it fails the test where they
        differ.
    """

    def check(path: str | Path, found: Sequence[Mapping[str, Any]]) -> None:
        from kcap.model.text import json_safe, json_text

        file = _beside(request, path)
        lines = [json_safe(json_text(one)) for one in found]
        if request.config.getoption("--kcap-update", default=False):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"{line}\n" for line in lines), "utf-8")
            return
        if not file.is_file():
            pytest.fail(f"{file} is not there: pytest --kcap-update writes it")
        assert [*lines, ""] == file.read_text("utf-8").split("\n"), f"{file}: other alerts"

    return check


def _source(request: pytest.FixtureRequest, events: Events) -> Source:
    """Events to be read."""
    if isinstance(events, str | Path):
        from kcap.opening import open_source

        return open_source(_beside(request, events))
    from kcap.detect import feed

    return feed.source(events)


def _beside(request: pytest.FixtureRequest, path: str | Path) -> Path:
    return request.path.parent / path
