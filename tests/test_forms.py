"""The forms of events on the command line: their names, their options, and what they refuse."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_support import lines_of, run
from support import batch_of

from kcap.model.naming import argument
from kcap.tools.forms import ALIASES, TEXT_FORMATS
from kcap.writers import layout, sandbox
from kcap.writers.csv import Csv
from kcap.writers.null import Null

TEMPLATE = "{{ ts | utc }}\t{{ event }} {% for k in params %}{{ k }} {% endfor %}\n"


def printed(*words: str | Path) -> str:
    """What a run of kcap prints, which works."""
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A file with a template."""
    path = tmp_path / "t.j2"
    path.write_text(TEMPLATE)
    return path


@pytest.mark.parametrize("form", [f for f in TEXT_FORMATS if f != "template"])
@pytest.mark.parametrize("verb", ["cat", "replay"])
def test_every_form_prints(verb: str, form: str, fixtures: Path) -> None:
    """Every form works with every verb that prints; all but null print each event."""
    events = len(lines_of("cat", fixtures / "first.kcap"))

    found = printed(verb, fixtures / "first.kcap", "--format", form)

    assert found.count("\n") >= events if form != "null" else not found


@pytest.mark.parametrize(("other", "name"), ALIASES.items())
def test_other_names(other: str, name: str, fixtures: Path) -> None:
    """A form's other name gives the same bytes."""
    one, two = (printed("cat", fixtures / "first.kcap", "--format", f) for f in (other, name))

    assert one == two


def test_a_template_from_a_file_and_from_the_line(fixtures: Path, template: Path) -> None:
    """A template in a file and on the command line are the same, and make a line an event."""
    words = ("cat", fixtures / "first.kcap", "--format", "template")

    found = printed(*words, "--template-file", template)

    assert found == printed(*words, "--template", TEMPLATE)
    events = lines_of("cat", fixtures / "first.kcap")
    assert len(found.splitlines()) == len(events)
    for line, event in zip(found.splitlines(), events, strict=True):
        time, rest = line.split("\t")
        assert int(time[-10:-1]) == event["ts"] % 10**9
        name, *arguments = rest.split()
        assert name == event["event"]
        assert {argument(a) for a in arguments} == {
            key.partition("__")[0] for key in event if key.startswith("arg_")
        }


def test_templates_that_are_refused(fixtures: Path, tmp_path: Path) -> None:
    """No template is misuse; one that can't be read or understood is an error with its place."""
    words = ("cat", fixtures / "first.kcap", "--format", "template")
    bad, binary, long = (tmp_path / name for name in ("bad", "binary", "long"))
    bad.write_text("{{ ts }}\n{{ evnt }}")
    binary.write_bytes(b"a\xff")
    long.write_text("a" * 100_000)

    for options, code, said in (
        ([], 2, "takes --template-file FILE or --template TEXT"),
        (["--template", "a", "--template-file", bad], 2, "takes --template-file FILE or"),
        (["--template-file", tmp_path / "none"], 1, "none: the template can't be read"),
        (["--template-file", bad], 1, "evnt, which is no column at line 2"),
        (["--template-file", bad], 1, "hint: did you mean event?"),
        (["--template-file", binary], 1, "the template is no UTF-8 text at byte 1"),
        (["--template-file", long], 1, "expected at most 65,536"),
        (["--template", "{{ 1 // 0 }}"], 1, "--template: the template can't be worked out"),
    ):
        result = run(*words, *options)
        assert result.exit_code == code, (options, result.output)
        assert said in result.output, options


@pytest.mark.parametrize(
    "words",
    [
        ("--format", "jsonl", "--template", "{{ .Pid }}"),
        ("--format", "line", "--template-file", "x"),
        ("--format", "csv", "--containers"),
        ("--view", "execsnoop", "--template-file", "x"),
        ("--view", "execsnoop", "--containers"),
    ],
)
def test_options_of_other_forms(words: tuple[str, ...], fixtures: Path) -> None:
    """An option that a form has no use for is wrong usage, and is named."""
    result = run("cat", fixtures / "first.kcap", *words)

    assert result.exit_code == 2, result.output
    assert [w for w in words if w.startswith("--")][-1] in result.output


def test_documentation_of_templates() -> None:
    """What `kcap docs templates` lists is what templates have."""
    found = printed("docs", "templates")

    names = {name.partition("(")[0] for name in sandbox.FILTERS} | {*sandbox.AS_IN_JINJA}
    assert names <= set(found.replace("(", " ").split())
    known = names | {"e", "d", "tojson"}
    filters = sandbox.Environment("-", printable=False).filters
    assert known == {name for name in filters if not name.startswith(" ")}


def test_csv_with_chosen_columns(fixtures: Path) -> None:
    """With --fields CSV has these columns in that order, and the values that JSON has."""
    names = "event,pid,cmdline,ts"

    found = printed("cat", fixtures / "first.kcap", "--format", "csv", "-F", names)

    rows = list(csv.DictReader(io.StringIO(found, newline="")))
    events = lines_of("cat", fixtures / "first.kcap", "-F", names)
    assert list(rows[0]) == names.split(",")
    assert len(rows) == len(events)
    for row, event in zip(rows, events, strict=True):
        assert row["event"] == event["event"]
        assert row["pid"] == str(event["pid"])
        assert row["cmdline"].removeprefix("'") == event.get("cmdline", "")


def test_csv_of_all_columns(fixtures: Path) -> None:
    """Without --fields CSV has the columns of all events, and the arguments as one JSON object."""
    found = printed("cat", fixtures / "first.kcap", "--format", "csv")

    rows = list(csv.DictReader(io.StringIO(found, newline="")))
    events = lines_of("cat", fixtures / "first.kcap")
    assert list(rows[0]) == [*layout.envelope(), "args"]
    for row, event in zip(rows, events, strict=True):
        arguments = {k.removeprefix("arg_"): v for k, v in event.items() if k.startswith("arg_")}
        assert json.loads(row["args"]) == arguments


def test_csv_does_not_depend_on_batches() -> None:
    """The same events give the same CSV, however they are cut."""
    batch = batch_of([(i, {"a": i, "b": "x" * i} if i % 3 else {}) for i in range(40)])

    def made(step: int) -> bytes:
        stream = io.BytesIO()
        sink = Csv(stream, layout.Lines(layout.envelope(), layout.Profile.PORTABLE))
        for start in range(0, batch.rows, step):
            sink.write(batch.slice(start, start + step))
        sink.close()
        return stream.getvalue()

    assert made(1) == made(7) == made(40)
    assert made(7).count(b"\r\n") == 41


def test_null_counts() -> None:
    """Null keeps nothing but the number of events."""
    sink = Null()
    sink.write(batch_of([(1, {}), (2, {})]))
    sink.close()

    assert sink.events == 2


@pytest.mark.root
@pytest.mark.parametrize(
    ("form", "options", "wanted"),
    [
        (
            "template",
            ["--template", "{{ ts | utc('%F') }} {{ params | json }} {{ event | title }}"],
            r"20\d\d-\d\d-\d\d \{.*\} Sched.*",
        ),
        ("csv", [], r"20\d\d-.*Z,.*"),
    ],
)
def test_forms_of_a_live_host(form: str, options: list[str], wanted: str) -> None:
    """Whoever prints what happens now has no rights to load anything, and needs none."""
    command = [sys.executable, "-m", "kcap.tools", "run", "--format", form, *options]
    command += ["-n", "2", "--duration", "30"]
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run_:
        while run_.poll() is None:
            subprocess.run(["true"], check=True)
            time.sleep(0.05)
        printed_, said = run_.communicate()

    assert run_.returncode == 0, said
    assert any(re.fullmatch(wanted, line) for line in printed_.splitlines()), printed_
