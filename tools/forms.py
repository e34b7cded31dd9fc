"""The forms in which events are written: their names, their options, their writers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar

import click

from kcap.errors import KcapError

if TYPE_CHECKING:
    from kcap.model.stream import Sink

_F = TypeVar("_F", bound=Callable[..., Any])

TEXT_FORMATS: Final = (
    *("line", "pretty", "jsonl", "json", "table", "table-verbose", "template", "csv", "null"),
    *("tracee-json", "cef"),
)
FORMATS: Final = (*TEXT_FORMATS, "kcap")
BINARY_FORMATS: Final = ("arrow", "kcap")

ALIASES: Final = {"pretty": "line", "json": "jsonl"}
"""Other names of formats: Fibratus's."""

MEANINGS: Final = {
    "line": "for people",
    "jsonl": "one JSON object an event",
    "table": "as Tracee prints it",
    "template": "as a jinja2 template says",
    "csv": "for spreadsheets",
    "null": "nothing, to count",
    "tracee-json": "Tracee's JSON",
    "cef": "a line of the Common Event Format, for SIEMs",
}
"""What formats are."""

FORMAT_HELP: Final = f"{'; '.join(f'{form}: {what}' for form, what in MEANINGS.items())}."
"""The help of an option for a format."""

_USES: Final = {
    "template": ("line", "template"),
    "template_file": ("template",),
    "containers": ("table", "table-verbose"),
}
"""Options and the formats that have a use for them."""

_TEMPLATE_CHARS: Final = 1 << 16


def form_options(function: _F) -> _F:
    """``--template``, ``--template-file``, ``--containers``: the options of some formats."""
    for option in (
        click.option(
            "--containers", is_flag=True, help="table: the container, and process ids inside it."
        ),
        click.option(
            "--template-file",
            type=click.Path(dir_okay=False),
            help="template: a file with it, as '{{ ts | utc }} {{ event }} {{ params.pathname }}'.",
        ),
        click.option(
            "--template", help="line: as '{{ .Process }} {{ .Type }}'; template: the template."
        ),
    ):
        function = option(function)
    return function


def sink_for(
    form: str,
    stream: BinaryIO,
    *,
    file: str = "-",
    state: bool = False,
    template: str | None = None,
    template_file: str | None = None,
    fields: Sequence[str] | None = None,
    containers: bool = False,
    color: bool = False,
) -> Sink:
    """The writer of a format.

    Args:
        form: One of `FORMATS`; or ``arrow``, a stream that can be read along.
        stream: Where it writes.
        file: The stream's name, for errors.
        state: Text formats: state records too.
        template: Console lines: their form. ``template``: the template.
        template_file: ``template``: the file that holds it.
        fields: CSV: its columns; None for those of all events, and the arguments as JSON.
        containers: Tables: the container, and process ids inside it.
        color: Console lines: with colours.

    Returns:
        The sink.

    Raises:
        click.UsageError: An option is for another format.
        KcapError: The template can't be read or understood.
    """
    from kcap import plugins

    form = ALIASES.get(form, form)
    _check(form, template=template, template_file=template_file, containers=containers)
    table = form.removesuffix("-verbose")
    writer = plugins.load(plugins.WRITERS, table if table == "table" else form)
    sink: Sink
    if form == "kcap":
        sink = writer(stream, file=file)
    elif form == "line":
        sink = writer(stream, template=template, state=state, color=color)
    elif form in {"jsonl", "null", "cef"}:
        sink = writer(stream, state=state)
    elif table == "table":
        sink = writer(stream, verbose=form != table, containers=containers, state=state)
    elif form == "template":
        name, text = _template(template, template_file)
        sink = writer(stream, template=text, name=name, state=state)
    elif form == "csv":
        from kcap.writers import layout

        sink = writer(stream, layout.streamed(fields))
    elif form == "arrow":
        from kcap.writers import layout
        from kcap.writers.about import About

        # A stream has to say its columns first: those that any event may have, and maps.
        made = layout.Map(layout.envelope(), layout.Profile.FULL)
        sink = writer(stream, made, About(made.name, made.profile, {}), prompt=True)
    else:
        sink = writer(stream)
    return sink


def _check(form: str, **options: object) -> None:
    """Refuse an option that a format has no use for, rather than let it do nothing.

    Raises:
        click.UsageError: It has none for one of them.
    """
    for name, value in options.items():
        if value not in (None, False) and form not in _USES[name]:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} is for --format {' and '.join(_USES[name])}")


def _template(text: str | None, file: str | None) -> tuple[str, str]:
    """A template's name and text.

    Raises:
        click.UsageError: There is none, or there are two.
        KcapError: The file can't be read.
    """
    if (text is None) == (file is None):
        raise click.UsageError("--format template takes --template-file FILE or --template TEXT")
    if file is None:
        return "--template", text or ""
    try:
        with Path(file).open(encoding="utf-8") as stream:
            # One character more than a template may have is enough to refuse it.
            return file, stream.read(_TEMPLATE_CHARS + 1)
    except OSError as e:
        raise KcapError(f"the template can't be read: {e.strerror or e}", file=file) from e
    except UnicodeDecodeError as e:
        raise KcapError("the template is no UTF-8 text", file=file, offset=e.start) from e
