"""Repeating a replay: what its manifest says, and whether the same comes out again."""

from __future__ import annotations

import contextlib
import io
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

import click

from kcap.errors import KcapError
from kcap.tools import common, output
from kcap.tools.play import Options, Output, opened_output

if TYPE_CHECKING:
    from kcap.filter import Filter
    from kcap.replay.manifest import Digested
    from kcap.tools.outlets import Wanted

Json = Any
"""A plain JSON value."""

_RERUN: Final = "kcap.replay.rerun"

_NOT_SAID: Final = frozenset(
    {"kcap", "output", "force", "speed", "manifest", "verify", "resume", "help"}
)
"""Options that the output does not depend on: no manifest has them, or is obeyed."""

_ELSEWHERE: Final = frozenset({"filament", "filament.path", "sink", "transform"})
"""Options that `Wanted.words` has without secrets."""

_PRINTING: Final = frozenset(
    {"color", "containers", "fields", "format", "state", "template", "template-file", "view"}
)
"""Options of what is printed, which mean that something is."""

_NOT_OF_A_VIEW: Final = ("format", "template", "fields", "state")
"""What a view refuses to be told, even that it is as usual."""


@dataclass
class Rerun:
    """A run that is made to be compared with its manifest."""

    says: Mapping[str, Json]
    """The manifest."""
    folder: str
    """For what is written and read once."""
    made: dict[str, Json] = field(default_factory=dict)
    """The manifest of the new run."""


def rerun(ctx: click.Context) -> Rerun | None:
    """The comparison that a run is made for.

    Args:
        ctx: The verb's context.

    Returns:
        The comparison; None for a run of its own.
    """
    found: Rerun | None = ctx.meta.get(_RERUN)
    return found


def options_of(
    ctx: click.Context, where: Filter | None, asked: Wanted, **decided: Json
) -> dict[str, Json]:
    """The options of a run that its output depends on, whatever said them.

    Args:
        ctx: The verb's context.
        where: The filter, however it was given.
        asked: Filaments, transformers and sinks.
        **decided: Options whose value was found out, as ``color``.

    Returns:
        Long name to plain JSON value, without those that are not given.
    """
    found: dict[str, Json] = {}
    for param in ctx.command.params:
        name = next((n[2:] for n in param.opts if n.startswith("--")), None)
        value = ctx.params.get(param.name or "")
        given = value is not None and value is not False and value != ()
        if given and name is not None and name not in _NOT_SAID | _ELSEWHERE:
            found[name] = _plain(value)
    if events := ctx.params.get("events"):  # the one that has a short name alone
        found["view"] = f"{found['view']} -e {shlex.quote(events)}"
    found |= decided
    found.pop("where", None)
    for name in _NOT_OF_A_VIEW if "view" in found else () if asked.console else _PRINTING:
        found.pop(name, None)
    found |= {name: list(values) for name, values in asked.words.items()}
    if where is not None:
        found["where"] = where.text
    if era := common.era_of(ctx):
        found["era"] = str(era)
    if common.looks_into_binaries(ctx):
        found["pe.enabled"] = True
    return dict(sorted(found.items()))


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


def parts_of(asked: Wanted) -> list[dict[str, Json]]:
    """What the output depends on beside options.

    Args:
        asked: What was asked for.

    Returns:
        Plain JSON objects: kinds, names, digests, and what filaments may do.
    """
    found: list[dict[str, Json]] = [dict(part) for part in asked.parts]
    if asked.filaments and asked.limits is not None:
        found.append({"kind": "limits", **asdict(asked.limits)})
    found += [{"kind": "redaction key", "id": key} for key in keys_of(asked)]
    return found


def keys_of(asked: Wanted) -> list[str]:
    """Which keys the tokens of transformers are made with: options only name their files.

    Args:
        asked: What was asked for.

    Returns:
        Ids that tell keys apart, and say nothing of them; in the order of the transformers.
    """
    return [stage.key_id for stage in asked.transforms if hasattr(stage, "key_id")]


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
    from kcap.filter import FilterError
    from kcap.model.text import printable
    from kcap.replay import manifest

    says = manifest.read(path)
    if refused := sorted(_NOT_SAID.intersection(says["options"])):
        raise KcapError(f"a manifest has no option {', '.join(refused)}", file=path)
    capture = manifest.find_capture(says, path)
    with tempfile.TemporaryDirectory(prefix="kcap-") as folder:
        ctx.meta[_RERUN] = again = Rerun(says, folder)
        words = [*words_of(_beside(says["options"], path)), "--kcap", capture]
        # Where nothing goes: but only standard output is shared with what filaments print.
        names = [one.get("name") for one in says["outputs"] if one.get("format") != "filament"]
        if _printed(says["options"]) and names and isinstance(names[0], str):
            words.append(f"--output={names[0]}")
        try:
            # By click's own way: what settings say of the verb here is not what they said then.
            inner = click.Command.make_context(command, "replay", words, parent=ctx, default_map={})
            with inner:
                click.Command.invoke(command, inner)
        except click.exceptions.Exit:
            pass  # a lossy run may be repeated as well; its code is in the manifest
        except (FilterError, click.UsageError) as e:
            said = e.format_message() if isinstance(e, click.UsageError) else str(e)
            raise KcapError(f"its options can't be run: {said}", file=path) from e
    shown = printable(path)
    found = manifest.differences(says, again.made)
    for line in found:
        click.echo(f"{shown}: {printable(line)}")
    for line in manifest.other_versions(says):
        click.echo(f"{shown}: note: {printable(line)}")
    if not found:
        count = common.counted(again.made["counts"]["out"], "event")
        click.echo(f"{shown}: the same: {count}, {_sizes(again.made['outputs'])}")
    return 1 if found else 0


def _printed(options: Mapping[str, Json]) -> bool:
    """Whether events were printed, or written to the output."""
    return "format" in options or "view" in options


def _beside(options: Mapping[str, Json], path: str) -> dict[str, Json]:
    """The options, with the files of filaments that lie beside the manifest."""
    found = dict(options)
    filaments = found.get("filament")
    for number, text in enumerate(filaments if isinstance(filaments, list) else ()):
        name, comma, rest = str(text).partition(",")
        place = Path(path).parent / name
        if name.endswith(".py") and place.is_file():
            found["filament"] = list(found["filament"])
            found["filament"][number] = f"{place}{comma}{rest}"
    return found


class Outputs:
    """What comes out of a run, described for its manifest.

    Args:
        again: The comparison that the run is made for: then nothing is kept.
    """

    def __init__(self, again: Rerun | None) -> None:
        self.again = again
        self.found: list[dict[str, Json]] = []
        """The descriptions, once all is written."""

    @contextlib.contextmanager
    def opened(self, form: str, options: Options) -> Iterator[Output]:
        """Open the output itself.

        Args:
            form: One of `common.FORMATS`.
            options: The verb's options.

        Yields:
            The output.
        """
        with self._target(form, options) as out:
            stream = _digested(out.stream)
            yield Output(out.path, cast("BinaryIO", stream))
            stream.flush()
        # Only now an output that replaces another one has its name.
        made = {"name": options["output"], "format": form}
        self.found.append(made | _description(out.path, form, stream))

    @contextlib.contextmanager
    def _target(self, form: str, options: Options) -> Iterator[Output]:
        if self.again is None:
            with opened_output(form, options) as out:
                yield out
        elif form in common.BINARY_FORMATS:
            # What a capture holds is told by its end, which tells it of the whole file.
            path = f"{self.again.folder}/again.kcap"
            with output.opened(path) as stream:
                yield Output(path, stream)
        else:
            yield Output("-", _nowhere())

    @contextlib.contextmanager
    def printed(self, stream: BinaryIO) -> Iterator[BinaryIO]:
        """Describe what filaments print.

        Args:
            stream: Where they do.

        Yields:
            What they are to be given.
        """
        stream = stream if self.again is None else _nowhere()
        digested = _digested(stream)
        yield cast("BinaryIO", digested)
        digested.flush()
        entry = {"name": "-", "format": "filament"}
        self.found.append(entry | {"bytes": digested.size, "sha256": digested.sha256})


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


def _nowhere() -> BinaryIO:
    return cast("BinaryIO", io.BufferedWriter(_Nowhere()))


class _Nowhere(io.RawIOBase):
    """Takes everything, keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401  (a buffer, as io declares it)
        return memoryview(data).nbytes


def _plain(value: Json) -> Json:
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return [_plain(each) for each in value]
    return value if isinstance(value, (bool, int, float)) else str(value)


def _sizes(outputs: list[dict[str, Json]]) -> str:
    sizes = [each["bytes"] for each in outputs if "bytes" in each]
    return f"{sum(sizes):,} bytes" if sizes else common.counted(len(outputs), "output")
