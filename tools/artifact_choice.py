"""Which artifacts of a capture a verb is about."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, TypedDict, TypeVar, cast

import click

from kcap.errors import KcapError
from kcap.tools import common
from kcap.tools.spool import Input

if TYPE_CHECKING:
    from kcap.filter import Filter
    from kcap.format.blobs import Manifest
    from kcap.format.reader import CaptureReader
    from kcap.model.batch import Batch
    from kcap.model.side import Loss
    from kcap.model.stream import Source
    from kcap.replay.artifacts import Artifacts

_F = TypeVar("_F", bound=Callable[..., Any])

HASH_CHARS: Final = 4
"""Fewest characters of a hash that name an artifact."""

_HOST: Final = "host"
_DIGITS: Final = frozenset("0123456789abcdef")


def choice_options(function: _F) -> _F:
    """``--kind``, ``--process``, ``--hash``, ``--path``, ``--container``, ``-w``."""
    function = common.lenient_option(common.where_option(function))
    several: Any = {"multiple": True}
    for option in (
        click.option(
            "--container", **several, metavar="ID", help="Of this container; host: of none."
        ),
        click.option("--path", **several, metavar="GLOB", help="Of this path: '/tmp/*', '*/sshd'."),
        click.option(
            "--hash",
            "digest",
            **several,
            metavar="HEX",
            help="Whose SHA-256, MD5 or SHA-1 begins so, with 4 digits or more.",
        ),
        click.option(
            "--process",
            **several,
            metavar="NAME|PID",
            help="Of processes of this name ('nginx*'), of this executable or number.",
        ),
        click.option(
            "--kind", **several, metavar="KIND", help="exec, write, read, mem, module, bpf …"
        ),
    ):
        function = option(function)
    return function


class Options(TypedDict):
    """The options that `choice_options` declares."""

    where: Filter | None
    lenient: bool
    kind: tuple[str, ...]
    process: tuple[str, ...]
    digest: tuple[str, ...]
    path: tuple[str, ...]
    container: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """What the options say; of one option's values any will do, of all options each must."""

    ids: tuple[str, ...] = ()
    kind: tuple[str, ...] = ()
    process: tuple[str, ...] = ()
    digest: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    container: tuple[str, ...] = ()
    events: Artifacts | None = None
    """Those of the events that are wanted; None for all."""

    def __post_init__(self) -> None:
        """Refuse what can't name an artifact.

        Raises:
            click.UsageError: A hash is none.
        """
        for digest in (*self.ids, *self.digest):
            digits = digest.removeprefix("m") if digest in self.ids else digest
            if len(digest) < HASH_CHARS or not set(digits.lower()) <= _DIGITS:
                raise click.UsageError(
                    f"{digest!r} is no hash: give {HASH_CHARS} hex digits of it or more, "
                    "as 'kcap artifacts list' prints them"
                )

    def __call__(self, manifest: Manifest) -> bool:
        """Whether an artifact is wanted.

        Args:
            manifest: The artifact.

        Returns:
            True where it is.
        """
        from kcap.writers.artifacts_names import artifact_id, kind_of

        details = manifest.details
        tests = (
            (self.ids, lambda start: artifact_id(manifest).startswith(start.lower())),
            (self.kind, lambda kind: kind_of(manifest) == kind),
            (self.digest, lambda start: _has_hash(manifest, start.lower())),
            (self.path, lambda glob: fnmatchcase(manifest.path or "", glob)),
            (self.process, lambda name: _is_of(details, name)),
            (self.container, lambda name: _is_in(details, name)),
        )
        if not all(any(map(test, values)) for values, test in tests if values):
            return False
        return self.events is None or self.events.includes(manifest)


def _has_hash(manifest: Manifest, start: str) -> bool:
    hashes = (manifest.sha256, manifest.details.get("md5"), manifest.details.get("sha1"))
    return any(isinstance(h, str) and h.startswith(start) for h in hashes)


def _is_of(details: Any, name: str) -> bool:  # noqa: ANN401  (JSON)
    if name.isdecimal() and details.get("pid") == int(name):
        return True
    exe = details.get("exe")
    names = [details.get("process_name"), exe]
    if isinstance(exe, str):
        names.append(exe.replace("\\", "/").rsplit("/", 1)[-1])
    return any(isinstance(n, str) and fnmatchcase(n, name) for n in names)


def _is_in(details: Any, name: str) -> bool:  # noqa: ANN401
    found = details.get("container_id") or _HOST
    return isinstance(found, str) and (found == name if name == _HOST else found.startswith(name))


class Asked(NamedTuple):
    """A capture, and which of its artifacts are wanted."""

    reader: CaptureReader
    """A file, which can be read at any place."""
    choice: Choice
    losses: list[Loss]
    """What was lost while they were found."""

    def manifests(self) -> Iterator[Manifest]:
        """The artifacts that are wanted.

        Yields:
            Them, in file order.
        """
        return filter(self.choice, self.reader.manifests())


@contextlib.contextmanager
def opened_artifacts(name: str, options: Options, ids: tuple[str, ...] = ()) -> Iterator[Asked]:
    """Open an input for its artifacts.

    A foreign input, and a pipe, becomes a capture in a temporary file first.

    Args:
        name: As the user named it.
        options: Which ones are wanted.
        ids: Their names; any where there is none.

    Yields:
        What was asked for.

    Raises:
        click.UsageError: The options can't be understood.
        KcapError: The input can't be read.
    """
    from kcap.format.reader import CaptureReader

    choice = Choice(
        ids,
        options["kind"],
        options["process"],
        options["digest"],
        options["path"],
        options["container"],
    )
    with contextlib.ExitStack() as stack:
        source = Input(name, stack).open(lenient=options["lenient"])
        stack.callback(source.close)
        losses: list[Loss] = []
        if not isinstance(source, CaptureReader):
            file = cast("BinaryIO", stack.enter_context(tempfile.TemporaryFile()))
            losses += _kept(source, file)
            file.seek(0)
            source = CaptureReader(file, name)
        events, lost = _events_of(source, options["where"])
        yield Asked(source, replace(choice, events=events), losses + lost)


def _kept(source: Source, file: BinaryIO) -> list[Loss]:
    """Write an input into a file as a capture."""
    from kcap.format.writer import CaptureWriter
    from kcap.replay.artifacts import Artifacts, Carrying
    from kcap.replay.pipeline import Pipeline

    sink = Carrying(CaptureWriter(file), Artifacts([source], unnamed=True))
    return Pipeline(source, [sink]).run().losses


def _events_of(reader: CaptureReader, where: Filter | None) -> tuple[Artifacts | None, list[Loss]]:
    """The artifacts of some events.

    Args:
        reader: The capture.
        where: Of which events; None for all.

    Returns:
        What tells whether an artifact is one of them, and what was lost of the events.
    """
    if where is None:
        return None, []
    from kcap.replay.artifacts import Artifacts
    from kcap.replay.chosen import chosen
    from kcap.replay.pipeline import Pipeline

    found = Artifacts([reader], unnamed=False)
    read, stages = chosen(reader, columns=("origin", "ord"), where=where, storing=True)
    summary = Pipeline(read, [_Following(found)], stages=stages).run()
    return found, summary.losses


class _Following:
    """A sink that notes whose artifacts are wanted."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        self._artifacts.follow(batch)

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`."""


def the_one(asked: Asked, name: str) -> Manifest:
    """The artifact that is meant, where it must be one content.

    Args:
        asked: What was asked for.
        name: The capture as the user named it.

    Returns:
        The first one of that content.

    Raises:
        KcapError: There is none, or there are several contents.
    """
    found = by_content(asked.manifests())
    if len(found) == 1:
        return next(iter(found.values()))[0]
    if not found:
        raise no_such(name)
    shown = ", ".join(i[:12] for i in list(found)[:5]) + (" …" if len(found) > 5 else "")  # noqa: PLR2004
    raise KcapError(
        f"{len(found)} artifacts of different content are meant: {shown}",
        file=name,
        expected="one",
        hint=f"'kcap artifacts list {name}' prints the short name of each",
    )


def no_such(name: str) -> KcapError:
    """The error that no artifact is meant.

    Args:
        name: The capture as the user named it.

    Returns:
        The error.
    """
    return KcapError(
        "no artifact of the capture is meant",
        file=name,
        hint=f"'kcap artifacts list {name}' says which there are",
    )


def by_content(manifests: Iterator[Manifest]) -> dict[str, Sequence[Manifest]]:
    """Artifacts by their content.

    Args:
        manifests: The artifacts.

    Returns:
        Name of the content to those that have it, in their order.
    """
    from kcap.writers.artifacts_names import artifact_id

    found: dict[str, list[Manifest]] = {}
    for manifest in manifests:
        found.setdefault(artifact_id(manifest), []).append(manifest)
    return cast("dict[str, Sequence[Manifest]]", found)
