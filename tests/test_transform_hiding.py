"""Finding what is to be hidden in texts, in bytes and in JSON."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.model.text import json_text
from kcap.transform import patterns
from kcap.transform.hiding import Hider
from kcap.transform.literals import SHORT_BYTES, Literals
from kcap.transform.texts import in_json
from kcap.transform.tokens import TOKEN, Key

KEY = Key(bytes(range(32)))

_FEW = st.text("ab/é ", max_size=14)
"""So few characters that values are found in others."""


def naive(values: list[bytes], texts: list[bytes]) -> set[tuple[int, tuple[int, int]]]:
    """What is to be found, by looking for each value at each place."""
    found = set()
    for number, text in enumerate(texts):
        for end in range(len(text) + 1):
            here = [v for v in values if text[:end].endswith(v)]
            wide = [v for v in here if len(v) >= 8]
            for group in (wide, [v for v in here if SHORT_BYTES <= len(v) < 8]):
                if group:
                    found.add((number, (end - max(map(len, group)), end)))
        for value in values:
            if 0 < len(value) < SHORT_BYTES:
                word = rb"(?<![A-Za-z0-9_\x80-\xff])%s(?![A-Za-z0-9_\x80-\xff])" % re.escape(value)
                found |= {(number, m.span()) for m in re.finditer(word, text)}
    return found


@given(values=st.lists(_FEW, max_size=8), texts=st.lists(_FEW, max_size=8))
@settings(max_examples=100)
def test_what_a_search_of_each_value_finds(values: list[str], texts: list[str]) -> None:
    """The places are those that looking for one value after the other gives."""
    wanted = [v.encode() for v in values]
    where = [t.encode() for t in texts]

    found = set(Literals(wanted).spans(where))

    expected = naive([v for v in wanted if v], where)
    long = {f for f in found if f[1][1] - f[1][0] >= SHORT_BYTES}
    assert long == {e for e in expected if e[1][1] - e[1][0] >= SHORT_BYTES}
    assert found <= expected  # words that overlap are found once


@given(
    lengths=st.sets(st.integers(1, 40), min_size=9, max_size=20),
    ends=st.lists(st.sampled_from(["", "b", "ab"]), min_size=1, max_size=3),
    texts=st.lists(st.text("ab", max_size=60), max_size=4),
)
@settings(max_examples=60)
def test_values_of_many_lengths_that_end_alike(
    lengths: set[int], ends: list[str], texts: list[str]
) -> None:
    """They are found as others are, the longest at each place."""
    values = [f"{end}{'a' * n}bbbbbbbb".encode() for n in lengths for end in ends]
    where = [f"{t}bbbbbbbb".encode() for t in texts]
    assert Literals(values)._anchors[0]._many

    assert set(Literals(values).spans(where)) == naive(values, where)


@given(
    values=st.lists(_FEW.filter(lambda v: len(v.encode()) >= SHORT_BYTES), max_size=6),
    texts=st.lists(_FEW, max_size=6),
)
@settings(max_examples=100)
def test_nothing_hidden_is_left(values: list[str], texts: list[str]) -> None:
    """No value is in any text any more, beside or within the tokens; other texts stay."""
    hider = Hider(KEY, (), [v.encode() for v in values])

    made = hider.texts(texts)

    for before, after in zip(texts, made, strict=True):
        rest = TOKEN.split(after)
        assert not [v for v in values for part in rest if v in part]
        assert (before == after) == (not any(v in before for v in values))
        assert hider.texts([after]) == [after]


@given(values=st.lists(_FEW.filter(bool), max_size=6), texts=st.lists(_FEW, max_size=6))
@settings(max_examples=50)
def test_blocks_of_the_search_change_nothing(values: list[str], texts: list[str]) -> None:
    """A text is searched alone as among others: no match reaches from one into the next."""
    found = Literals([v.encode() for v in values])
    where = [t.encode() for t in texts]

    together = set(found.spans(where))

    assert together == {(i, s) for i, t in enumerate(where) for _, s in found.spans([t])}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


def upper(value: Any) -> Any:
    """JSON with changed strings: what `in_json` is to give."""
    if isinstance(value, str):
        return f"<{value}>"
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return f"<{value}>"
    if isinstance(value, list):
        return [upper(v) for v in value]
    return {f"<{k}>": upper(v) for k, v in value.items()}


@given(value=_JSON)
@settings(max_examples=100)
def test_json_changes_in_its_strings_and_numbers(value: Any) -> None:
    """What changing the text gives is what changing the parsed value gives; nothing else moves."""
    text = json_text(value)

    made = in_json([text], lambda found: [f"<{v}>" for v in found])[0]

    assert json.loads(made) == upper(value)
    assert in_json([text], list) == [text]


@given(value=_JSON, cut=st.integers(0, 60))
def test_json_that_was_cut_is_no_error(value: Any, cut: int) -> None:
    """Of cut JSON the strings that are left change, the last one too."""
    text = json_text(value)[:cut]

    made = in_json([text], lambda found: ["#" for _ in found])[0]

    assert in_json([text], list) == [text]
    assert made.count('"#"') == len(re.findall(r'"(?:[^"\\]|\\.)*(?:"|$)|-?\d+', text, re.DOTALL))


def test_json_is_hidden_by_what_it_says() -> None:
    """A secret is found however it is escaped, in names, behind a telling name, as a number."""
    hider = Hider(KEY, patterns.chosen(["secrets"]), [b'a"b\\c', b"12345678", "näme".encode()])
    given_ = json.dumps(
        {"x": 'a"b\\c', "näme": [12345678], "password": "with blanks", "o": {"db_token": 5, "p": 6}}
    )

    (made,) = hider.json([given_])

    token = KEY.token
    assert json.loads(made) == {
        "x": token('a"b\\c'),
        token("näme"): [token("12345678")],
        "password": token("with blanks"),
        "o": {"db_token": token("5"), "p": 6},
    }
    assert hider.texts([given_]) == [made]


@given(
    value=st.dictionaries(
        st.sampled_from(["password", "a", "é", "k\n"]),
        st.text('abö"\\\n/@.=', max_size=9) | st.lists(st.sampled_from(["Token=1", 'a"b'])),
    ),
    literals=st.lists(st.sampled_from(['a"b', "ab", "abö\n", "\\a", "/@.="]), max_size=3),
    ascii_only=st.booleans(),
)
@settings(max_examples=150)
def test_json_that_is_not_worth_parsing_has_nothing_to_hide(
    value: Any, literals: list[str], ascii_only: bool
) -> None:
    """JSON that is passed over would not have changed."""
    found = Hider(KEY, patterns.chosen(["secrets"]), [v.encode() for v in literals])
    thorough = Hider(KEY, patterns.chosen(["secrets"]), [v.encode() for v in literals])
    thorough._suspects = lambda values: range(len(values))  # type: ignore[method-assign]
    text = json.dumps(value, ensure_ascii=ascii_only)

    assert found.json([text]) == thorough.json([text])
    assert found.texts([text]) == thorough.texts([text])


def test_json_that_tells_between_its_strings_is_hidden_as_a_whole() -> None:
    """What a pattern matches across strings leaves valid JSON with nothing of it."""
    hider = Hider(KEY, patterns.chosen([r"\[1,2\]", "abc"]))

    assert hider.json(['{"a":[1,2]}', '{"b":"abc"}', '{"c":3}']) == [
        f'"{KEY.token(json.dumps({"a": [1, 2]}, separators=(",", ":")))}"',
        f'{{"b":"{KEY.token("abc")}"}}',
        '{"c":3}',
    ]


def test_details_of_any_kind() -> None:
    """Details are hidden at any depth, in names and values; a lone surrogate is no error."""
    hider = Hider(KEY, patterns.chosen(["abc+"]))

    made = hider.details({"abc": [{"x": "see abcc"}], "odd": "\udcff", "n": 1.5, "t": True})

    assert made == {
        KEY.token("abc"): [{"x": f"see {KEY.token('abcc')}"}],
        "odd": "\udcff",
        "n": 1.5,
        "t": True,
    }


def test_bytes_are_searched_as_text_of_both_widths() -> None:
    """In bytes a value is found as UTF-8 and as UTF-16, a pattern too; all others stay."""
    hider = Hider(KEY, patterns.chosen(["abc+"]), ["geheim-ä".encode()])
    wide = "x geheim-ä".encode("utf-16-le")

    made = hider.data(
        [b"\xffabcc\xff", wide, "zabc".encode("utf-16-le"), "geheim-ä".encode(), b"\x00\x01"]
    )

    assert made == [
        b"\xff" + KEY.data(b"abcc") + b"\xff",
        KEY.data(wide),
        KEY.data("zabc".encode("utf-16-le")),
        KEY.data("geheim-ä".encode()),
        b"\x00\x01",
    ]


def test_short_values_are_hidden_as_words_and_not_in_names() -> None:
    """Values of up to three bytes are words; names are searched for those of eight and more."""
    hider = Hider(KEY, (), [b"bob", b"open", b"longer-one"])

    assert hider.texts(["bob", "/home/bob/x", "bobby", "openat"]) == [
        KEY.token("bob"),
        f"/home/{KEY.token('bob')}/x",
        "bobby",
        f"{KEY.token('open')}at",
    ]
    assert hider.names(["bob", "open", "a longer-one"]) == [
        *("bob", "open"),
        f"a {KEY.token('longer-one')}",
    ]


def test_what_overlaps_has_one_token() -> None:
    """Places that overlap are hidden together; those that touch are not."""
    hider = Hider(KEY, patterns.chosen(["abcd", "cdef", "gh", "ij"]))

    assert hider.texts(["-abcdef-ghij"]) == [
        f"-{KEY.token('abcdef')}-{KEY.token('gh')}{KEY.token('ij')}"
    ]


HIDDEN: list[tuple[str, str]] = [
    ("mysql --password=hunter2 -u root", "hunter2"),
    ("tool --db-password 'two words' -v", "two words"),
    ("tool -pass hunter2", "hunter2"),
    ("x --api-key=K3Y --verbose", "K3Y"),
    ("MYSQL_PWD=hunter2 mysqldump", "hunter2"),
    ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI/K7MDENG"),
    ("https://x/?a=1&access_token=abc123&b=2", "abc123"),
    ("X-Api-Key: abc123", "abc123"),
    ("password: hunter2, user: me", "hunter2"),
    ("mysql -uroot -phunter2 db", "hunter2"),
    ("mysqldump -phunter2", "hunter2"),
    ("sshpass -p hunter2 ssh host", "hunter2"),
    ("sshpass -phunter2 ssh host", "hunter2"),
    ("sshpass -v -P prompt -p hunter2 ssh host", "hunter2"),
    ("redis-cli -a hunter2 ping", "hunter2"),
    ("/usr/bin/redis-cli -h db -p 6379 -a 'hunter2' get x", "hunter2"),
    ("htpasswd -b /etc/f bob hunter2", "hunter2"),
    ("htpasswd -cb /etc/f bob hunter2 && ls", "hunter2"),
    ("htpasswd -B -C 10 -b f bob hunter2", "hunter2"),
    ("htpasswd -nb bob hunter2", "hunter2"),
    ("htpasswd -n -bB bob 'hunter2'", "hunter2"),
    ("curl -ume:hunter2 http://x", "hunter2"),
    ("curl -X PUT -sSu me:hunter2 http://x", "hunter2"),
    ("curl http://x -Ume:hunter2", "hunter2"),
    ("wget --password=hunter2 ftp://x", "hunter2"),
    ("wget --http-password hunter2 --user me http://x", "hunter2"),
    ("curl -H 'Authorization: Token abc' http://x", "abc"),
    ('curl -H "Authorization: 0123-abc" http://x', "0123-abc"),
    ("curl -H 'authorization: Own one two' http://x", "Own one two"),
    ("curl -H Authorization: Basic YTpi http://x", "YTpi"),
    ("wget --header=Proxy-Authorization: abc http://x", "abc"),
    ("curl -u me:hunter2 http://x", "hunter2"),
    ("git clone https://me:hunter2@host/x.git", "hunter2"),
    ("curl -H 'Authorization: Bearer abcdef0123456789'", "abcdef0123456789"),
    ("key AKIAIOSFODNN7EXAMPLE end", "AKIAIOSFODNN7EXAMPLE"),
    ("ghp_0123456789abcdefghijABCDEFGHIJ012345", "ghp_0123456789abcdefghijABCDEFGHIJ012345"),
    ("a eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJ b", "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJ"),
    (
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
    ),
    ("-----BEGIN PRIVATE KEY-----\ncut", "-----BEGIN PRIVATE KEY-----\ncut"),
    ("mail me.too+x@mail.example.org now", "me.too+x@mail.example.org"),
]


@pytest.mark.parametrize(("text", "secret"), HIDDEN)
def test_secrets_are_recognised(text: str, secret: str) -> None:
    """What the patterns are for is hidden, and nothing around it."""
    hider = Hider(KEY, patterns.chosen(["secrets"]))

    assert hider.texts([text]) == [text.replace(secret, KEY.token(secret))]


@pytest.mark.parametrize(
    "text",
    [
        "/usr/bin/passwd alice",
        "ls -la /etc/passwd",
        "PWD=/home/alice make",
        "cc -passive x",
        "tool --password-file /etc/pw",
        "ssh -p 2222 host",
        "http://host:8080/path?page=1",
        "keyboard=us monkey=1",
        "bypass=1 compass: north",
        "user@host",
        "redis-cli -h db -n 1 get a",
        "redis-cli --askpass",
        "redis-cli -A hunter2",
        "ls -a /tmp",
        "htpasswd /etc/f bob",
        "htpasswd -B /etc/f bob",
        "htpasswd -i -c /etc/f bob < in",
        "htpasswd -D /etc/f bob",
        "sshpass -e ssh host",
        "sshpass -f file ssh -p 2222 host",
        "docker run -u 1000:1000 image",
        "curl -o out:put http://x",
        "curl -XPUT http://x:80/",
        "mysql -P3306 -u me",
        "mkdir -p a/b",
        "wget --user=me http://x",
        "authorization: required",
        "authorization of users",
        "12:34:56 basic usage",
        "a@b",
    ],
)
def test_ordinary_texts_stay(text: str) -> None:
    """Negative control: what only looks a little like a secret is left alone."""
    assert Hider(KEY, patterns.chosen(["secrets"])).texts([text]) == [text]


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("from 10.0.0.1:22 to 192.168.255.255", ["10.0.0.1", "192.168.255.255"]),
        ("[fe80::1]:80 ::1 2001:db8:0:0:0:0:0:1", ["fe80::1", "::1", "2001:db8:0:0:0:0:0:1"]),
        ("::ffff:10.0.0.1", ["::ffff:10.0.0.1"]),
        ("1.2.3.4.5 300.1.1.1 std::string 12:34:56 v1.2.3", []),
    ],
)
def test_addresses_are_recognised(text: str, addresses: list[str]) -> None:
    """IPv4 and IPv6 addresses are found, versions and times are not."""
    made = Hider(KEY, patterns.chosen(["ip"])).texts([text])[0]

    assert set(TOKEN.findall(made)) == {KEY.token(a) for a in addresses}


@pytest.mark.parametrize(
    "text",
    [
        *("a" * 65_536, "-" * 65_536, "a-" * 32_768, "password" * 8192, "--a.b" * 13_000),
        *("x@" * 32_768, "a.b" * 21_000, "://" * 21_000, "1:" * 32_768, "::" * 32_768),
        *("mysql " * 10_000, "-u " * 20_000, "-----BEGIN PRIVATE KEY-----" * 2000, "token " * 9000),
        *("curl -u " * 8000, "curl " * 13_000, "htpasswd -b" * 6000, "redis-cli " * 6500),
        *("htpasswd" + " -b" * 20_000, "sshpass -P x" * 5000, "authorization:" * 4600),
        *("eyJaaaaaaaaa." * 5000, "basic  " * 9000, "1.2.3." * 10_000, "passs_" * 10_000),
    ],
    ids=lambda text: text[:9],
)
def test_no_text_takes_long(text: str) -> None:
    """The longest value of any repeated kind is searched in a moment."""
    hider = Hider(KEY, patterns.chosen(["secrets", "ip"]))
    begun = time.process_time()

    hider.texts([text])

    assert time.process_time() - begun < 2


def test_tokens_tell_nothing_of_length() -> None:
    """Every text gets a token of one length, every path part one too."""
    made = [KEY.token(text) for text in ("", "a", "b" * 100_000, "\n", "é")]

    assert {len(token) for token in made} == {25}
    assert len(set(made)) == 5
    assert KEY.path("/a/bb.txt") == f"/{KEY.token('a')}/{KEY.token('bb')}.txt"
    assert KEY.path(r"C:\Users\bob\.x") == "\\".join(
        ["C:", KEY.token("Users"), KEY.token("bob"), KEY.token(".x")]
    )
    assert KEY.path("no path") == KEY.token("no path")
