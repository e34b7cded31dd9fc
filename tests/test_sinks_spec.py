"""What a user says of a sink: schemes, options, mistakes, and sinks of this machine."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sink_support import alerts, events, ids

from kcap import plugins
from kcap.errors import KcapError, MissingExtraError, OutputError
from kcap.model.batch import concat
from kcap.writers.sinks import spec
from kcap.writers.sinks.elastic import ElasticOptions
from kcap.writers.sinks.http import Http, HttpOptions


def http(url: str, **given: Any) -> HttpOptions:
    found = spec.parse(url, given).options
    assert isinstance(found, HttpOptions)
    return found


def test_a_url_says_transport_and_options() -> None:
    """The scheme says the transport, what stands behind the ? its options and those of delivery."""
    found = spec.parse(
        "http://me:pw@host:8080/in?gzip=yes&timeout=500ms&memory-bytes=4M&what=alerts"
        "&headers=X-A: b&headers=X-B:c&endpoints=http://a,http://b&batch=7"
    )

    assert found.transport is Http
    options = found.options
    assert isinstance(options, HttpOptions)
    assert options.url == "http://me:pw@host:8080/in"
    assert (options.gzip, options.timeout) == (True, 0.5)
    assert options.headers == {"X-A": "b", "X-B": "c"}
    assert options.endpoints == ("http://a", "http://b")
    assert isinstance(found.delivery, spec.DeliveryOptions)
    assert (found.delivery.memory_bytes, found.delivery.batch) == (4 << 20, 7)
    assert (found.what, found.form) == ("alerts", "jsonl")


def test_options_beside_the_url_go_before_those_in_it() -> None:
    """In a configuration file options have types of their own, and win."""
    found = http(
        "http://h/?timeout=1&gzip=no",
        timeout=5,
        gzip=True,
        headers={"A": "b", "N": 7},
        endpoints=["http://a"],
        password=1234,
        **{"tls-verify": "off"},
    )

    assert (found.timeout, found.gzip, found.tls_verify) == (5.0, True, False)
    assert found.headers == {"A": "b", "N": "7"}
    assert (found.endpoints, found.password) == (("http://a",), "1234")


@settings(max_examples=50)
@given(st.text(min_size=1, max_size=12))
def test_any_value_can_be_written_in_a_url(value: str) -> None:
    """Percent signs bring any text through a URL; a plus sign stays one."""
    from urllib.parse import quote

    assert http(f"http://h/?token={quote(value, safe='+')}").token == value


def test_a_pattern_of_a_date_needs_no_percent_signs() -> None:
    """What is no percent-encoding stays as it is: %Y is a directive, {{ }} a template."""
    found = spec.parse("elasticsearch+http://h/?index=kcap-{{ event }}-%Y.%m.%d").options

    assert isinstance(found, ElasticOptions)
    assert found.index == "kcap-{{ event }}-%Y.%m.%d"


@pytest.mark.parametrize(
    ("url", "said", "hint"),
    [
        ("nonsense", "no URL of a sink", "schemes: "),
        ("htpp://h/", "no sink 'htpp'", "did you mean http?"),
        ("http://h/?gzipp=yes", "no option gzipp", "did you mean gzip?"),
        ("http://h/?gzip", "'gzip' has no value", None),
        ("http://h/?gzip=perhaps", "gzip: 'perhaps'", None),
        ("http://h/?timeout=long", "timeout: 'long'", None),
        ("http://h/?batch=1.5", "batch: '1.5'", None),
        ("http://h/?batch=0", "batch: 0 is too small", None),
        ("http://h/?headers=none", "headers: 'none'", None),
        ("http://h/?format=csv", "format: 'csv'", None),
        ("http://h/?what=event", "what: 'event'", "did you mean events?"),
        ("http://h/?template=a&template-file=b", "both given", None),
        ("http://h/?password-file=/nowhere/x", "can't be read", None),
        ("file:a?batch=1", "no option batch", None),
    ],
)
def test_mistakes_are_told(url: str, said: str, hint: str | None) -> None:
    """A mistake is named with what would be right."""
    with pytest.raises(KcapError, match=said) as caught:
        spec.parse(url)

    assert caught.value.hint == hint or (hint or "?") in (caught.value.hint or "")


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    """A password is shown nowhere, wherever it was given."""
    (tmp_path / "password").write_text("topsecret\n")

    found = spec.parse(
        "http://me:top@sec:ret@host/in?token=topsecret",
        {"password-file": str(tmp_path / "password")},
    )

    assert isinstance(found.options, HttpOptions)
    assert found.options.password == "topsecret"
    assert found.shown == "http://me:***@host/in"
    shown = json.dumps(found.settings())
    assert "secret" not in shown
    assert "sec:ret" not in shown
    for url in ("http://me:topsecret@h/?a=1", "htp://me:topsecret@h/", "://me:topsecret@h"):
        with pytest.raises(KcapError) as caught:
            spec.parse(url)
        assert "topsecret" not in f"{caught.value} {caught.value.hint}"


def test_a_spool_is_known_by_where_it_sends_to() -> None:
    """Whoever logs in, it is the same sink; another path, even a secret one, is another."""
    urls = (
        *("http://a:1@h/x", "http://b:2@h/x?gzip=yes", "http://c@h/x", "http://h/x"),
        *("http://h/x?format=line", "http://h/y", "slack+https://h/a", "slack+https://h/b"),
    )
    keys = {url: spec.parse(url).key for url in urls}

    assert len({keys[url] for url in urls[:4]}) == 1
    assert len(set(keys.values())) == 5
    assert "/b" not in keys["slack+https://h/b"]


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a library is not installed the error says what to install."""
    monkeypatch.setattr(plugins, "missing", lambda _: ["http"])

    with pytest.raises(MissingExtraError) as caught:
        spec.parse("http://h/")
    assert caught.value.hint == "pip install 'kcap[http]'"


@pytest.mark.parametrize("scheme", sorted(plugins.found(plugins.SINKS)))
def test_every_transport_keeps_the_contract(scheme: str) -> None:
    """Each of our transports has options with help, formats that there are, and a batch."""
    found = plugins.load(plugins.SINKS, scheme)

    writers = {*plugins.found(plugins.WRITERS), "template"}
    assert found.formats
    assert set(found.formats) <= writers
    assert found.batch >= 1
    for name, field in found.options.__dataclass_fields__.items():
        assert field.metadata["help"], name
    own = {n for n in spec.DeliveryOptions.__dataclass_fields__ if n != "url"}
    assert not own & set(found.options.__dataclass_fields__)


def test_files_are_sinks(tmp_path: Path) -> None:
    """Several outputs of one run: a file each, with what each asked for."""
    paths = [tmp_path / name for name in ("all", "alerts", "lines")]
    made = [
        spec.opened(spec.parse(f"file:{paths[0]}"), live=False),
        spec.opened(spec.parse(f"file:{paths[1]}?what=alerts"), live=False),
        spec.opened(
            spec.parse(f"file:{paths[2]}?format=line&template={{{{ .Type }}}}"), live=False
        ),
    ]
    batch = concat([events(2), alerts(1)])
    for to in made:
        to.write(batch)
        to.close()
        to.close()

    lines = [json.loads(line) for line in paths[0].read_text().splitlines()]
    assert [f"{e['origin']}:{e['ord']}" for e in lines[:2]] == ids(2)
    assert [json.loads(line)["kind"] for line in paths[1].read_text().splitlines()] == ["alert"]
    assert paths[2].read_text() == "openat\nexecve\nalert\n"
    assert paths[0].stat().st_mode & 0o777 == 0o600


def test_a_file_may_be_a_table_or_csv(tmp_path: Path) -> None:
    """The forms of the console are those of files, Fibratus's names of them among them."""
    written = {}
    for query in ("format=csv&fields=event,pid", "format=csv", "format=table", "format=json"):
        path = tmp_path / str(len(written))
        to = spec.opened(spec.parse(f"file://{path}?{query}"), live=False)
        to.write(events(1))
        to.close()
        written[query] = path.read_text()

    assert written["format=csv&fields=event,pid"] == "event,pid\nopenat,100\n"
    assert written["format=csv"].count("\n") == 2
    assert "openat" in written["format=table"]
    assert json.loads(written["format=json"])["ord"] == 0
    with pytest.raises(KcapError, match="no column is called 'a b'"):
        spec.opened(spec.parse(f"file:{tmp_path}/x?format=csv&fields=a b"), live=False)


def test_files_are_not_replaced_by_accident(tmp_path: Path) -> None:
    """A file that is there stays, unless force says otherwise; a link is never written through."""
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        spec.opened(spec.parse(f"file:{path}"), live=False)
    forced = spec.opened(spec.parse(f"file:{path}?force=yes"), live=False)
    forced.write(events(1))
    assert path.read_text() == "old"
    forced.close()
    assert json.loads(path.read_text())["ord"] == 0
    (tmp_path / "link").symlink_to(tmp_path / "new")
    with pytest.raises(OutputError):
        spec.opened(spec.parse(f"file:{tmp_path / 'link'}"), live=False)
    with pytest.raises(KcapError, match="without a path"):
        spec.opened(spec.parse("file:"), live=False)
    with pytest.raises(KcapError, match="format: 'parquet'"):
        spec.opened(spec.parse(f"file:{tmp_path / 'x'}?format=parquet"), live=False)


def test_the_console_and_nothing_are_sinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """``console:`` writes to standard output, which stays open; ``null:`` writes nothing."""
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
    console = spec.opened(spec.parse("console:?format=template&template={{ event }}"), live=False)
    nothing = spec.opened(spec.parse("null:"), live=False)
    for to in (console, nothing):
        to.write(events(2))
        to.close()

    assert out.getvalue() == b"openat\nexecve\n"
