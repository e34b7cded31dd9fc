"""``kcap doctor``: what this host can record, with what, and what is missing."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Final

import click

from kcap.errors import KcapError
from kcap.tools.cli import Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kcap.readers.live.capabilities import Capability, Host
    from kcap.readers.live.choice import Choice

EXIT_LESSER: Final = 3
EXIT_NONE: Final = 1
_WIDTH: Final = 96
_NAMES: Final = 12
_WORKS: Final = 7


@click.command("doctor", cls=Verb, examples=("kcap doctor", "kcap doctor --json"))
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Say what this host can be recorded with, and what stands in the way.

    Every source of events is tried for a moment and let go again: the program in the kernel (bpf),
    tracepoints (perf, tracefs) and the process connector (proc), which kcap records with in that
    order, others, and what --artifacts takes. Nothing of the host is changed. Where the kernel
    publishes no types (BTF), the variable KCAP_BTF may name a file of them.

    The exit code is 0 if the best source works, 3 if only a lesser one does, 1 if none.
    """
    if not sys.platform.startswith("linux"):
        raise KcapError(f"no host is recorded on {sys.platform}", expected="Linux")
    from kcap.readers.live.capabilities import Host, capabilities
    from kcap.readers.live.choice import choose

    host = Host.read()
    found = capabilities(host)
    choice = choose(found)
    if as_json:
        click.echo(json.dumps(_as_json(host, found, choice), indent=2))
    else:
        click.echo("\n".join(_lines(host, found, choice)))
    if choice.source is None:
        ctx.exit(EXIT_NONE)
    if choice.refused:
        ctx.exit(EXIT_LESSER)


def _as_json(host: Host, found: list[Capability], choice: Choice) -> dict[str, Any]:
    return {
        "source": choice.source,
        "host": asdict(host),
        "sources": [{**asdict(one), "used": one.used} for one in found],
    }


def _lines(host: Host, found: list[Capability], choice: Choice) -> Iterator[str]:
    from kcap.readers.live.capabilities import BESIDE, ON_REQUEST, USED

    if choice.source is None:
        yield "This host cannot be recorded."
    elif choice.refused:
        yield f"kcap records this host with {choice.source}, not with {', '.join(choice.refused)}."
    else:
        yield f"kcap records this host with {choice.source}."
    yield ""
    for name, value in _facts(host):
        yield from _entry(name, value)
    for title, names in (
        ("kcap records with", USED),
        ("Where --source asks for it", ON_REQUEST),
        ("Where --artifacts asks for it", BESIDE),
    ):
        yield ""
        yield f"{title}:"
        for one in found:
            if one.source in names:
                yield from _described(one)


def _facts(host: Host) -> Iterator[tuple[str, str]]:
    yield "kernel", f"{host.kernel} {host.machine}"
    where = "" if host.initial_user_namespace else ", in a user namespace"
    yield "rights", f"uid {host.uid}{where}: {', '.join(host.capabilities) or 'none that help'}"
    yield "types", host.types or "none: this kernel has no BTF, or it cannot be read"
    yield "tracefs", host.tracefs or "not mounted"
    yield "cgroups", host.cgroups or "none"
    yield "lockdown", host.lockdown or "the kernel does not say"
    yield "settings", ", ".join(f"{name} {value}" for name, value in host.settings.items())


def _described(one: Capability) -> Iterator[str]:
    yield from _entry(one.source, ("yes" if one.usable else "no").ljust(_WORKS) + one.tells, _WORKS)
    for text in (one.why, one.advice and f"what helps: {one.advice}", *one.limits):
        if text:
            yield from _entry("", " " * _WORKS + f"- {text}", _WORKS + 2)


def _entry(name: str, text: str, hang: int = 0) -> list[str]:
    """A name, and a text that keeps to its column."""
    start = f"  {name}".ljust(_NAMES)
    indent = " " * (_NAMES + hang)
    return wrap(start + text, _WIDTH, subsequent_indent=indent) or [start.rstrip()]
