"""``kcap test``: whether rules raise the alerts that their tests expect."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kcap.errors import KcapError
from kcap.tools import common, logs, output, ruleset
from kcap.tools.cli import Verb

if TYPE_CHECKING:
    from kcap.tools.rule_tests import Outcome


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
@ruleset.selecting_options
@click.pass_context
def command(
    ctx: click.Context,
    paths: tuple[str, ...],
    update: bool,
    as_json: bool,
    capture: str | None,
    alert: str | None,
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
        chosen = ruleset.selected(rules, signatures, rules_dir)
        chosen.tell_problems()
        _write(capture, alert, chosen, (*rules_dir, *rules), signatures, Path(paths[0]))
        return
    if rules or signatures or rules_dir:
        raise click.UsageError("tests say themselves which rules they run")
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


def _write(
    capture: str,
    alert_id: str,
    rules: ruleset.Chosen,
    named: tuple[str, ...],
    signatures: str | None,
    folder: Path,
) -> None:
    """Cut a capture, and write a test around it."""
    from kcap.tools import rule_cut

    made = rule_cut.cut(Path(capture), rules.rules, alert_id)
    about = made.alert
    stem = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', about.rule)}-{about.id[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KcapError(f"can't be made: {error.strerror}", file=str(folder)) from error
    files = folder / f"{stem}.kcap", folder / f"{stem}.test.yml"
    run = [about.rule]
    if any(one.about.id == about.rule and one.about.kind != "tracee" for one in rules.rules):
        run = [os.path.relpath(one, folder) for one in named if Path(one).exists()]
    words = [
        f"run: {json.dumps(run)}",
        *([f"signatures: {signatures}"] if signatures else []),
        "cases:",
        f"  - name: {json.dumps(about.title)}",
        f"    capture: {files[0].name}",
        "    expect:",
        f"      - rule: {json.dumps(about.rule)}",
        f"        id: {about.id}",
    ]
    with output.opened(str(files[0])) as stream:
        stream.write(made.data)
    with output.opened(str(files[1]), binary=False) as stream:
        stream.write(("\n".join(words) + "\n").encode())
    logs.tell(f"kcap: {common.counted(made.events, 'event')}: {files[0]}, {files[1]}")
