"""``kcap hunt``: look for indicators of compromise in captures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, Final, TypedDict, Unpack

import click

from kcap.errors import BadInputError, KcapError, OutputError
from kcap.tools import common, logs, output
from kcap.tools.cli import Verb
from kcap.tools.inputs import passed_over
from kcap.tools.play import naming, opened_source

if TYPE_CHECKING:
    from kcap.format.blobs import Manifest
    from kcap.hunt.indicators import Indicator
    from kcap.hunt.search import Searcher
    from kcap.model.side import Loss
    from kcap.model.stream import Source
    from kcap.tools.hits import Report

EXIT_FOUND: Final = 4

_BAD_SHOWN: Final = 5


class _Options(TypedDict):
    """What of the hits is wanted, and how."""

    start: int | None
    end: int | None
    limit: int | None
    summary: bool
    as_json: bool


@click.command(
    "hunt",
    cls=Verb,
    examples=(
        "kcap hunt --ioc indicators.txt host.kcap",
        "kcap hunt --ioc hashes.csv --ioc misp-event.json --summary *.kcap",
        "kcap hunt --ioc domains.txt --json -n 100 capture.scap | jq .value",
        "kcap hunt --ioc bundle.json --exit-code *.kcap || echo found",
    ),
)
@click.argument("captures", nargs=-1, required=True, metavar="CAPTURE...")
@click.option(
    "--ioc",
    "files",
    multiple=True,
    required=True,
    metavar="FILE",
    help="File of indicators; may be repeated.",
)
@click.option("--exact", is_flag=True, help="Only values that are an indicator as a whole.")
@click.option("--start", type=common.EventTime(), help="Only events at or after this time.")
@click.option("--end", type=common.EventTime(), help="Only events before this time.")
@click.option("-n", "--limit", type=click.IntRange(0), help="Stop after N hits.")
@click.option("--summary", is_flag=True, help="Count by indicator and capture.")
@click.option("--json", "as_json", is_flag=True, help="An object a line.")
@click.option("--exit-code", is_flag=True, help="Leave with 4 where something was found.")
@click.option("-o", "--output", "target", default="-", help="Output file; - is standard output.")
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@common.lenient_option
@click.pass_context
def command(
    ctx: click.Context,
    captures: tuple[str, ...],
    files: tuple[str, ...],
    exact: bool,
    exit_code: bool,
    target: str,
    force: bool,
    lenient: bool,
    **options: Unpack[_Options],
) -> None:
    """Look for indicators of compromise in CAPTURES.

    A file of indicators has one a line, with a comment behind '#': hashes (MD5, SHA-1, SHA-256),
    addresses and networks, domains, URLs (their host counts), paths; what is defanged
    (hxxp://evil[.]example) is understood, and type:value where a value alone is ambiguous. Or it
    is CSV or TSV with a heading, JSON lines, a STIX 2 bundle or a MISP event.

    A hash is found in upper and lower case, also within text (SHA256=...).

    An address is found as a value and within text, as in 10.0.0.5:4711->192.0.2.7:443; a network
    where one of its addresses is.

    A domain is found as a name and as the end of one: evil.example in https://a.evil.example/,
    not in notevil.example.

    A path is a whole value, or an item of a list; * and ? may stand in it, and case means nothing
    in Windows' paths. A file name (path:run.sh, evil.exe) is the last part of a value.

    Looked into are all columns of text, lists and JSON; what was there before the first event:
    processes, descriptors, handles; and artifacts, by hash and path. With --start or --end events
    alone. --exact wants values that are an indicator as a whole, as given or in lower or upper
    case: of a chunk whose index says that it has none, nothing is read.

    With --exit-code, 4 means that something was found, 0 that nothing is there, and 3 that
    nothing was found but some of the input could not be looked into.
    """
    from kcap.hunt.matcher import Matcher
    from kcap.hunt.search import Searcher
    from kcap.replay.pipeline import EXIT_DONE, EXIT_LOSSY

    if options["summary"] and options["limit"] is not None:
        raise click.UsageError("--summary counts all hits; leave --limit out")
    indicators, lossy = _indicators(files, lenient=lenient)
    searcher = Searcher(Matcher(indicators, exact=exact))
    with (
        naming(target),
        output.opened(target, force=force, binary=False, whole=True) as stream,
    ):
        report = _report(searcher, stream, options)
        interval = options["start"], options["end"]
        hunt = _Hunt(searcher, report, *interval, lenient=lenient, many=len(captures) > 1)
        for name in captures:
            if not report.full:
                hunt.search(name)
                stream.flush()
        hunt.check()
        report.finish()
        stream.flush()
    _say_total(report, len(indicators), len(captures))
    if exit_code and report.hits:
        ctx.exit(EXIT_FOUND)
    ctx.exit(EXIT_LOSSY if lossy or hunt.lossy else EXIT_DONE)


def _report(searcher: Searcher, stream: BinaryIO, options: _Options) -> Report:
    from kcap.tools.hits import Report

    return Report(
        searcher,
        lambda line: stream.write(f"{line}\n".encode()),
        as_json=options["as_json"],
        summary=options["summary"],
        limit=options["limit"],
        states=options["start"] is None and options["end"] is None,
    )


def _say_total(report: Report, indicators: int, captures: int) -> None:
    known = f"{len(report.found):,} of {common.counted(indicators, 'indicator')}"
    where = f"{len(report.captures):,} of {common.counted(captures, 'capture')}"
    logs.tell(f"kcap: {common.counted(report.hits, 'hit')}: {known}, in {where}")


def _indicators(files: Sequence[str], *, lenient: bool) -> tuple[list[Indicator], bool]:
    """Read the files of indicators.

    Args:
        files: Their names.
        lenient: Pass over what is no indicator.

    Returns:
        The indicators, and whether something was passed over.

    Raises:
        KcapError: A file can't be read, or has no indicator, or something else in it.
    """
    from kcap.hunt.feeds import Feeds
    from kcap.model.text import printable
    from kcap.opening import open_stream

    feeds = Feeds(lenient=lenient)
    for name in files:
        if name == "-":
            raise click.UsageError("--ioc needs a file: standard input is for a capture")
        with open_stream(name) as stream:
            feeds.read(stream, name)
    for error in feeds.passed_over[:_BAD_SHOWN]:
        logs.tell(f"kcap: passed over: {printable(str(error))}")
    if len(feeds.passed_over) > _BAD_SHOWN:
        logs.tell(f"kcap: and {len(feeds.passed_over) - _BAD_SHOWN:,} more")
    if feeds.others:
        named = ", ".join(f"{count:,} {kind}" for kind, count in feeds.others.most_common())
        logs.tell(f"kcap: not looked for: {printable(named)}")
    if not feeds.indicators:
        hint = "kcap hunt --help says what a file of indicators may hold"
        raise BadInputError("there is no indicator in it", file=", ".join(files), hint=hint)
    return feeds.indicators, bool(feeds.passed_over)


class _Hunt:
    """One search after another, all with the same indicators.

    Args:
        searcher: Looks for them.
        report: Says what is found.
        start_ns: Only events at or after this time.
        end_ns: Only events before this time.
        lenient: Go on past bad input.
        many: There are several captures: one that can't be read may be passed over.
    """

    def __init__(
        self,
        searcher: Searcher,
        report: Report,
        start_ns: int | None,
        end_ns: int | None,
        *,
        lenient: bool,
        many: bool,
    ) -> None:
        self.lossy = False
        """Something could not be looked into."""
        self._searcher = searcher
        self._report = report
        self._interval = start_ns, end_ns
        self._lenient = lenient
        self._many = many
        self._kept: list[Manifest] = []
        self._read = 0
        self._failure: KcapError | None = None

    def search(self, name: str) -> None:
        """Search a capture.

        Args:
            name: As the user named it.

        Raises:
            KcapError: It can't be read, and is not to be passed over.
        """
        self._report.capture = name
        self._kept.clear()
        try:
            with opened_source(name, lenient=self._lenient) as source:
                losses = self._events(source)
                losses += self._artifacts(source)
        except OutputError:
            raise
        except KcapError as error:
            if not self._lenient or not self._many:
                raise
            self._failure = self._failure or error
            losses = [passed_over(name, error)]
        else:
            self._read += 1
        common.report_losses(losses, name)
        self.lossy = self.lossy or bool(losses)

    def check(self) -> None:
        """Refuse to have searched nothing.

        Raises:
            KcapError: None of the captures could be read.
        """
        if self._failure is not None and not self._read:
            raise self._failure

    def _events(self, source: Source) -> list[Loss]:
        from kcap.format.reader import CaptureReader
        from kcap.hunt.source import Searched
        from kcap.replay.pipeline import Pipeline
        from kcap.replay.stages import TimeRange

        if isinstance(source, CaptureReader):
            if not source.window.seekable:
                source.blobs.passing = self._keep
            source = Searched(source, self._searcher, *self._interval)
        stages = [TimeRange(*self._interval)] if self._interval != (None, None) else []
        report = self._report
        run = Pipeline(source, [report], stages=stages, after_batch=lambda _: report.full)
        return run.run().losses

    def _keep(self, manifest: Manifest) -> None:
        """Keep an artifact of a stream in which something is found, for behind the events."""
        if self._report.holds(manifest):
            self._kept.append(replace(manifest, table=b""))

    def _artifacts(self, source: Source) -> list[Loss]:
        """Look at artifacts, which have no time and are in no interval."""
        from kcap.format.reader import CaptureReader

        if self._interval != (None, None):
            return []
        if not isinstance(source, CaptureReader):
            return self._listed(source)
        manifests = source.manifests() if source.window.seekable else self._kept
        for manifest in manifests:
            if not self._report.full:
                self._report.artifact(manifest)
        return source.blobs.losses

    def _listed(self, source: Source) -> list[Loss]:
        """Look at the artifacts of a foreign source; nobody has hashed them yet."""
        from kcap.model.side import Loss
        from kcap.replay.artifacts import described, hashed, listed

        losses = []
        for artifact in listed(source):
            if self._report.full:
                break
            try:
                manifest = hashed(artifact) if self._report.hashes else described(artifact)
            except OSError as e:
                manifest = described(artifact)
                why = f"{manifest.title}: reading it failed: {e.strerror or e}"
                losses.append(Loss("damaged", None, why))
            self._report.artifact(manifest)
        return losses
