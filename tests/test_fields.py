"""The catalogue of fields, and the verbs that list what kcap knows by name."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcap.binaries.inspector import COLUMNS
from kcap.filter import derive, fields
from kcap.filter.fields import ERAS, TYPES, Field, Source, When, all_fields, lookup, near
from kcap.model import catalogue, naming
from kcap.opening import open_source
from kcap.state.processes import Process

ALL = all_fields()
FIBRATUS = sorted(n for n in fields._tabled() if "." in n and "[]" not in n)
NAMES = sorted({f.name for f in ALL if "[]" not in f.name})
WORD = st.text("abcz_", min_size=1, max_size=6)
WORDS = st.lists(WORD, min_size=1, max_size=3).map(tuple)

COMPATIBLE = {
    "Time": {"time", "number", "text"},  # a part of a date is of type Time there
    "Slice": {"list", "map"},  # what takes a name in brackets is a map here
    "Slice(string)": {"list"},
    "Slice(iterable)": {"list"},
    "Map": {"map"},
    "Object": {"any", "map", "list", "text"},
    "Enum": {"text"},
    "Flags": {"text"},
    "Flags64": {"list"},
    "Bool": {"bool"},
    "IP": {"ip"},
}
"""Fibratus's types to ours; strings are text, all others numbers."""


def compatible(name: str, theirs: str, ours: str) -> bool:
    if name.endswith(".uuid"):
        return ours == "text"  # a number there, the key of the process here
    if name == "ps.ancestor":
        return ours == "list"  # text only with a number in brackets
    other = {"text"} if theirs.endswith("String") else {"number"}
    return ours in COMPATIBLE.get(theirs, other)


def test_fibratus_fields_known(data: Callable[[str], Path]) -> None:
    """Every field of Fibratus is known in each era that has it, with a type that fits."""
    with data("tables/fibratus_fields.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 346
    wrong = []
    for row in rows:
        name = row["field"]
        for era in ERAS:
            theirs = row[f"type_{era}x"]
            found = lookup(name, era)
            if found is None or (theirs and not compatible(name, theirs, found.type)):
                wrong.append((name, theirs, found and found.type))
            elif row["argument"] and not found.argument:
                wrong.append((name, row["argument"], "no argument"))
            elif bool(row["replaced_by"]) and not found.replaced_by:
                wrong.append((name, row["replaced_by"], "not replaced"))
    assert not wrong
    assert not compatible("net.dip", "IP", "text")
    assert not compatible("ps.pid", "PID", "text")


def problems(field: Field) -> list[str]:
    """What is wrong with a row of the catalogue."""
    found = []
    if field.type not in TYPES:
        found.append(f"type {field.type!r}")
    if field.era not in ("", "1", "3"):
        found.append(f"era {field.era!r}")
    if field.argument not in ("", "required", "optional"):
        found.append(f"argument {field.argument!r}")
    if not field.meaning or "\t" in field.meaning:
        found.append("meaning")
    for new in filter(None, field.replaced_by.split(",")):
        successor = lookup(new, 3)
        if successor is None or successor.replaced_by:
            found.append(f"replaced by {new}")
    for source in field.sources:
        if not known_column(source.column) and source.function != "count_args":
            found.append(f"column {source.column!r}")
        if source.function and not known_function(source.function):
            found.append(f"function {source.function!r}")
        if source.when is not None and not known_condition(source.when):
            found.append(f"condition {source.when}")
    return found


def known_column(column: str) -> bool:
    """Whether something fills a column."""
    kind, _, name = column.partition(":")
    if kind == "arg":
        return name == "*" or name in catalogue.arguments()
    if kind == "ext":
        text = "".join(
            path.read_text() for path in (Path(__file__).parent.parent / "readers").glob("*.py")
        )
        parent, _, last = name.rpartition(".")
        in_a_group = f'f"{parent}.{{name}}"' in text and f'"{last}"' in text
        of_artifacts = {naming.source_name(naming.parts(column)[0]) for column in COLUMNS}
        if name in of_artifacts:
            return True
        return f'"{name}"' in text or in_a_group
    if kind == "state":
        who, _, fact = name.partition(".")
        return (
            who in ("process", "parent", "ancestors", "lineage", "named")
            and fact in Process._fields
        )
    return column in catalogue.envelope()


def known_function(name: str) -> bool:
    """Whether a function is explained, and there."""
    try:
        derive.function(name)
    except KeyError:
        return False
    spelling = re.sub(r"\[.*", "[KEY]", name)  # the text explains them for any key
    return f"``{spelling}" in (fields.__doc__ or "")


def known_condition(when: When) -> bool:
    """Whether a condition can hold."""
    events = {e for family in catalogue.families() for e in catalogue.events(family)}
    values = {
        "event": events,
        "action": set(catalogue.actions()),
        "category": set(catalogue.actions().values()),
        "fd_type": {"file", "directory", "ipv4", "ipv6"},
        "kind": {"event", "state"},
    }
    return set(when.values) <= values.get(when.column, set())


def test_catalogue_sound() -> None:
    """Every field has a known type, columns, functions and conditions, and a successor if old."""
    wrong = {f.name: problems(f) for f in ALL if problems(f)}
    assert not wrong
    bad = Field(
        "x",
        "string",
        fields.parse_sources("arg:zzz | f(pid) | pid{event=Nothing}"),
        "",
        "y",
        "",
        "2",
    )
    assert len(problems(bad)) == 7


def test_catalogue_unique() -> None:
    """A name has one meaning, or one in each era and none for both."""
    eras: dict[str, list[str]] = {}
    for field in ALL:
        eras.setdefault(field.name, []).append(field.era)
    assert {tuple(sorted(found)) for found in eras.values()} == {("",), ("1",), ("3",), ("1", "3")}
    assert all_fields() == ALL


@given(st.sampled_from(NAMES), st.sampled_from(ERAS))
def test_lookup_of_era(name: str, era: int) -> None:
    """The meaning of the era is found, else the common one, else that of the other era."""
    found = lookup(name, era)
    assert found is not None
    there = {f.era: f for f in ALL if f.name == name}
    assert found == there.get(str(era), there.get("", there.get(str(4 - era))))


@given(st.sampled_from(FIBRATUS), st.data())
def test_case_of_fibratus_names(name: str, data: st.DataObject) -> None:
    """Fibratus's names are found in any case of letters."""
    upper = data.draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    typed = "".join(c.upper() if up else c for c, up in zip(name, upper, strict=True))
    assert lookup(typed, 3) == lookup(name, 3)


def test_case_of_other_names() -> None:
    """Names of Tracee and columns are found as they are spelled."""
    assert lookup("processName", 3) is not None
    for name in ("processname", "PID", "Arg_pathname", "zzz", "", "arg", "evt", "pe.sections[]"):
        assert lookup(name, 3) is None, name


def test_eras_differ() -> None:
    """The same name means different processes and different parts of a path in the two eras."""

    def sources(name: str, era: int) -> list[str]:
        found = lookup(name, era)
        assert found is not None
        return [str(source) for source in found.sources]

    assert sources("ps.pid", 1) == ["pid"]
    assert sources("ps.pid", 3) == ["arg:pid{event=CreateProcess}", "pid{event!=CreateProcess}"]
    assert "pid{event=CreateProcess}" in sources("ps.parent.pid", 3)
    assert "pid{event=CreateProcess}" not in sources("ps.parent.pid", 1)
    assert sources("file.name", 1)[0] == "arg:file_name"
    assert sources("file.name", 3)[0] == "basename(arg:file_path){category=file}"
    assert sources("ps.child.pid", 3) == sources("ps.sibling.pid", 1)
    assert sources("kevt.name", 3) == sources("evt.name", 1) == ["event"]
    assert sources("ps.comm", 1) == sources("ps.cmdline", 1) != sources("ps.comm", 3)


def test_own_columns() -> None:
    """The envelope's columns are fields, with the type of their class, and so are arguments."""
    for name, info in catalogue.envelope().items():
        found = lookup(name, 1)
        assert found is not None
        assert found.sources == (Source(name),)
        assert found.meaning == info.meaning
    expected = {"ts": "time", "pid": "number", "exe": "text", "is_compat": "bool"}
    expected |= {"policies": "list", "stack_addresses": "list", "arg_pathname": "any"}
    expected |= {"arg_flags__str": "text", "arg_x__i64": "number", "arg_addr__json": "map"}
    for name, kind in expected.items():
        found = lookup(name, 3)
        assert found is not None
        assert found.type == kind
    argument = lookup("arg_a_x2Eb", 3)
    assert argument is not None
    assert argument.sources == (Source("arg:a.b"),)
    assert lookup("arg_flags__nothing", 3) is None


@given(st.text("ab._ -é", min_size=1, max_size=8))
def test_any_argument(name: str) -> None:
    """The column of any argument is a field, of the argument's own name."""
    found = lookup(naming.argument(name), 3)
    assert found is not None
    assert found.sources == (Source(f"arg:{name}"),)


def test_tracee_names() -> None:
    """Every path that a record of Tracee has is a field, of the same column in all its dialects."""
    for path, column in catalogue.aliases("tracee").items():
        found = lookup(path, 3)
        assert found is not None
        assert found.sources == (Source(column),)
    found = lookup("workload.process.host_pid", 1)
    assert found is not None
    assert found.sources == (Source("pid"),)
    assert lookup("id", 3) is None


@given(
    st.builds(
        Source,
        st.one_of(WORD, WORD.map("arg:{}".format), WORD.map("state:parent.{}".format)),
        st.one_of(st.just(""), WORD, WORD.map("value[{}]".format), WORD.map("by_name[{}]".format)),
        st.none()
        | st.builds(When, WORD, st.lists(WORD, min_size=1, max_size=3).map(tuple), st.booleans()),
    )
)
def test_source_text(source: Source) -> None:
    """The text of a source reads back as the source."""
    assert fields.parse_sources(str(source)) == (source,)


@pytest.mark.parametrize("text", ["a |b", "f(g(a))", "a{b}", "a{b=}", "f(a", "a b", "{a=b}"])
def test_bad_source(text: str) -> None:
    """What is no source is refused."""
    with pytest.raises(ValueError, match="is no source of a field"):
        fields.parse_sources(text)


@given(st.sampled_from([n for n in FIBRATUS if len(n) > 6]), st.data())
def test_near_after_a_slip(name: str, data: st.DataObject) -> None:
    """A name with a letter left out is near to itself or to three as near, never to an old one."""
    at = data.draw(st.integers(0, len(name) - 1))
    typed = name[:at] + name[at + 1 :]
    found = near(typed)
    assert len(found) <= 3
    assert len(set(found)) == len(found)
    assert all((known := lookup(n, 3)) and not known.replaced_by for n in found)
    field = lookup(name, 3)
    assert field is not None
    assert field.replaced_by or name in found or len(found) == 3


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("ps.nme", "ps.name"),
        ("psname", "ps.name"),
        ("PROC.NAME", "ps.name"),
        ("proc.cmdline", "ps.cmdline"),
        ("fd.sip", "net.dip"),
        ("ip.dst", "net.dip"),
        ("processname", "process_name"),
        ("evt.catgory", "evt.category"),
    ],
)
def test_near_of_other_tools(typed: str, meant: str) -> None:
    """Names of other tools and slips of the keyboard lead to the field that was meant."""
    assert lookup(typed, 3) is None or typed == "processname"
    assert near(typed)[0] == meant
    assert near("qqqqqqqq") == []


def test_near_leads_somewhere() -> None:
    """What is suggested for another tool's name is a field, and the name itself is none."""
    foreign = fields._foreign()
    assert len(foreign) > 50
    for name, meant in foreign.items():
        found = lookup(meant, 3)
        assert found is not None, meant
        assert not found.replaced_by
        assert lookup(name, 3) is None, name
        assert near(name)[0] == meant


def test_synonyms() -> None:
    """A category or event is meant by each of its names, and by no other field's constant."""
    assert fields.synonyms("evt.category", "net") == ("net", "network")
    assert fields.synonyms("KEVT.category", "network") == ("network", "net")
    assert fields.synonyms("evt.name", "LoadImage") == ("LoadImage", "LoadModule")
    assert fields.synonyms("category", "net") == ("net",)
    assert fields.synonyms("evt.name", "net") == ("net",)
    for (name, value), others in fields._synonyms().items():
        assert all(value in fields.synonyms(name, other) for other in others)
        known = {e for family in catalogue.families() for e in catalogue.events(family)}
        assert {value, *others} & (known | set(catalogue.actions().values()))


FILLED = {
    "fibratus/v1.6.0-test.kcap": """
        evt.name evt.seq ps.pid file.name file.path file.operation net.dip net.dport net.l4.proto
        registry.path registry.value handle.type image.name module.base thread.start_address
        ps.envs ps.access.mask ps.child.name""",
    "scap/curl_google.scap": """
        ps.name ps.exe ps.cmdline file.path file.name net.dip net.sport mem.size evt.category
        file.io.size""",
    "tracee/tracee_dns_events_gotypes_2025-04.jsonl.gz": """
        dns.name dns.rcode dns.answers net.dip net.sport processName ps.pid evt.host""",
    "tracee/tracee_event_dump_2022-10.jsonl.gz": """
        file.path net.dip net.dport ps.name comm hostProcessId returnValue""",
}
EMPTY = {
    "fibratus/v1.6.0-test.kcap": "dns.name mem.protection threadpool.id",
    "scap/curl_google.scap": "registry.path handle.id",
    "tracee/tracee_dns_events_gotypes_2025-04.jsonl.gz": "registry.path module.base",
    "tracee/tracee_event_dump_2022-10.jsonl.gz": "registry.path",
}


def test_bracketed_segment() -> None:
    """A detail of a section is that of the section in brackets, whatever their order."""
    sections = [{"name": ".text", "size": 7}, {"name": ".data", "size": 0}, {"size": 9}]
    found = lookup("pe.sections[].size", 1)
    assert found is not None
    (source,) = found.sources
    for given_sections in (sections, sections[::-1]):
        sizes = derive.function(source.function)(given_sections)
        assert derive.picked(".text", found.name, found.era, sizes) == 7
        assert derive.picked(".data", found.name, found.era, sizes) == 0
        assert derive.picked(".rsrc", found.name, found.era, sizes) is None
    assert derive.function(source.function)([{"size": 9}]) is None


def test_answers_of_each_kind() -> None:
    """The answers of a DNS message are what each of them gives: an address or a name."""
    answers = [{"IP": "1.2.3.4"}, {"IP": "", "CNAME": "a.b"}, {"PTR": "c.d"}, {"NS": "e.f"}, {}]
    found = derive.function("answers")({"answers": answers})
    assert found == ("1.2.3.4", "a.b", "c.d", "e.f")


@pytest.mark.parametrize("path", FILLED)
def test_real_captures(data: Callable[[str], Path], path: str) -> None:
    """Captures of each kind have columns for the fields that are about them, and no others."""
    columns: set[str] = set()
    values: dict[str, set[str]] = {"event": set(), "category": set(), "fd_type": set()}
    with closing(open_source(data(path))) as source:
        for batch in source.batches():
            columns |= set(batch.columns)
            for name in values:
                values[name] |= set(batch.array(name).to_pylist()) - {None}
    bases = {naming.parts(name)[0] for name in columns}

    def is_filled(name: str) -> bool:
        field = lookup(name, 1)
        assert field is not None
        return any(is_there(source) for source in field.sources)

    def is_there(source: Source) -> bool:
        kind, _, name = source.column.partition(":")
        makers = {"arg": naming.argument, "ext": naming.extension}
        column = makers[kind](name) if kind in makers else source.column
        if source.when is None or source.when.column not in values:
            return column in bases
        there = values[source.when.column]
        listed = set(source.when.values)
        return column in bases and bool(there - listed if source.when.unless else there & listed)

    assert [name for name in FILLED[path].split() if not is_filled(name)] == []
    assert [name for name in EMPTY[path].split() if is_filled(name)] == []
