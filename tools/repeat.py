"""Repeating a replay: what its manifest says, and whether the same comes out again."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

import click

from kcap.errors import KcapError
from kcap.tools import common, output
from kcap.tools.play import Options, Output, opened_output

if TYPE_CHECKING:
    from kcap.filter import Filter
    from kcap.replay.manifest import Digested

Json = Any
"""A plain JSON value."""

_RERUN: Final = "kcap.replay.rerun"

_APART: Final = frozenset(
    {"capture", "kcap", "output", "force", "speed", "manifest", "verify", "resume"}
)
"""Options that the output does not depend on, or that say where things are."""


_NOT_OF_A_VIEW: Final = ("format", "template", "fields", "state")
"""What a view refuses to be told, even that it is as usual."""


@dataclass
class Rerun:
    """A run that is made to be compared with its manifest."""

    manifest: Mapping[str, Json]
    made: dict[str, Json] = field(default_factory=dict)
    """The manifest of the new run."""

    def name(self, number: int, name: str) -> str:
        """What an output is called: as in the manifest, for this run has none."""
        outputs = self.manifest["outputs"]
        known = outputs[number].get("name") if number < len(outputs) else None
        return known if isinstance(known, str) else name


def rerun(ctx: click.Context) -> Rerun | None:
    """The comparison that a run is made for.

    Args:
        ctx: The verb's context.

    Returns:
        The comparison; None for a run of its own.
    """
    found: Rerun | None = ctx.meta.get(_RERUN)
    return found


def options_of(ctx: click.Context, where: Filter | None, **decided: Json) -> dict[str, Json]:
    """The options of a run that its output depends on, whatever said them.

    Args:
        ctx: The verb's context.
        where: The filter, however it was given.
        **decided: Options whose value was found out, as ``color``.

    Returns:
        Long name to plain JSON value, without those that are not given.
    """
    found: dict[str, Json] = {}
    for param in ctx.command.params:
        name = _long(param)
        if name is None or name in _APART or param.name not in ctx.params:
            continue
        value = ctx.params[param.name]
        if value is not None and value is not False and value != ():
            found[name] = _plain(value)
    found.pop("where", None)
    for name in _NOT_OF_A_VIEW if "view" in found else ():
        found.pop(name, None)
    if where is not None:
        found["where"] = where.text
    if era := common.era_of(ctx):
        found["era"] = str(era)
    return dict(sorted((found | decided).items()))


def words_of(options: Mapping[str, Json]) -> list[str]:
    """The options of a manifest as a command line has them.

    Args:
        options: The options.

    Returns:
        The words.
    """
    return [
        f"--{name}" if each is True else f"--{name}={each}"
        for name, value in sorted(options.items())
        for each in (value if isinstance(value, list) else [value])
    ]


def verified(ctx: click.Context, command: click.Command, path: str) -> int:
    """Run what a manifest says once more, and print what is not the same.

    Args:
        ctx: The verb's context.
        command: The verb.
        path: The manifest.

    Returns:
        The exit code: 0, or 1 where anything differs.

    Raises:
        KcapError: The manifest is none, its capture is missing or another one, or the run fails.
    """
    from kcap.model.text import printable
    from kcap.replay import manifest

    says = manifest.read(path)
    capture = manifest.find_capture(says, path)
    again = Rerun(says)
    ctx.meta[_RERUN] = again
    words = [*words_of(says["options"]), "--kcap", capture]
    try:
        # Settings of this host are not the run's: what those said then is in the manifest.
        with command.make_context("replay", words, parent=ctx, default_map={}) as inner:
            command.invoke(inner)
    except click.exceptions.Exit:
        pass  # a lossy run may be repeated as well; its code is in the manifest
    except click.UsageError as e:
        raise KcapError(f"its options can't be run: {e.format_message()}", file=path) from e
    shown = printable(path)
    found = manifest.differences(says, again.made)
    for line in found:
        click.echo(f"{shown}: {printable(line)}")
    for line in manifest.other_versions(says):
        click.echo(f"{shown}: note: {printable(line)}")
    if not found:
        counts = again.made["counts"]
        count = common.counted(counts["out"], "event")
        click.echo(f"{shown}: the same: {count}, {_bytes(again.made['outputs'])}")
    return 1 if found else 0


@contextlib.contextmanager
def opened(
    form: str, options: Options, again: Rerun | None, *, digest: bool
) -> Iterator[tuple[Output, list[dict[str, Json]]]]:
    """Open a run's output, and describe it in the end.

    Args:
        form: One of `common.FORMATS`.
        options: The verb's options.
        again: The comparison that the run is made for: then nothing is kept.
        digest: Describe it.

    Yields:
        The output, and a list that gets the description.
    """
    found: list[dict[str, Json]] = []
    if again is None and not digest:
        with opened_output(form, options) as out:
            yield out, found
        return
    with _target(form, options, again) as out:
        stream = _digested(out.stream)
        yield Output(out.path, cast("BinaryIO", stream)), found
        stream.flush()
        name = options["output"] if again is None else again.name(0, options["output"])
        found.append(_description(out.path, form, stream) | {"format": form, "name": name})


@contextlib.contextmanager
def _target(form: str, options: Options, again: Rerun | None) -> Iterator[Output]:
    if again is None:
        with opened_output(form, options) as out:
            yield out
    elif form in common.BINARY_FORMATS:
        # What a capture holds is told by its end, which tells it of the whole file.
        with tempfile.TemporaryDirectory(prefix="kcap-") as folder:
            path = str(Path(folder) / "again.kcap")
            with output.opened(path) as stream:
                yield Output(path, stream)
    else:
        yield Output("-", cast("BinaryIO", io.BufferedWriter(_Nowhere())))


def _digested(stream: BinaryIO) -> Digested:
    from kcap.replay.manifest import Digested

    return Digested(stream)


def _description(path: str, form: str, stream: Digested) -> dict[str, Json]:
    """What came out. A capture's bytes hold an id and a time of their own: its events count."""
    if form not in common.BINARY_FORMATS:
        return {"bytes": stream.size, "sha256": stream.sha256}
    from kcap.opening import open_source
    from kcap.replay.manifest import content_of

    with contextlib.closing(open_source(path, resolve=False)) as source:
        return {"content_hash": content_of(source)}


class _Nowhere(io.RawIOBase):
    """Takes everything, keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401  (a buffer, as io declares it)
        return memoryview(data).nbytes


@contextlib.contextmanager
def continued(path: str, size: int) -> Iterator[Output]:
    """Open an output that a run before has left, up to where it is certain.

    Args:
        path: The file; ``-`` for standard output.
        size: How many of its bytes are.

    Yields:
        The output.

    Raises:
        KcapError: It is not there any more, or shorter.
    """
    if path == "-" or (size == 0 and not Path(path).exists()):
        with output.opened(path, binary=False) as stream:
            yield Output(path, stream)
        return
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    hint = "without its --resume file the run begins anew"
    try:
        stream = os.fdopen(os.open(path, flags), "r+b")
    except OSError as e:
        raise KcapError(f"can't be written on: {e.strerror}", file=path, hint=hint) from e
    with stream:
        there = stream.seek(0, os.SEEK_END)
        if there < size:
            what = f"the output has {there:,} bytes"
            raise KcapError(what, file=path, expected=f"at least {size:,}", hint=hint)
        stream.truncate(size)
        stream.seek(size)
        yield Output(path, cast("BinaryIO", stream))


def _long(param: click.Parameter) -> str | None:
    """What an option is called in settings and manifests."""
    return next((name[2:] for name in param.opts if name.startswith("--")), None)


def _plain(value: Json) -> Json:
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return [_plain(each) for each in value]
    return value if isinstance(value, (bool, int, float)) else str(value)


def _bytes(outputs: list[dict[str, Json]]) -> str:
    sizes = [each["bytes"] for each in outputs if "bytes" in each]
    return f"{sum(sizes):,} bytes" if sizes else common.counted(len(outputs), "output")
