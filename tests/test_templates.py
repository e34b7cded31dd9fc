"""Templates over events: what they say, what they refuse, and that none of them runs away."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest
from hostile import VALUE
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SOURCE, batch_of, make_events

from kcap.errors import KcapError, LimitError, MissingExtraError
from kcap.model import text
from kcap.model.batch import Batch
from kcap.model.builder import Field, RecordBuilder
from kcap.model.classes import I64_MAX, I64_MIN, TypeClass
from kcap.model.naming import argument
from kcap.writers import rendered, templates
from kcap.writers.template import TemplateText
from kcap.writers.templates import Template

FIELDS = [
    *(Field(name, TypeClass.I64) for name in ("ts", "pid")),
    *(Field(name, TypeClass.STR) for name in ("exe", "event")),
    Field(argument("zeta")),
    Field(argument("name")),
]
RECORD = st.dictionaries(st.sampled_from(FIELDS), VALUE, max_size=len(FIELDS))


def made(*records: dict[Field, Any]) -> Batch:
    builder = RecordBuilder()
    for record in records:
        builder.add(builder.layout(list(record)), list(record.values()))
    return builder.finish()


def event(**values: Any) -> Batch:
    """One event with these columns; ``a_NAME`` is an argument."""
    record = {}
    for name, value in values.items():
        cls = TypeClass.STR if isinstance(value, str) else TypeClass.I64
        is_argument = name.startswith("a_")
        record[Field(argument(name[2:])) if is_argument else Field(name, cls)] = value
    return made(record)


def text_of(source: str, batch: Batch | None = None, **options: Any) -> str:
    """What a template makes of one event."""
    batch = event(event="execve", pid=7, exe="/bin/sh") if batch is None else batch
    (found,) = Template(source, name="T", **options).texts(batch)
    return found


BATCHES = st.lists(RECORD, max_size=6).map(lambda records: made(*records))
NAMES = ("ts", "pid", "exe", "event", "arg_zeta", "arg_name", "params.name")
COLUMNAR = st.lists(
    st.sampled_from(
        [*(f"{{{{ {n} }}}}" for n in NAMES), "{{ arg_zeta | json }}", "{{exe|json}}", " é\n", "a"]
    ),
    max_size=5,
).map("".join)


@settings(max_examples=40)
@given(BATCHES, COLUMNAR, st.booleans())
def test_columns_and_rows_give_the_same_text(batch: Batch, source: str, printable: bool) -> None:
    """A template that only names columns gives what jinja2 makes of it event by event."""
    quick = Template(source, name="T", printable=printable)
    slow = Template("{% if false %}{% endif %}" + source, name="T", printable=printable)

    assert quick._parts is not None
    assert slow._parts is None
    assert quick.texts(batch) == slow.texts(batch)


@settings(max_examples=40)
@given(st.lists(st.integers(I64_MIN, I64_MAX), min_size=1, max_size=6))
def test_times_of_columns_and_rows_are_the_same(times: list[int]) -> None:
    """A column of times, in any form, gives the text that each time gives by itself."""
    batch = made(*({Field("ts", TypeClass.I64): ns} for ns in times))
    for pattern in (None, "%Y-%m-%d", "%H", "%T.%f", "%j %y%%", "%s.%N", "no directive"):
        source = "{{ ts | utc }}" if pattern is None else f"{{{{ ts | utc('{pattern}') }}}}"

        found = Template(source, name="T").texts(batch)

        assert found == [rendered.utc_of(ns, pattern) for ns in times]


@settings(max_examples=40)
@given(BATCHES, st.integers(1, 4))
def test_texts_do_not_depend_on_batches(batch: Batch, step: int) -> None:
    """The same events give the same texts, however they are cut."""
    for source in ("{{ pid }} {{ params.zeta }}", "{% if exe %}{{ arg_zeta }}{% endif %}"):
        template = Template(source, name="T")
        parts = [batch.slice(i, i + step) for i in range(0, batch.rows, step)]

        assert [t for p in parts for t in template.texts(p)] == template.texts(batch)


def test_every_event_has_its_own_text() -> None:
    """Each text is made of the values of its own event, in order."""
    batch = make_events(50)

    found = Template("{{ ts }}{% if arg_fd > 4 %}!{% endif %}", name="T").texts(batch)

    rows = batch.to_pylist()
    assert found == [f"{r['ts']}{'!' if r['arg_fd__i64'] > 4 else ''}" for r in rows]  # type: ignore[operator]
    assert len(set(found)) == 50


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("{{ event }} {{ pid }}", "execve 7"),
        ("{{ cmdline }}|{{ cmdline | upper }}|{{ cmdline.x[1] }}|{{ uid + 1 }}", "-|-|-|-"),
        ("{{ cmdline | json }} {{ cmdline | default('none') }}", "null none"),
        ("{% if uid != 5 or uid == 5 or uid < 5 %}yes{% else %}no{% endif %}", "no"),
        ("{% if cmdline is defined %}yes{% else %}no{% endif %}", "no"),
        ("{% for word in cmdline %}x{% else %}none{% endfor %}", "none"),
        ("{{ event ~ ':' ~ pid }} {{ pid * 2 + 1 }} {{ pid ** 2 }} {{ pid % 4 }}",
         "execve:7 15 49 3"),
        ("{{ exe.split('/') | last | upper }} {{ exe[1:4] }}", "SH bin"),
        ("{{ exe | replace('/', '.') }} {{ ['a', pid] | join('-') }}", ".bin.sh a-7"),
        ("{{ pid | hex }} {{ {'a': [pid, none, true, 1.5]} | json }}",
         '0x7 {"a":[7,null,true,1.5]}'),
        ("{{ 0 | utc }}", "1970-01-01T00:00:00.000000000Z"),
        ("{{ 1604759097183980900 | utc('%Y.%m.%d %H:%M:%S,%f %j %%') }}",
         "2020.11.07 14:24:57,183980 312 %"),
        ("{{ -1 | utc('%FT%T.%N') }}", "1969-12-31T23:59:59.999999999"),
        ("{{ '<&>' | e }} {{ none }} {{ true }} {{ [1, 'x'] }}", "&lt;&amp;&gt; null true [1, x]"),
        ("{% set a, b = 1, pid %}{{ a + b }}{% with c = b %}{{ c }}{% endwith %}", "87"),
        ("{% for i in range(3) %}{{ loop.index }}{{ i }}{% endfor %}", "102132"),
        ("{{ [1, 2.5, pid] | sum }} {{ [3, 1] | sort }}", "10.5 [1, 3]"),
        ("text alone", "text alone"),
        ("", ""),
    ],
)  # fmt: skip
def test_what_templates_say(source: str, wanted: str) -> None:
    """Expressions, filters and statements mean what jinja2's readers expect."""
    assert text_of(source) == wanted


def test_arguments_by_name() -> None:
    """``params`` holds arguments by their names, whatever their case, flags as text."""
    batch = event(event="openat", a_pathname="/x", a_flags=0o2000001, a_addr={"port": 53, "l": [1]})

    assert text_of("{{ params.pathname }} {{ params.Pathname }} {{ arg_pathname }}", batch) == (
        "/x /x /x"
    )
    assert text_of("{{ arg_addr.port + 1 }} {{ params.addr.l[0] }} {{ arg_addr }}", batch) == (
        '54 1 {"port":53,"l":[1]}'
    )
    assert text_of("{% for k, v in params.items() %}{{ k }}={{ v }};{% endfor %}", batch) == (
        'addr={"port":53,"l":[1]};flags=524289;pathname=/x;'
    )
    assert text_of("{{ params }}", batch) == (
        '{"addr":{"port":53,"l":[1]},"flags":524289,"pathname":"/x"}'
    )
    listed = event(event="execve", a_argv=["sh", "-c"], a_envp=["A=1"])
    inner = "{% for item in v %}<{{ item }}>{% endfor %}"
    walk = f"{{% for k, v in params | items %}}{{{{ k }}}}={inner}{{% endfor %}}"
    assert text_of(walk, listed) == "argv=<sh><-c>envp=<A=1>"
    told = batch.with_before([SOURCE])
    assert text_of("{{ params.nothing }}{{ params.items is defined }}", told) == "-true"


def test_flags_are_text_in_params_and_numbers_in_columns() -> None:
    """A number with a name is text in params, by row and by column, and as it is in its column."""
    batch = event(event="openat", a_flags=0o2000001, source=SOURCE.id)
    batch = batch.with_before([SOURCE])
    quick = Template("{{ params.flags }} {{ arg_flags }}", name="T")
    slow = Template("{% if pid %}{% endif %}{{ params.flags }} {{ arg_flags }}", name="T")

    assert quick.texts(batch) == slow.texts(batch)


BOMBS = [
    "{% for a in range(10000) %}{% for b in range(10000) %}x{% endfor %}{% endfor %}",
    "{{ range(10**9) | list }}",
    "{{ 'a' * 10**9 }}",
    "{{ 9 ** 99999 }}",
    "{{ '%999999999d' % 1 }}",
    "{{ 'x'.ljust(999999999) }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ 1 | round(-999999999) }}",
    "{{ [[1], [2]] | sum(start=[]) }}",
    "{{ ['a'] | sum }}",
    "{{ event['__class__'] }}",
    "{{ [event] | map(attribute='__class__') | list }}",
    "{{ [1] * 10**9 }}",
    "{% set a = 'x' %}" + "{% set a = a ~ a %}" * 40 + "{{ a }}",
    "{% set a = 'x' %}" + "{% set a = a + a %}" * 40 + "{{ a }}",
    "{% set a = [1] %}" + "{% set a = a + a %}" * 40 + "{{ a }}",
    "{% set a = [1] %}" + "{% set a = [a, a] %}" * 40 + "{{ a }}",
    "{% set a = {'x': 1} %}" + "{% set a = {'x': a, 'y': a} %}" * 40 + "{{ a }}",
    "{% for i in range(9000) %}" + "x" * 1000 + "{% endfor %}",
    "{{ 'a'.replace('a', 'b' ) }}",
    "{{ ('x' ~ ',' ) | replace('', 'y') | replace('y', '"
    + "z" * 60000
    + "') }}"
    + "{% set a = 'y' | replace('y', '"
    + "z" * 1000
    + "') | replace('z', '"
    + "u" * 2000
    + "') %}",
    "{{ ''.__class__.__mro__ }}",
    "{{ params.__init__ }}",
    "{{ params._found }}",
    "{{ event | attr('__class__') }}",
    "{{ self }}",
    "{{ lipsum() }}",
    "{{ [1, 2] | random }}",
    "{{ namespace(a=1) }}",
    "{{ event | format(1) }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{% block a %}{% endblock %}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{% set a %}{{ event }}{% endset %}",
    "{% filter upper %}a{% endfilter %}",
    "{{ (" * 500,
    "{{ " + "(" * 400 + "1" + ")" * 400 + " }}",
    "{{ " + "-" * 5000 + "1 }}",
    "{{ event(1) }}",
    "{{ 1 // 0 }}",
    "{{ 1 + 'a' }}",
    "{{ event | utc }}",
    "{{ 0 | utc('%A') }}",
    "{{ ts | utc('%Q') }}",
    "{% for a in 5 %}{% endfor %}",
    "{{ event.upper }}",
    "{{ range }}",
    "{{ evnt }}",
    "{{ event",
    "{% if %}",
    "{{ event | nothing }}",
    "x" * (templates.TEMPLATE_CHARS + 1),
]


@pytest.mark.timeout(5)
@pytest.mark.parametrize("source", BOMBS, ids=lambda source: source[:40])
def test_what_templates_may_not_do(source: str) -> None:
    """What would run away, reach out or fail is an error that names the template."""
    with pytest.raises(KcapError) as caught:
        text_of(source)

    assert caught.value.file == "T"


def test_errors_name_the_line() -> None:
    """An error says which line of the template it is about."""
    for source, line in (
        ("a\n{{ event }}\n{{ evnt }}", 3),
        ("a\n{% if %}", 2),
        ("\n\n{{ 1 // uid }}", 3),
        ("\n{% for a in range(9999) %}\n{% for b in range(9999) %}{% endfor %}{% endfor %}", 3),
    ):
        with pytest.raises(KcapError) as caught:
            text_of(source, event(uid=0))
        assert caught.value.line == line, source


def test_unknown_names_are_met_with_a_suggestion() -> None:
    """A name that no column has is refused before the first event, with the nearest one."""
    with pytest.raises(KcapError, match="process_nam") as caught:
        Template("{{ process_nam }}", name="T")

    assert caught.value.hint == "did you mean process_name?"
    assert Template("{{ arg_whatever }} {{ ext_other }}", name="T").texts(event(pid=1)) == ["- -"]


def test_a_missing_value_may_be_an_error() -> None:
    """Without a placeholder an event that lacks a value is refused, by column and by row."""
    for source in ("{{ cmdline }}", "{% if pid %}{{ cmdline }}{% endif %}", "{{ cmdline | json }}"):
        assert text_of(source) in {"-", "null"}
        with pytest.raises(KcapError, match="cmdline"):
            text_of(source, missing=None)


def test_without_jinja2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where jinja2 is not installed, the error says how to install it."""
    monkeypatch.setitem(sys.modules, "jinja2", None)

    with pytest.raises(MissingExtraError) as caught:
        Template("{{ event }}", name="T")

    assert caught.value.hint == "pip install 'kcap[templates]'"


def test_values_cannot_steer_a_terminal() -> None:
    """Values are escaped where that is asked for, and as they are where it is not."""
    batch = event(exe="a\x1b[2J\nb\u202e")
    for source in ("{{ exe }}", "{% if exe %}{{ exe }}{% endif %}"):
        assert text_of(source, batch) == "a\x1b[2J\nb\u202e"
        assert text_of(source, batch, printable=True) == "a\\x1b[2J\\x0ab\\u202e"
    assert json.loads(text_of("{{ exe | json }}", batch)) == "a\x1b[2J\nb\u202e"


def test_too_long_a_text_is_refused_by_columns_as_well() -> None:
    """The longest text of an event is the same for both ways of making it."""
    batch = event(exe="x" * 60_000)
    count = rendered.TEXT_CHARS // 60_000
    assert len(text_of("{{ exe }}" * count, batch)) == count * 60_000
    with pytest.raises(LimitError):
        text_of("{{ exe }}" * (count + 1), batch)


def lines_of(source: str, *batches: Batch, **options: Any) -> str:
    stream = io.BytesIO()
    sink = TemplateText(stream, template=source, name="T", **options)
    for batch in batches:
        sink.write(batch)
    sink.close()
    return stream.getvalue().decode()


@settings(max_examples=40)
@given(RECORD.map(made))
def test_parts_of_json_are_text(batch: Batch) -> None:
    """Whatever a JSON value holds, its parts can be shown, and written as JSON."""
    walk = "{% for a in arg_zeta %}{{ a }}{{ arg_zeta[a] }}{{ a | json }}{% endfor %}{{ params }}"
    (shown,) = Template("{% if arg_zeta is iterable %}" + walk + "{% endif %}", name="T").texts(
        batch
    )

    shown.encode()


def test_template_lines() -> None:
    """The sink writes a line an event, none for an event without text, none for state."""
    state = event(kind="state", pid=9)
    batches = event(pid=1), event(pid=2), state

    assert lines_of("{% if pid != 2 %}{{ pid }}{% endif %}", *batches) == "1\n"
    assert lines_of("{{ pid }}\n", *batches, state=True) == "1\n2\n9\n"


@settings(max_examples=40)
@given(BATCHES)
def test_template_lines_hold_no_control_character(batch: Batch) -> None:
    """Whatever events hold, there is a line an event and nothing that steers a terminal."""
    printed = lines_of("{{ exe }} {{ params.zeta }} {% if pid %}{{ arg_name }}{% endif %}.", batch)

    assert printed.count("\n") == batch.rows
    assert text.printable(printed.replace("\n", "")) == printed.replace("\n", "")


def test_batch_of_no_events() -> None:
    """No events give no texts."""
    assert Template("{{ pid }}", name="T").texts(batch_of([])) == []
    assert Template("{% if pid %}x{% endif %}", name="T").texts(batch_of([])) == []
