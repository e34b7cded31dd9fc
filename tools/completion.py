"""``kcap completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from kcap.tools.cli import Verb


@click.command(
    "completion",
    cls=Verb,
    examples=(
        "kcap completion bash > /etc/bash_completion.d/kcap",
        'eval "$(kcap completion zsh)"',
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete kcap's verbs and options."""
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "kcap", "_KCAP_COMPLETE").source())
