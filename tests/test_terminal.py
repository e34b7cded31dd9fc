"""What a terminal is shown cannot steer it, in any format of events; files have what was said."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from cli_support import on_a_terminal
from hypothesis import given, settings
from hypothesis import strategies as st
from support import capture

from kcap.model import catalogue, naming, shape
from kcap.model.batch import Batch
from kcap.model.builder import Field, RecordBuilder
from kcap.model.text import UNSAFE, json_safe, json_text
from kcap.tools import forms

EVIL = "".join(map(chr, (0x1B, 0x07, 0x7F, 0x85, 0x9B, 0x061C, 0x200E, 0x2028, 0x202E, 0x2066)))
"""One of each kind: escape, bell, delete, C1, and marks of direction and of lines."""

TEXT_FORMATS = [name for name in forms.FORMATS if name not in ("kcap", "null")]


class Terminal(io.BytesIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


def batch() -> Batch:
    """An event with unsafe text in its columns, in a parameter and in the parameter's name."""
    builder = RecordBuilder()
    name = f"path{EVIL}"
    values = {
        "ts": 10**18,
        "event": "openat",
        "process_name": EVIL,
        "cmdline": f"a {EVIL}",
        "exe": f"/{EVIL}",
        naming.argument("pathname"): EVIL,
        naming.argument(name): EVIL,
    }
    said = shape.encode([shape.Item(n, "const char*", False) for n in ("pathname", name)])
    fields = [Field(base, catalogue.home(base)) for base in values]
    builder.add(builder.layout(fields, said), list(values.values()))
    return builder.finish()


def written(form: str, stream: io.BytesIO) -> str:
    """The event in a format."""
    template = "{{ cmdline }} {{ params.pathname }}" if form == "template" else None
    sink = forms.sink_for(form, stream, template=template)
    sink.write(batch())
    sink.close()
    return stream.getvalue().decode()


@pytest.mark.parametrize("form", TEXT_FORMATS)
def test_no_format_steers_a_terminal(form: str) -> None:
    """Ends of lines are all that is left of control characters, and the text is there, escaped."""
    found = written(form, Terminal())

    assert re.findall(UNSAFE, re.sub(r"\r?\n", "", found)) == []
    assert "9b" in found


@pytest.mark.parametrize("form", ["csv", "tracee-json"])
def test_files_have_what_was_said(form: str) -> None:
    """CSV as it is, which is what the check finds; JSON in JSON's own escapes."""
    found = written(form, io.BytesIO())

    if form == "csv":
        assert f"a {EVIL}" in found
        assert re.findall(UNSAFE, re.sub(r"\r?\n", "", found))
    else:
        arguments = {a["name"]: a["value"] for a in json.loads(found)["args"]}
        assert arguments == {"pathname": EVIL, f"path{EVIL}": EVIL}


@settings(max_examples=10)
@given(st.recursive(st.text() | st.integers(), lambda v: st.dictionaries(st.text(), v)))
def test_safe_json_says_the_same(value: object) -> None:
    """Escapes change nothing for who reads JSON."""
    found = json_safe(json_text(value))

    assert json.loads(found) == value
    assert not re.search(UNSAFE, found)


def test_the_verbs_know_a_terminal(tmp_path: Path) -> None:
    """A real one, as `kcap replay` finds it."""
    path = tmp_path / "evil.kcap"
    path.write_bytes(capture([batch()]))

    code, shown = on_a_terminal("replay", "--format", "csv", path, folder=tmp_path)

    assert code == 0, shown
    assert re.findall(UNSAFE, re.sub(r"\r+\n", "", shown.decode())) == []
    assert b"9b" in shown
