"""A recorder's numbers for Prometheus: the format to the letter, and the server that gives it."""

from __future__ import annotations

import contextlib
import http.client
import math
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from cli_support import run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_control_stats import folder, named, recorder, status_of  # noqa: F401

from kcap.model.side import Loss
from kcap.replay.pipeline import Summary
from kcap.tools import metrics, prometheus, status
from kcap.tools.metrics import Address, ListenAddress

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^\\"\n]|\\\\|\\"|\\n)*"'
VALUE = r"[+-]?(?:[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?|Inf)|NaN"
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? ({VALUE})")
HELP = re.compile(rf"# HELP ({NAME}) ((?:[^\\\n]|\\\\|\\n)*)")
TYPE = re.compile(rf"# TYPE ({NAME}) (counter|gauge|untyped)")

Found = dict[str, tuple[str, dict[tuple[tuple[str, str], ...], float]]]


def parsed(text: str) -> Found:
    """Metric to type and samples, by the grammar of the format; anything else is an error."""
    found: Found = {}
    assert text.endswith("\n")
    lines = iter(text.removesuffix("\n").split("\n"))
    name = ""
    for line in lines:
        if help_ := HELP.fullmatch(line):
            name = help_[1]
            assert name not in found, f"{name} twice"
            type_ = TYPE.fullmatch(next(lines))
            assert type_ is not None
            assert type_[1] == name
            assert (type_[2] == "counter") == name.endswith("_total"), line
            found[name] = (type_[2], {})
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample is not None, line
        assert sample[1] == name, line
        pairs = re.findall(r"([a-zA-Z0-9_]+)=\"((?:[^\\\"\n]|\\.)*)\"", sample[2] or "")
        labels = tuple((key, unescaped(value)) for key, value in pairs)
        assert len(dict(labels)) == len(labels)
        assert labels not in found[name][1], f"{line} twice"
        found[name][1][labels] = float(sample[3])
    return found


def unescaped(value: str) -> str:
    return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], value)


def test_a_report_becomes_metrics() -> None:
    """Every number of a report is there with its value, counters as counters, in base units."""
    summary = Summary(events_in=9, events_out=7, losses=[Loss("lost", 5, "why"), Loss("torn")])
    report = status_of(named(["open", "open", 'a"\\\n']), summary=summary)

    found = parsed(prometheus.exposition(report))

    plain = {name: samples[()] for name, (_, samples) in found.items() if () in samples}
    assert plain["kcap_events_total"] == 7
    assert plain["kcap_events_seen_total"] == 9
    assert plain["kcap_events_lost_total"] == 5
    assert plain["kcap_torn_findings_total"] == 1
    assert plain["kcap_start_time_seconds"] == 1e9
    assert plain["kcap_processes"] == 1
    assert plain["kcap_resident_memory_bytes"] == report["rss_bytes"] > 0
    names = found["kcap_events_by_name_total"][1]
    assert names == {(("event", "open"),): 2, (("event", 'a"\\\n'),): 1}
    ((about, value),) = found["kcap_recorder_info"][1].items()
    assert value == 1
    assert dict(about)["source"] == "kcap-bpf"


def test_every_number_of_a_report_is_meant() -> None:
    """Each name that a report may have is a metric, or left out on purpose."""
    texts = {"details", "losses", "pids"}
    known = {*prometheus.METRICS, *prometheus.BY_NAME, *prometheus.EACH}
    known |= {*prometheus._ABOUT, *prometheus._ELSEWHERE}

    assert known | texts == set(status.FIELDS)


def test_sinks_have_their_own() -> None:
    """Each sink's numbers bear its name; what is refused bears the reason; new names are kept."""
    sink = {
        "sink": 'https://a/b?c="d"',
        "state": "running",
        "taken": 12,
        "refused": {"too long": 2, "no": 1},
        "novel": 5,
        "error": None,
    }
    report = {**status_of(), "sinks": [sink, {**sink, "sink": "amqp://x", "taken": 1}], "later": 3}

    found = parsed(prometheus.exposition(report))

    assert found["kcap_sink_delivered_total"] == (
        "counter",
        {(("sink", 'https://a/b?c="d"'),): 12, (("sink", "amqp://x"),): 1},
    )
    reasons = (("sink", "amqp://x"), ("reason", "too long"))
    assert found["kcap_sink_refused_total"][1][reasons] == 2
    assert found["kcap_sink_state"][1][("sink", "amqp://x"), ("state", "running")] == 1
    assert found["kcap_sink_novel"] == ("untyped", {(("sink", s["sink"]),): 5 for s in (sink, {"sink": "amqp://x"})})  # fmt: skip # noqa: E501
    assert found["kcap_later"] == ("untyped", {(): 3})
    by_name = parsed(prometheus.exposition({"sinks": {"x": {"taken": 3}}}))
    assert by_name["kcap_sink_delivered_total"][1] == {(("sink", "x"),): 3}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from([*status.FIELDS, "sinks", "new", 'n"ew\n', ""]), JSON),
)
def test_whatever_a_recorder_says_the_format_holds(report: dict[str, Any]) -> None:
    """No report of any version, nor one of a liar, makes text that Prometheus refuses."""
    report.setdefault("sinks", {})
    parsed(prometheus.exposition(report))


def test_the_grammar_refuses() -> None:
    """The grammar that the tests use knows wrong text when it sees it."""
    right = "# HELP a_total b\n# TYPE a_total counter\n"
    parsed(f'{right}a_total{{x="\\n"}} 1\n')
    for wrong in (
        f'{right}a_total{{x="\n"}} 1\n',
        f'{right}a_total{{x="""}} 1\n',
        f'{right}a_total{{x="\\t"}} 1\n',
        f"{right}a_total nan\n",
        f"{right}b 1\n",
        f"{right}a_total 1\na_total 1\n",
        f"{right}{right}",
        "# HELP a b\n# TYPE a counter\na 1\n",
        f"{right}a_total 1",
    ):
        with pytest.raises(AssertionError):
            parsed(wrong)


def test_numbers_are_exact() -> None:
    """Whole numbers of any size keep all digits; what is no number has its own word."""
    assert "kcap_events_total 9007199254740993\n" in prometheus.exposition({"events": 2**53 + 1})
    for value, wanted in ((math.nan, "NaN"), (math.inf, "+Inf"), (-math.inf, "-Inf"), (0.5, "0.5")):
        assert f"kcap_cpu_seconds_total {wanted}\n" in prometheus.exposition({"cpu_s": value})


def test_the_verb_prints_it(folder: Path) -> None:  # noqa: F811
    """`kcap stats --live --format prometheus` is one reading."""
    with recorder(folder):
        done = run("stats", "--live", "--format", "prometheus")

    assert done.exit_code == 0
    assert parsed(done.stdout)["kcap_recorder_info"]


@pytest.mark.parametrize(
    "words",
    [
        ["--format", "prometheus"],
        ["--listen", "1"],
        ["--live", "--listen", "1", "--json"],
        ["--live", "--listen", "1", "-n", "1"],
        ["--live", "--format", "prometheus", "--interval", "1"],
        ["--live", "--format", "prometheus", "--json"],
        *(["--live", "--listen", a] for a in ("a:1", "1.2.3.4", "70000", "::", "127.0.0.1:")),
    ],
)
def test_misuse(words: list[str]) -> None:
    """What makes no sense together, and what is no address, is wrong usage."""
    assert run("stats", *words).exit_code == 2


def test_addresses() -> None:
    """A port alone is one of the loopback; other addresses have to be named."""

    def address(text: str) -> tuple[str, int]:
        return tuple(ListenAddress().convert(text, None, None))  # type: ignore[return-value]

    assert address("9099") == address(":9099") == address("localhost:9099") == ("127.0.0.1", 9099)
    assert address("[::1]:1") == ("::1", 1)
    assert address("0.0.0.0:0") == ("0.0.0.0", 0)
    with pytest.raises(click.BadParameter):
        address("example.org:80")


@contextlib.contextmanager
def served(
    monkeypatch: pytest.MonkeyPatch, host: str = "127.0.0.1", read: Any = None
) -> Iterator[int]:
    """A server of a report in a thread; gives its port."""
    kind = metrics._Server6 if ":" in host else metrics._Server
    made: list[Any] = []
    begun = threading.Event()

    def serve_forever(server: Any) -> None:
        made.append(server)
        begun.set()
        super(kind, server).serve_forever(poll_interval=0.01)

    monkeypatch.setattr(kind, "serve_forever", serve_forever, raising=False)
    work = threading.Thread(target=metrics.serve, args=(Address(host, 0), read or status_of))
    work.start()
    try:
        assert begun.wait(5)
        yield made[0].server_port
    finally:
        made[0].shutdown()
        work.join()


def asked(port: int, method: str = "GET", path: str = "/metrics", **headers: str) -> Any:
    """Status, content type and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    try:
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def test_the_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request for /metrics gets a fresh reading; others, and names of elsewhere, do not."""
    readings = iter(range(1, 100))

    def read() -> dict[str, Any]:
        return {"events": next(readings)}

    with served(monkeypatch, read=read) as port:
        code, kind, body = asked(port)
        assert (code, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert parsed(body)["kcap_events_total"][1] == {(): 1}
        assert parsed(asked(port, path="/metrics?x=1")[2])["kcap_events_total"][1] == {(): 2}
        assert asked(port, "HEAD") == (200, kind, "")
        assert asked(port, path="/")[0] == 404
        assert asked(port, "POST")[0] == 501
        assert asked(port, Host="localhost")[0] == 200
        assert asked(port, Host=f"[::1]:{port}")[0] == 200
        assert asked(port, Host=f"evil.example:{port}")[0] == 421


def test_the_server_outlives_the_recorder(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,  # noqa: F811
) -> None:
    """Between two recorders the answer is 503 with the reason, then the new one's numbers."""
    from kcap.tools import stats_live

    with served(monkeypatch, read=lambda: stats_live._reading(stats_live._chosen(()))) as port:
        code, _, body = asked(port)
        assert code == 503
        assert "no recorder" in body
        with recorder(folder):
            assert asked(port)[0] == 200


def test_a_silent_client_holds_nobody_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who connects and says nothing is let go."""
    monkeypatch.setattr(metrics._Handler, "timeout", 0.2)
    with served(monkeypatch) as port, socket.create_connection(("127.0.0.1", port)):
        assert asked(port)[0] == 200


def test_a_port_in_use_is_said_so() -> None:
    """A port that somebody has is an error that names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("stats", "--live", "--listen", str(port))

    assert done.exit_code == 1
    assert f"can't listen at 127.0.0.1:{port}" in done.output
