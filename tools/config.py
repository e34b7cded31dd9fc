"""``kcap config``: the settings of all verbs, and where each comes from."""

from __future__ import annotations

import click

from kcap.tools import settings
from kcap.tools.cli import Verb


@click.command(
    "config",
    cls=Verb,
    examples=(
        "kcap config",
        "kcap config --all",
        "kcap config --check site.yaml",
        "kcap config --example > kcap.yaml",
    ),
)
@click.option("--all", "every", is_flag=True, help="What nobody has set, too.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.option("--check", "checked", metavar="FILE", help="Say whether a file is right, no more.")
@click.option("--example", is_flag=True, help="Print a file to begin with; all in it is a comment.")
@click.pass_context
def command(
    ctx: click.Context, every: bool, as_json: bool, checked: str | None, example: bool
) -> None:
    """Print the settings of this host as they are merged, and where each comes from.

    Settings are in one file: what --config names, else what the variable KCAP_CONFIG does, else
    ~/.config/kcap/kcap.yaml (or .toml), else /etc/kcap/kcap.yaml (or .toml). Root takes no file of
    a user's, and none that others can change; nobody takes one of the working folder. A section
    has a verb's options by their long names; others are sinks, transformers, filament and logging.

    Variables win over the file: KCAP_RECORD_MAX_SIZE is --max-size of record. The command line wins
    over both. Passwords are not shown, nor how long they are.
    """
    from kcap.tools.settings import example as shipped
    from kcap.tools.settings import show
    from kcap.tools.settings.check import check
    from kcap.tools.settings.merged import Merged

    if sum((example, checked is not None, every or as_json)) > 1:
        raise click.UsageError("--example, --check, and --all or --json exclude each other")
    if example:
        click.echo(shipped.TEXT, nl=False)
    elif checked is not None:
        count = check(Merged(checked, environ={}))
        click.echo(f"{checked}: {count} setting{'' if count == 1 else 's'}, all right")
    else:
        found = settings.found(ctx)
        listed = [*show.rows(found, every=every)]
        if as_json:
            click.echo(show.as_json(listed, found.file))
        else:
            click.echo("\n".join(show.as_yaml(listed, found.file)))
