"""``kcap rules``: what rules there are, what they need, and why one matches or does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from kcap.tools import common, logs, rule_looks, ruleset
from kcap.tools.cli import Verb, VerbGroup
from kcap.tools.docs import table

if TYPE_CHECKING:
    from kcap.detect.rule import Rule
    from kcap.replay.pipeline import Summary
    from kcap.replay.tap import Tap

_LOSSY: Final = 3
_ANY: Final = "(any)"


def _names_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="The same as JSON."),
        click.option(
            "--rules-dir", multiple=True, metavar="DIR", help="Where IDs are looked for, too."
        ),
        click.option(
            "--signatures", type=click.Choice(ruleset.SETS), help="A set of Tracee's signatures."
        ),
        click.argument("names", nargs=-1, metavar="[PATH|ID]..."),
    ):
        function = option(function)
    return function


@click.group(
    "rules",
    cls=VerbGroup,
    examples=(
        "kcap rules list --signatures all",
        "kcap rules validate ./rules",
        "kcap rules show TRC-3",
        "kcap rules coverage --capture host.kcap ./rules",
        "kcap rules explain TRC-3 host.kcap --event 4711",
        "kcap rules profile --capture host.kcap ./rules",
    ),
)
def command() -> None:
    """Look at rules: which there are, whether they can run, what they need, why they match.

    Rules are named as for 'kcap detect': files and folders of kcap's own rules, Fibratus's and
    Sigma's, and IDs; without any, Tracee's first 14 signatures are meant.
    """


@command.command(
    "list", cls=Verb, examples=("kcap rules list", "kcap rules list --signatures all ./rules")
)
@_names_argument
@click.pass_context
def list_(
    ctx: click.Context,
    names: tuple[str, ...],
    signatures: str | None,
    rules_dir: tuple[str, ...],
    as_json: bool,
) -> None:
    """List rules: ID, kind, severity, name."""
    found = ruleset.selected(names, signatures, rules_dir)
    if as_json:
        for rule in found.rules:
            click.echo(_json(rule_looks.told(rule)))
    elif found.rules:
        rows = [(r.about.id, r.about.kind, r.about.severity, r.about.name) for r in found.rules]
        click.echo(_table([("ID", "KIND", "SEVERITY", "NAME"), *rows]))
    _leave(ctx, found)


@command.command(
    "validate", cls=Verb, examples=("kcap rules validate ./rules", "kcap rules validate a.yml")
)
@click.argument("names", nargs=-1, required=True, metavar="PATH...")
@click.pass_context
def validate(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Read rules, and say of each that can't run why: file, line, rule. Exit code 3 then."""
    found = ruleset.selected(names)
    # Only what runs it finds what is wrong with a field of its machine.
    found.problems += found.detections().problems
    _leave(ctx, found, told=True)


@command.command("show", cls=Verb, examples=("kcap rules show TRC-3", "kcap rules show a.yml"))
@_names_argument
@click.pass_context
def show(
    ctx: click.Context,
    names: tuple[str, ...],
    signatures: str | None,
    rules_dir: tuple[str, ...],
    as_json: bool,
) -> None:
    """Print all that is known of rules: what they look for, the events that they need."""
    if not names:
        raise click.UsageError("name a rule: its ID, or the file that it is in")
    found = ruleset.selected(names, signatures, rules_dir)
    if as_json:
        for rule in found.rules:
            click.echo(_json(rule_looks.told(rule)))
    else:
        click.echo("\n\n".join(_printable(_shown(rule)) for rule in found.rules))
    _leave(ctx, found)


@command.command(
    "coverage",
    cls=Verb,
    examples=(
        "kcap rules coverage --signatures all",
        "kcap rules coverage --capture host.kcap ./rules",
    ),
)
@_names_argument
@click.option("--capture", help="Which rules can match here at all: are their events there?")
@common.lenient_option
@click.pass_context
def coverage(
    ctx: click.Context,
    names: tuple[str, ...],
    signatures: str | None,
    rules_dir: tuple[str, ...],
    as_json: bool,
    capture: str | None,
    lenient: bool,
) -> None:
    """Print which techniques rules cover; with --capture, whether the events are there for each."""
    found = ruleset.selected(names, signatures, rules_dir)
    code = 0
    if capture is None:
        _techniques(found.rules, as_json=as_json)
    else:
        code = _seen(found.rules, capture, as_json=as_json, lenient=lenient)
    _leave(ctx, found, code=code)


def _techniques(rules: Sequence[Rule], *, as_json: bool) -> None:
    """Print which techniques rules cover."""
    techniques: dict[str, list[str]] = {}
    for rule in rules:
        for technique in rule.about.techniques or ("(none)",):
            techniques.setdefault(technique, []).append(rule.about.id)
    if as_json:
        for name, ids in sorted(techniques.items()):
            click.echo(_json({"technique": name, "rules": ids}))
    elif techniques:
        rows = [(name, " ".join(ids)) for name, ids in sorted(techniques.items())]
        click.echo(_table([("TECHNIQUE", "RULES"), *rows]))


def _seen(rules: Sequence[Rule], capture: str, *, as_json: bool, lenient: bool) -> int:
    """Print which rules have events in a capture; the exit code."""
    needed, _ = ruleset.needed_events(rules)
    tap = rule_looks.Counting(needed)
    summary = _through(capture, tap, lenient=lenient)
    rows = [("RULE", "CAN MATCH", "EVENTS")]
    words = {None: "unknown", True: "yes", False: "no"}
    for rule in rules:
        events = ruleset.events_of(rule)
        counts = {} if events is None else {name: tap.counts[name] for name in sorted(events)}
        can = None if events is None else any(counts.values())
        if as_json:
            click.echo(_json({"rule": rule.about.id, "can_match": can, "events": counts}))
        shown = " ".join(f"{name}={count:,}" for name, count in counts.items())
        rows.append((rule.about.id, words[can], shown or _ANY))
    if not as_json:
        click.echo(_table(rows))
    common.report_losses(summary.losses, capture)
    return summary.exit_code


@command.command(
    "explain",
    cls=Verb,
    examples=(
        "kcap rules explain TRC-3 host.kcap --event 4711",
        "kcap rules explain MINE host.kcap --rules-dir ./rules --event 4711",
    ),
)
@click.argument("name", metavar="RULE")
@click.argument("capture")
@click.option("--event", required=True, metavar="ORD", help="Its ord, or ORIGIN:ORD of an alert.")
@click.option("--signatures", type=click.Choice(ruleset.SETS), help="A set of signatures.")
@click.option("--rules-dir", multiple=True, metavar="DIR", help="Where RULE is looked for, too.")
@common.lenient_option
@click.pass_context
def explain(
    ctx: click.Context,
    name: str,
    capture: str,
    event: str,
    signatures: str | None,
    rules_dir: tuple[str, ...],
    lenient: bool,
) -> None:
    """Say why RULE matches an event of CAPTURE or does not: each part of what it asks, and values.

    'kcap cat --format jsonl' shows each event's ord; an alert names its events in arg_causes.
    """
    from kcap.model.text import printable

    found = ruleset.selected((name,), signatures, rules_dir)
    wanted = rule_looks.Wanted.of(event)
    taps = [rule_looks.Explaining(rule, wanted) for rule in found.rules]
    summary = _through(capture, *taps, lenient=lenient)
    if not any(tap.seen for tap in taps):
        from kcap.errors import KcapError

        raise KcapError(
            f"there is no event {event}",
            file=capture,
            hint="kcap cat --format jsonl shows each event's ord",
        )
    click.echo("\n\n".join("\n".join(map(printable, tap.lines())) for tap in taps))
    common.report_losses(summary.losses, capture)
    _leave(ctx, found, code=summary.exit_code)


@command.command(
    "profile", cls=Verb, examples=("kcap rules profile --capture host.kcap --signatures all",)
)
@_names_argument
@click.option("--capture", required=True, help="The events to run them over.")
@common.lenient_option
@click.pass_context
def profile(
    ctx: click.Context,
    names: tuple[str, ...],
    signatures: str | None,
    rules_dir: tuple[str, ...],
    as_json: bool,
    capture: str,
    lenient: bool,
) -> None:
    """Run rules, and print how many events each looks at one by one, and how long that takes."""
    found = ruleset.selected(names, signatures, rules_dir)
    tap = rule_looks.Profiling(found.rules)
    summary = _through(capture, tap, lenient=lenient)
    costs = sorted(tap.costs.values(), key=lambda cost: (-cost.taken_s, cost.rule))
    if as_json:
        for cost in costs:
            click.echo(_json(cost._asdict()))
    else:
        rows = [
            (c.rule, f"{c.candidates:,}", f"{c.alerts:,}", f"{c.taken_s * 1e3:.1f} ms")
            for c in costs
        ]
        click.echo(_table([("RULE", "CANDIDATES", "ALERTS", "TIME"), *rows]))
    each = sum(cost.taken_s for cost in costs)
    rate = summary.events_in / tap.taken_s if tap.taken_s else 0
    logs.tell(
        f"kcap: {common.counted(summary.events_in, 'event')}, rules took {tap.taken_s:.3f} s"
        f" ({rate:,.0f} a second), {each:.3f} s of it one by one"
    )
    common.report_losses(summary.losses, capture)
    _leave(ctx, found, code=summary.exit_code)


def _through(capture: str, *taps: Tap, lenient: bool) -> Summary:
    """Let taps see a capture."""
    from kcap.replay.pipeline import Pipeline
    from kcap.tools.play import opened_source

    with opened_source(capture, lenient=lenient) as source:
        return Pipeline(source, (), taps=taps).run()


def _shown(rule: Rule) -> str:
    """A rule for people."""
    about = rule.about
    place = f"{about.file}:{about.line}" if about.line else about.file
    rows: list[tuple[str, ...]] = [
        ("id", about.id),
        ("name", about.name),
        ("kind", about.kind),
        ("version", about.version),
        ("severity", about.severity),
        ("tags", ", ".join(about.tags)),
        ("techniques", ", ".join(about.techniques)),
        ("references", ", ".join(about.references)),
        ("from", place),
        ("text", about.text or ""),
        *((name, _plain(value)) for name, value in about.details.items()),
        ("events", ", ".join(sorted(ruleset.events_of(rule) or [_ANY]))),
        ("no capture has", ", ".join(rule_looks.sourceless(rule))),
    ]
    lines = [_table([(f"{name}:", value) for name, *rest in rows if (value := rest[0])])]
    if about.description:
        lines += ["", about.description.strip()]
    for selector in rule.selectors:
        lines += ["", f"{selector.name or 'condition'}:", f"  {selector.filter.text.strip()}"]
    for one in rule.exceptions:
        lines += ["", f"except ({one.reason}):", f"  {one.filter.text.strip()}"]
    return "\n".join(lines)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _printable(text: str) -> str:
    from kcap.model.text import printable

    return "\n".join(map(printable, text.split("\n")))


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are a line each, whatever a rule is called."""
    from kcap.model.text import printable

    return table([tuple(map(printable, row)) for row in rows])


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _leave(ctx: click.Context, found: ruleset.Chosen, *, told: bool = False, code: int = 0) -> None:
    """Say what is wrong with rules, and leave with the exit code."""
    found.tell_problems()
    if told or found.problems:
        bad: Sequence[Any] = found.problems
        rules = common.counted(len(found.rules), "rule")
        logs.tell(f"kcap: {rules} can run, {len(bad):,} can't")
    ctx.exit(code or (_LOSSY if found.problems else 0))
