"""``kcap docs``: the documentation, offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import kcap
from kcap.tools.cli import Verb

_FILES = {"format": "kcap.md"}


@click.command("docs", cls=Verb, examples=("kcap docs", "kcap docs columns", "kcap docs format"))
@click.argument("topic", required=False)
def command(topic: str | None) -> None:
    """Print the documentation of TOPIC; without one, the list of topics."""
    topics = {
        "columns": ("the columns of every event, with class and meaning", _columns),
        "arguments": ("the arguments with a known class", _arguments),
        "events": ("the events that kcap knows, with action and category", _events),
        "artifacts": ("kinds of artifacts, and what is known of each", _artifacts),
        "actions": ("kcap's taxonomy: what can happen", _actions),
        "functions": ("the functions of filters, and those that are refused", _functions),
        "sinks": ("the sinks of --sink, with their options", _sinks),
        "transform": ("transformers of --transform and files, patterns of redact", _transform),
        "templates": ("what a template may name and do, with its filters", _templates),
        "filaments": ("what a filament has, what it can call and what it may take", _filaments),
        "detections": (
            "keys of rules in YAML; what signatures in Python can call",
            _detections,
        ),
        "rule-tests": ("the files of 'kcap test', and the fixtures of pytest", _rule_tests),
        "signatures": ("Tracee's signatures: severity, sets, origin, events", _signatures),
        "sigma": ("Sigma's logsources: which events they mean, where fields are found", _sigma),
        "settings": ("a file of settings, explained; 'kcap config' shows what holds", _settings),
        "format": ("the .kcap format, normative", _format),
    }
    if topic is None:
        click.echo("\n".join(f"kcap docs {name:<10} {text}" for name, (text, _) in topics.items()))
        return
    if topic not in topics:
        import difflib

        near = difflib.get_close_matches(topic, topics, 1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise click.UsageError(f"there is no topic {topic!r}.{meant} 'kcap docs' lists them.")
    click.echo(topics[topic][1]())


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as aligned columns.

    Args:
        rows: The cells; at least one row.

    Returns:
        A line a row.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _columns() -> str:
    from kcap.model import catalogue

    return table([(c.name, str(c.cls), c.meaning) for c in catalogue.envelope().values()])


def _arguments() -> str:
    from kcap.model import catalogue

    return table([(c.name, str(c.cls), c.meaning) for c in catalogue.arguments().values()])


def _events() -> str:
    from kcap.model import catalogue

    return table(
        [
            (family, e.name, e.action or "-", e.category or "-")
            for family in catalogue.families()
            for e in catalogue.events(family).values()
        ]
    )


def _artifacts() -> str:
    from kcap.model.artifact_details import DETAILS, KINDS

    return f"{table(list(KINDS.items()))}\n\n{table(list(DETAILS.items()))}"


def _actions() -> str:
    from kcap.model import catalogue

    return table(list(catalogue.actions().items()))


def _functions() -> str:
    from kcap.filter.functions import FUNCTIONS, REFUSED

    known = [(f.usage, f.result, f.meaning) for f in FUNCTIONS.values()]
    return table([*known, *((f"{name}()", "refused", why) for name, why in REFUSED.items())])


def _templates() -> str:
    import textwrap

    from kcap.errors import MissingExtraError

    try:
        from kcap.writers import rendered, sandbox
    except ImportError as e:
        hint = "pip install 'kcap[templates]'"
        raise MissingExtraError("jinja2 is not installed", hint=hint) from e
    names = [
        ("{{ event }}", "a column: 'kcap docs columns', arg_NAME, ext_NAME"),
        ("{{ params.pathname }}", "an argument by its name, flags as text; params is all of them"),
        ("{% if exe %} {% else %} {% endif %}", "statements: if, for, set, with"),
        ("{{ exe.split('/') | last }}", "text has its methods that make none longer"),
    ]
    filters = table([(f"  {name}", what) for name, what in sandbox.FILTERS.items()])
    others = textwrap.indent(textwrap.fill(" ".join(sandbox.AS_IN_JINJA), 78), "  ")
    times = [f"%{name} {rendered.utc_of(0, f'%{name}')}" for name in rendered.DIRECTIVES]
    return "\n\n".join(
        [
            f"A template is jinja2's language, without what reaches out of it.\n{table(names)}",
            f"filters\n{filters}\n  as in jinja2:\n{others}",
            f"times\n  {'  '.join(times)}",
        ]
    )


def _sinks() -> str:
    from kcap import plugins
    from kcap.writers.sinks import http, server, spec

    shared = {
        spec.DeliveryOptions: "every sink over a network",
        server.ServerOptions: "... to a server",
        http.ClientOptions: "... over HTTP",
    }
    blocks = [
        "--sink 'SCHEME://USER:PASSWORD@HOST:PORT/PATH?OPTION=VALUE&OPTION=VALUE'",
        "A password, token or key can stand in a file: password-file=FILE.",
        f"{', '.join(f'{scheme}:' for scheme in spec.LOCAL)}\n{_options(spec.LocalOptions)}",
        *(f"{of}\n{_options(options)}" for options, of in shared.items()),
    ]
    by_class: dict[type[Any], list[str]] = {}
    for scheme in plugins.found(plugins.SINKS):
        by_class.setdefault(plugins.load(plugins.SINKS, scheme), []).append(scheme)
    for found, schemes in by_class.items():
        heading = ", ".join(f"{scheme}:" for scheme in schemes)
        blocks.append(f"{heading}  ({', '.join(found.formats)})\n{_options(found.options)}")
    return "\n\n".join(blocks)


def _options(of: type[Any]) -> str:
    """The options of a sink beside those that it shares: name, default, what it does."""
    import dataclasses

    rows = []
    for field in dataclasses.fields(of):
        if field.name not in of.__annotations__:
            continue
        default = field.default
        if default is None or default == () or default is dataclasses.MISSING:
            shown = "-"
        elif isinstance(default, bool):
            shown = "yes" if default else "no"
        elif field.name.endswith("_bytes"):
            shown = f"{default >> 20}M"
        else:
            shown = str(default) or "''"
        note = "; a template" if field.metadata["template"] else ""
        row = (f"  {field.name.replace('_', '-')}", shown, field.metadata["help"] + note)
        rows.append(row)
    return table(rows)


def _transform() -> str:
    """Each transformer, how it is written in a file and on a command line; then the patterns."""
    from kcap.transform import NAMES, patterns

    blocks = [
        f"{name}: {about.meaning}\n    {about.example}\n    --transform '{about.short}'"
        for name, about in NAMES.items()
    ]
    found = [(f"    {p.name}", p.meaning) for p in patterns.KNOWN.values()]
    found.append((f"    {patterns.SECRETS}", patterns.ALL_SECRETS))
    named = f"Patterns of redact:\n\n{table(found)}"
    return "\n\n".join([*blocks, named])


def _filaments() -> str:
    """The functions of filaments and those that they can call, out of the code, and the limits."""
    import dataclasses
    import inspect

    from kcap.filament.api import Api
    from kcap.filament.limits import Limits

    has = (
        ("on_next_event(event)", "called for each event; on_next_kevent(kevent) likewise"),
        ("on_init()", "called before the first event"),
        ("on_interval()", "called in intervals of event time"),
        ("on_stop()", "called behind the last event"),
    )
    calls = []
    for name, function in sorted(Api.functions_of().items()):
        given = list(inspect.signature(function).parameters.values())[1:]
        shown = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in given]
        said = (function.__doc__ or "").partition("\n")[0]
        calls.append((f"  {name}({', '.join(shown)})", said))
    limits = [
        (f"  {field.name.replace('_', '-')}", str(field.default))
        for field in dataclasses.fields(Limits)
    ]
    return (
        f"A filament is a Python file with a docstring and these functions:\n\n"
        f"{table([(f'  {name}', said) for name, said in has])}\n\n"
        f"It can call:\n\n{table(calls)}\n\n"
        f"It may take, in the section filament of the settings:\n\n{table(limits)}"
    )


def _detections() -> str:
    """The keys of rules, and what signatures can call, out of the code."""
    import dataclasses
    import inspect

    from kcap.detect import rule, yaml_rules
    from kcap.detect.room import Bounds

    def members(a_class: type) -> list[tuple[str, str]]:
        found = []
        for name, value in vars(a_class).items():
            function = value.fget if isinstance(value, property) else value
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            given = list(inspect.signature(function).parameters)[1:]
            call = name if isinstance(value, property) else f"{name}({', '.join(given)})"
            found.append((f"  {call}", (function.__doc__ or "").partition("\n")[0]))
        return found

    keys = [(f"  {name}", ", ".join(sorted(known))) for name, known in yaml_rules.KEYS.items()]
    bounds = [(f"  {field.name}", f"{field.default:,}") for field in dataclasses.fields(Bounds)]
    return (
        f"A file of rules has these keys:\n\n{table(keys)}\n\n"
        f"A signature is a Python class with id, selectors and on_match(ctx, selector, event).\n"
        f"The event has:\n\n{table(members(rule.Event))}\n\n"
        f"The context, ctx, has:\n\n{table(members(rule.Context))}\n\n"
        f"Rules remember at most, bytes and entries:\n\n{table(bounds)}"
    )


def _rule_tests() -> str:
    """The format of tests, and the fixtures for pytest."""
    import ast
    from importlib import resources

    from kcap.tools import rule_tests

    # The plugin imports pytest, which need not be there.
    plugin = resources.files("kcap.tools").joinpath("pytest_plugin.py").read_text("utf-8")
    return f"{rule_tests.__doc__}\n{ast.get_docstring(ast.parse(plugin))}"


def _signatures() -> str:
    from kcap.readers.rules.tracee import described

    heading, *rows = described()
    return table([tuple(map(str.upper, heading)), *rows])


def _sigma() -> str:
    from kcap.readers.rules.sigma_pipelines import described

    return "\n\n".join(map(table, described()))


def _settings() -> str:
    from kcap.tools.settings import example

    return example.TEXT.rstrip()


def _format() -> str:
    """The specification: beside the package in a checkout, inside it where it is installed."""
    package = Path(kcap.__file__).resolve().parent
    for folder in (package / "spec", package.parent / "spec"):
        path = folder / _FILES["format"]
        if path.is_file():
            return path.read_text("utf-8")
    raise kcap.KcapError("the specification was not installed", hint="see spec/kcap.md")
