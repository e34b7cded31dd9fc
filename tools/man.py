"""``kcap man``: manual pages made from the verbs themselves."""

from __future__ import annotations

import textwrap

import click

from kcap.tools.cli import Verb, main

_EXIT = (
    ("0", "done; an interrupted record that closed its file is done"),
    ("1", "failed or refused"),
    ("2", "wrong usage"),
    ("3", "finished, but something was lost, skipped or damaged"),
    ("4", "found something, where --exit-code asks for it"),
)


@click.command(
    "man",
    cls=Verb,
    examples=("kcap man record", "kcap man service install", "kcap man --roff record | man -l -"),
)
@click.argument("words", nargs=-1, metavar="[VERB]...")
@click.option("--roff", is_flag=True, help="As roff, for man(1).")
@click.pass_context
def command(ctx: click.Context, words: tuple[str, ...], roff: bool) -> None:
    """Print the manual page of VERB, or of kcap itself."""
    root = ctx.find_root()
    target: click.Command = main
    for word in words:
        found = target.get_command(root, word) if isinstance(target, click.Group) else None
        if found is None:
            raise click.UsageError(f"there is no verb {' '.join(words)!r}; 'kcap' lists them")
        target = found
    name = " ".join(("kcap", *words))
    page = click.Context(target, info_name=name)
    click.echo(_roff(page, target) if roff else _plain(page, target))


def _sections(page: click.Context, target: click.Command) -> list[tuple[str, list[str]]]:
    """Heading and paragraphs; a paragraph that begins with a blank is kept as it is."""
    text = (target.help or "").split("\n\n")
    name = (page.info_name or "").replace(" ", "-")
    usage = " ".join(target.collect_usage_pieces(page))
    sections = [
        ("NAME", [f"{name} - {text[0].strip().splitlines()[0].rstrip('.')}"]),
        ("SYNOPSIS", [f" {page.info_name} {usage}"]),
        ("EXAMPLES", [f" {e}" for e in getattr(target, "examples", ())]),
        ("DESCRIPTION", [" ".join(p.split()) for p in text]),
    ]
    rows = [r for p in target.get_params(page) if (r := p.get_help_record(page)) is not None]
    sections.append(("OPTIONS", [f" {names}\n{_indented(text)}" for names, text in rows]))
    if isinstance(target, click.Group):
        verbs = [(v, target.get_command(page, v)) for v in target.list_commands(page)]
        listed = [f" {v:<12} {c.get_short_help_str(80)}" for v, c in verbs if c is not None]
        sections.append(("VERBS", ["\n".join(listed)]))
    sections.append(("EXIT STATUS", [f" {code}  {meaning}" for code, meaning in _EXIT]))
    return [(heading, body) for heading, body in sections if body]


def _indented(text: str) -> str:
    return textwrap.fill(text, 74, initial_indent="     ", subsequent_indent="     ")


def _plain(page: click.Context, target: click.Command) -> str:
    lines = []
    for heading, paragraphs in _sections(page, target):
        lines.append(heading)
        for paragraph in paragraphs:
            kept = paragraph.startswith(" ")
            text = paragraph if kept else textwrap.fill(paragraph, 74)
            lines.append(textwrap.indent(text, "    " if not kept else "   "))
            if not kept:
                lines.append("")
        if lines[-1]:
            lines.append("")
    return "\n".join(lines).rstrip()


def _roff(page: click.Context, target: click.Command) -> str:
    name = (page.info_name or "").replace(" ", "-").upper()
    lines = [f'.TH "{name}" 1 "" "kcap" "kcap manual"']
    for heading, paragraphs in _sections(page, target):
        lines.append(f".SH {heading}")
        for paragraph in paragraphs:
            safe = paragraph.replace("\\", "\\e").replace("-", "\\-")
            if paragraph.startswith(" "):
                lines += [".nf", *(f"\\&{line[1:]}" for line in safe.splitlines()), ".fi"]
            else:
                lines += [".PP", f"\\&{safe}"]
    return "\n".join(lines)
