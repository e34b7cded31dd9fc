"""``kcap test``: whether rules raise the alerts that their tests expect."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from kcap.errors import KcapError
from kcap.tools import common, logs, output, ruleset
from kcap.tools.cli import Verb

if TYPE_CHECKING:
    from kcap.tools.rule_cut import Cut
    from kcap.tools.rule_tests import Outcome

_BASIC_MAX: Final = 0xFFFF
"""The last character that JSON writes as one."""


@click.command(
    "test",
    cls=Verb,
    examples=(
        "kcap test ./rules",
        "kcap test ./rules --update",
        "kcap test --from host.kcap --alert 49ec57de --rules ./rules ./tests",
    ),
)
@click.argument("paths", nargs=-1, required=True, metavar="DIR|FILE...")
@click.option("--update", is_flag=True, help="Write golden files anew where alerts are others.")
@click.option("--json", "as_json", is_flag=True, help="An object a test.")
@click.option(
    "--from", "capture", metavar="CAPTURE", help="Write a test into DIR: the smallest part of it…"
)
@click.option("--alert", metavar="ID", help="… of which this alert still comes.")
@click.option("--force", is_flag=True, help="Replace the test that --from has written before.")
@ruleset.selecting_options
@click.pass_context
def command(
    ctx: click.Context,
    paths: tuple[str, ...],
    update: bool,
    as_json: bool,
    capture: str | None,
    alert: str | None,
    force: bool,
    rules: tuple[str, ...],
    signatures: str | None,
    rules_dir: tuple[str, ...],
) -> None:
    """Run the tests of rules in DIR: files called NAME.test.yml.

    Each says which rules to run, over a capture or a few events, and the alerts that are expected;
    'kcap docs rule-tests' describes them. Exit code 1 where one is not as expected.

    With --from and --alert a test is written: a capture with no event that the alert, which 'kcap
    detect' shows, does not need, and the file that expects it.
    """
    if (capture is None) != (alert is None):
        raise click.UsageError("--from CAPTURE and --alert ID belong together")
    if capture is not None and alert is not None:
        if len(paths) != 1 or update:
            raise click.UsageError("name the folder that the test is to be written into")
        found = ruleset.selected(rules, signatures, rules_dir)
        found.tell_problems()
        chosen = _Rules(found, (*rules_dir, *rules), signatures)
        _write(capture, alert, chosen, Path(paths[0]), force=force)
        return
    if force or rules or signatures or rules_dir:
        raise click.UsageError("rules and --force belong to --from: tests say what they run")
    from kcap.tools import rule_tests

    cases = rule_tests.found_in([Path(path) for path in paths])
    if not cases:
        raise KcapError(
            "there is no test",
            file=paths[0],
            expected="files called NAME.test.yml",
            hint="kcap test --from CAPTURE --alert ID writes one",
        )
    failed = 0
    for case in cases:
        outcome = rule_tests.run(case, update=update)
        failed += bool(outcome.wrong)
        click.echo(_object(outcome) if as_json else _lines(outcome))
    logs.tell(f"kcap: {common.counted(len(cases), 'test')}, {failed:,} failed")
    ctx.exit(1 if failed else 0)


def _lines(outcome: Outcome) -> str:
    """What became of a test, for people."""
    from kcap.model.text import printable

    case = outcome.case
    word = "FAIL" if outcome.wrong else "new " if outcome.updated else "ok  "
    lines = [f"{word} {case.file}:{case.line}: {case.name}", *(f"     {w}" for w in outcome.wrong)]
    return "\n".join(map(printable, lines))


def _object(outcome: Outcome) -> str:
    case = outcome.case
    return json.dumps(
        {
            "file": str(case.file),
            "line": case.line,
            "name": case.name,
            "passed": not outcome.wrong,
            "updated": outcome.updated,
            "wrong": outcome.wrong,
        },
        ensure_ascii=False,
    )


def _write(capture: str, alert_id: str, chosen: _Rules, folder: Path, *, force: bool) -> None:
    """Cut a capture, and write a test around it."""
    from kcap.tools import rule_cut

    made = rule_cut.cut(Path(capture), chosen.found.rules, alert_id)
    about = made.alert
    stem = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', about.rule)}-{about.id[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KcapError(f"can't be made: {error.strerror}", file=str(folder)) from error
    files = folder / f"{stem}.kcap", folder / f"{stem}.test.yml"
    run = chosen.beside(folder, about.rule)
    lines = [
        f"run: [{', '.join(map(_quoted, run))}]",
        *([f"signatures: {chosen.signatures}"] if chosen.signatures else []),
        "cases:",
        f"  - name: {_quoted(about.title)}",
        f"    capture: {_quoted(files[0].name)}",
        "    expect:",
    ]
    for one in _expected(made, run, chosen.signatures, folder):
        lines += [
            f"      - rule: {_quoted(one['arg_rule'])}",
            f"        id: {_quoted(one['arg_alert_id'])}",
        ]
    with (
        output.opened(str(files[0]), force=force) as stream,
        output.opened(str(files[1]), force=force, binary=False) as text,
    ):
        stream.write(made.data)
        text.write(("\n".join(lines) + "\n").encode())
    logs.tell(f"kcap: {common.counted(made.events, 'event')}: {files[0]}, {files[1]}")


class _Rules(NamedTuple):
    """The rules that a test is made for."""

    found: ruleset.Chosen
    named: tuple[str, ...]
    """As options name them: files, folders, IDs."""
    signatures: str | None

    def beside(self, folder: Path, rule: str) -> list[str]:
        """What a test in a folder names, so that a rule runs and those that it needs."""
        if not any(o.about.id == rule and o.about.kind != "tracee" for o in self.found.rules):
            return [rule]
        each = [[one] if Path(one).exists() else one.split(",") for one in self.named]
        names = [name.strip() for names in each for name in names if name.strip()]
        return [os.path.relpath(one, folder) if Path(one).exists() else one for one in names]


def _expected(
    made: Cut, run: Sequence[str], signatures: str | None, folder: Path
) -> list[dict[str, Any]]:
    """The alerts of what is left: of all the rules of a file, not only that it was cut for."""
    from kcap.format.reader import CaptureReader
    from kcap.tools import rule_tests

    words = [str(folder / one) if (folder / one).exists() else one for one in run]
    rules = ruleset.selected(words, signatures).rules
    with closing(CaptureReader(io.BytesIO(made.data), made.alert.rule)) as source:
        found = [json.loads(line) for line in rule_tests.alerts_of(source, rules).splitlines()]
    if all(one["arg_alert_id"] != made.alert.id for one in found):
        raise KcapError(
            f"the rules {', '.join(run)} do not raise the alert by themselves",
            file=str(folder),
            hint="name with --rules all files that it needs",
        )
    return found


def _quoted(text: str) -> str:
    """A text in quotes, as YAML has it: like JSON, but each character by a number of its own."""
    plain = text.encode("utf-8", "replace").decode()
    each = [json.dumps(c)[1:-1] if ord(c) <= _BASIC_MAX else f"\\U{ord(c):08x}" for c in plain]
    return f'"{"".join(each)}"'
