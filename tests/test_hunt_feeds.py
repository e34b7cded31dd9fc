"""Indicators are understood as people write them, in every kind of file; what is none is named."""

from __future__ import annotations

import io
import ipaddress
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import BadInputError, KcapError, LimitError
from kcap.hunt import feeds
from kcap.hunt.feeds import Feeds
from kcap.hunt.indicators import Indicator, Kind, parse, refanged

MD5, SHA1, SHA256 = "0af" * 10 + "bc", "1" * 40, "Ab" * 32

SPELLINGS = [
    (MD5, Kind.MD5, MD5),
    (SHA1, Kind.SHA1, SHA1),
    (SHA256, Kind.SHA256, SHA256.lower()),
    (f"sha256:{SHA256}", Kind.SHA256, SHA256.lower()),
    ("192.0.2.7", Kind.NETWORK, "192.0.2.7/32"),
    ("192.0.2[.]7", Kind.NETWORK, "192.0.2.7/32"),
    ("192.0.2(dot)7:443", Kind.NETWORK, "192.0.2.7/32"),
    ("192.0.2.7/24", Kind.NETWORK, "192.0.2.0/24"),
    ("2001:DB8::7", Kind.NETWORK, "2001:db8::7/128"),
    ("[2001:db8::7]:443", Kind.NETWORK, "2001:db8::7/128"),
    ("fe80::1%eth0", Kind.NETWORK, "fe80::1/128"),
    ("::ffff:192.0.2.7", Kind.NETWORK, "192.0.2.7/32"),
    ("::ffff:192.0.2.0/120", Kind.NETWORK, "192.0.2.0/24"),
    ("hxxps://192[.]0[.]2[.]7/a?b", Kind.NETWORK, "192.0.2.7/32"),
    ("Evil.Example", Kind.DOMAIN, "evil.example"),
    ("evil[.]example.", Kind.DOMAIN, "evil.example"),
    ("*.evil.example", Kind.DOMAIN, "evil.example"),
    ("evil.example/gate.php", Kind.DOMAIN, "evil.example"),
    ("hXXp[://]a.evil{.}example:8080/x#y", Kind.DOMAIN, "a.evil.example"),
    ("http://user@evil.example", Kind.DOMAIN, "evil.example"),
    ("run.sh", Kind.DOMAIN, "run.sh"),
    ("path:run.sh", Kind.FILENAME, "run.sh"),
    ("evil.exe", Kind.FILENAME, "evil.exe"),
    ("evil*.exe", Kind.FILENAME, "evil*.exe"),
    ("/tmp/.X11 lock", Kind.PATH, "/tmp/.X11 lock"),
    ("/tmp/.x*", Kind.PATH, "/tmp/.x*"),
    ("C:\\Users\\a b\\x.exe", Kind.PATH, "C:\\Users\\a b\\x.exe"),
    ("path:C:/x", Kind.PATH, "C:/x"),
    ("%APPDATA%\\x.exe", Kind.PATH, "*\\x.exe"),
    ("\\\\host\\share\\x", Kind.PATH, "\\\\host\\share\\x"),
]
BAD = [
    *("nothing", "1.2.3", "256.1.1.1", "a" * 33, "*", "/*", "1.2.3.4/33", "foo:bar", "a b", "é"),
    *("md5:" + SHA1, "ip:evil.example", "domain:7", "domain:evil..example", "domain|ip:a.example"),
]


def read(text: str | bytes, *, lenient: bool = False) -> Feeds:
    """The indicators in a file."""
    found = Feeds(lenient=lenient)
    found.read(io.BytesIO(text.encode() if isinstance(text, str) else text), "iocs")
    return found


def known(found: Feeds) -> list[tuple[Kind, str, str | None]]:
    """What is to be looked for, with its label."""
    return [(i.kind, i.value, i.label) for i in found.indicators]


@pytest.mark.parametrize(("text", "kind", "value"), SPELLINGS)
def test_spellings(text: str, kind: Kind, value: str) -> None:
    """Each way to write an indicator means what it says."""
    assert [(m.kind, m.value) for m in parse(text)] == [(kind, value)]


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_indicator(text: str) -> None:
    """What is no indicator is refused with what was expected, wherever it stands."""
    with pytest.raises(BadInputError, match="is no indicator") as caught:
        parse(text)
    assert caught.value.expected
    with pytest.raises(BadInputError, match="at line 2") as caught:
        read(f"192.0.2.1\n{text}\n")
    assert caught.value.file == "iocs"
    found = read(f"192.0.2.1\n{text}\nevil.example\n", lenient=True)
    assert [i.line for i in found.indicators] == [1, 3]
    assert [e.line for e in found.passed_over] == [2]


ADDRESSES = st.ip_addresses()
DOMAINS = st.from_regex(
    r"[a-z0-9]{1,9}(-[a-z0-9]{1,5})?(\.[a-z]{2,7}){1,3}", fullmatch=True
).filter(lambda name: parse(name)[0].kind is Kind.DOMAIN)
DEFANGED = [
    lambda t: t.replace(".", "[.]"),
    lambda t: t.replace(".", "(.)"),
    lambda t: t.replace(".", "[dot]"),
    lambda t: t.replace(".", "[.]", 1),
    lambda t: t.replace(":", "[:]"),
]


@given(ADDRESSES | DOMAINS, st.sampled_from(DEFANGED), st.sampled_from(["", "hxxp://", "hxxps://"]))
def test_defanged(what: Any, defang: Any, scheme: str) -> None:
    """A defanged address, domain or URL is the same indicator as the plain one."""
    plain = str(what)
    host = f"[{plain}]" if scheme and ":" in plain else plain
    assert refanged(defang(plain)) == plain
    expected = [(m.kind, m.value) for m in parse(plain)]
    assert [(m.kind, m.value) for m in parse(scheme + defang(host))] == expected
    if not isinstance(what, str):
        network = ipaddress.ip_network(expected[0][1])
        mapped = getattr(what, "ipv4_mapped", None)
        assert network.network_address == (mapped or what)


WANTED = [
    (Kind.SHA256, SHA256.lower(), "a loader"),
    (Kind.NETWORK, "192.0.2.7/32", "C2, first"),
    (Kind.DOMAIN, "evil.example", None),
]
STIX = {
    "type": "bundle",
    "objects": [
        {"type": "identity", "name": "x"},
        {
            "type": "indicator",
            "name": "a loader",
            "pattern": f"[file:hashes.'SHA-256' = '{SHA256}']",
            "pattern_type": "stix",
        },
        {"type": "indicator", "name": "C2, first", "pattern": "[ipv4-addr:value='192.0.2.7']"},
        {"type": "indicator", "pattern": "[domain-name:value = 'evil.example']"},
        {"type": "indicator", "revoked": True, "pattern": "[domain-name:value = 'ok.example']"},
    ],
}
MISP = {
    "Event": {
        "Attribute": [
            {"type": "filename|sha256", "value": f"a.exe|{SHA256}", "comment": "a loader"},
            {"type": "ip-dst|port", "value": "192.0.2.7|443", "comment": "C2, first"},
            {"type": "domain", "value": "ok.example", "to_ids": False},
        ],
        "Object": [{"Attribute": [{"type": "domain", "value": "evil.example", "comment": ""}]}],
    }
}
FILES = {
    "list": f"# ours\n{SHA256}  # a loader\n\n192.0.2.7 # C2, first\nevil[.]example\n",
    "csv": f'Type,Indicator,Comment\nsha256,{SHA256},a loader\nip,192.0.2.7,"C2, first"\n'
    ",evil.example,\n",
    "tsv": f"ioc\tlabel\n{SHA256}\ta loader\n192.0.2.7\tC2, first\nevil.example\t\n",
    "typed": f"sha256;ip;domain;comment\n{SHA256};;;a loader\n;192.0.2.7;;C2, first\n"
    ";;evil.example;\n",
    "threatfox": f'# a list\n#\n# "ioc_value", "ioc_type", "malware_printable"\n'
    f'"{SHA256}", "sha256_hash", "a loader"\n"192.0.2.7:443", "ip:port", "C2, first"\n'
    '"evil.example", "domain", ""\n',
    "jsonl": f'{{"indicator":"{SHA256}","description":"a loader"}}\n'
    '{"value":"192.0.2.7","type":"ip-dst","comment":"C2, first"}\n\n{"domain":"evil.example"}\n',
    "json": json.dumps(
        [
            {"sha256": SHA256, "name": "a loader"},
            {"ip": "192.0.2.7", "name": "C2, first"},
            "evil.example",
        ]
    ),
    "stix": json.dumps(STIX, indent=1),
    "stix in a line": json.dumps(STIX),
    "stix lines": "\n".join(json.dumps(o) for o in STIX["objects"][1:4]),
    "misp": json.dumps(MISP),
    "misp response": json.dumps({"response": [MISP]}, indent=2),
}


@pytest.mark.parametrize("name", FILES)
def test_files(name: str) -> None:
    """Every kind of file gives the same indicators in its order, with their labels."""
    for text in (FILES[name], "\ufeff" + FILES[name], FILES[name].replace("\n", "\r\n")):
        found = read(text)
        assert known(found) == WANTED
        assert not found.others


def test_places() -> None:
    """An indicator knows its line; of equal ones the first counts."""
    found = read("EVIL.example # one\n192.0.2.7\nevil[.]example # two\n")
    place = ("iocs", 1)
    first = Indicator(Kind.DOMAIN, "evil.example", "EVIL.example", "one", *place)
    assert found.indicators[0] == first
    assert [i.line for i in found.indicators] == [1, 2]


def test_several_in_one() -> None:
    """A pair and a STIX pattern with OR are several indicators; what AND joins is refused."""
    found = read("domain|ip:evil.example|192.0.2.7\n")
    assert known(found) == [(*w[:2], None) for w in WANTED[:0:-1]]
    found = read(f"[file:hashes.MD5 = '{MD5}' OR file:name='x OR y\\'s.exe']\n")
    assert [i.value for i in found.indicators] == [MD5, "x OR y's.exe"]
    with pytest.raises(BadInputError, match="joined by OR"):
        read("[file:name = 'x.exe' AND file:size = '3']\n")


def test_other_types_are_counted() -> None:
    """What a file calls something that can't be looked for is counted by type, and no error."""
    found = read("type,value\nemail,a@b.example\nmutex,x\nEmail,c\nip,192.0.2.7\n")
    assert dict(found.others) == {"email": 2, "mutex": 1}
    assert len(found.indicators) == 1
    patterns = [{"type": "indicator", "pattern": "[mutex:name = 'x']"}]
    patterns += [{"type": "indicator", "pattern": "rule x {}", "pattern_type": "yara"}]
    found = read(json.dumps({"type": "bundle", "objects": patterns}))
    assert dict(found.others) == {"mutex:name": 1, "yara": 1}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"indicator": \n', "no JSON"),
        ("[" * 60_000 + "]" * 60_000, "it nests too deeply"),
        ('{"a": 1}', "without an indicator"),
        ("[[7]]", "no indicator in JSON"),
        ("ioc,type\n,ip\n", "without an indicator"),
        ('{"type":"bundle","objects":[{"type":"indicator","pattern":7}]}', "a pattern"),
        ('{"Event":{"Attribute":[{"type":"ip-dst"}]}}', "without type and value"),
    ],
)
def test_bad_files(text: str, what: str) -> None:
    """What a structured file lacks is named."""
    with pytest.raises(BadInputError, match=what):
        read(text)


def test_not_text() -> None:
    """A line that is no UTF-8 is named by its number, and a document by the byte."""
    with pytest.raises(BadInputError, match="no UTF-8 at line 2"):
        read(b"192.0.2.7\nevil\xff.example\n")
    with pytest.raises(BadInputError, match="from byte 2"):
        read(b'["\xff"]')
    assert len(read(b"192.0.2.7\n\xff\n", lenient=True).indicators) == 1


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line, a document and the number of indicators have limits, which are named."""
    with pytest.raises(LimitError, match="too long at line 2: expected at most 64 KiB"):
        read("192.0.2.7\n" + "a" * feeds.LINE_BYTES + "\n")
    assert len(read("192.0.2.7 #" + "a" * (feeds.LINE_BYTES - 12) + "\n").indicators) == 1
    monkeypatch.setattr(feeds, "DOCUMENT_BYTES", 20)
    assert read('["192.0.2.7"]').indicators
    with pytest.raises(LimitError, match="document is too long"):
        read('["192.0.2.7", "192.0.2.8"]')
    monkeypatch.setattr(feeds, "INDICATORS", 2)
    assert read("192.0.2.7\n192.0.2.8\n192.0.2.7\n").indicators
    with pytest.raises(LimitError, match="expected at most 2"):
        read("192.0.2.7\n192.0.2.8\n192.0.2.9\n")


PIECES = st.sampled_from(
    [
        *("{", "}", "[", "]", '"', ",", ":", "\n", "\t", ";", "#", " ", "\\", "'", "|", "/", "."),
        *("type", "bundle", "objects", "indicator", "pattern", "Event", "Attribute", "value", "="),
        *("192.0.2.7", "evil", "example", MD5, "http", "://", "[.]", "*", "null", "1", "\ufeff"),
    ]
)


@given(st.lists(PIECES, max_size=30).map("".join).map(str.encode) | st.binary(max_size=60))
def test_anything_is_read_or_refused(raw: bytes) -> None:
    """Whatever a file holds, it gives indicators or an error of ours that names the file."""
    errors = []
    for lenient in (False, True):
        try:
            read(raw, lenient=lenient)
        except KcapError as error:
            errors.append(error)
    assert all(error.file == "iocs" and error.what for error in errors)
