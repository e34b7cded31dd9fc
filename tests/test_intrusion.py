"""The recorded intrusion: Tracee's first signatures see it, in order, and the same ever again."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from cli_support import run, shell
from intrusion import KEPT

from kcap.detect.engine import Detections
from kcap.detect.rule import Rule
from kcap.format.reader import CaptureReader
from kcap.model.batch import EMPTY, Batch
from kcap.readers.rules.tracee import signatures
from kcap.replay.pipeline import Pipeline
from kcap.writers.jsonl import JsonLines

PATH: Final = Path(__file__).resolve().parent.parent / "fixtures" / "intrusion.kcap"
CONTAINER: Final = "c0ffee00" * 8
ASKED: Final = [f"TRC-{number}" for number in (1, 2, 3, 4, 5, 7, 9, 10, 12, 14)]
IN_CONTAINERS: Final = {"TRC-9", "TRC-11", "TRC-13", "TRC-14"}

ALERTS: Final = """\
TRC-1 intrusion map[fd:0 ip:127.0.0.1 port:55745]
TRC-1 intrusion map[fd:1 ip:127.0.0.1 port:55745]
TRC-2 intrusion map[]
TRC-3 intrusion map[]
TRC-3 intrusion map[]
TRC-3 intrusion map[file flags:O_WRONLY|O_LARGEFILE file path:/proc/22680/mem]
TRC-4 intrusion map[]
TRC-5 memfd:payload map[]
TRC-6 intrusion map[]
TRC-6 intrusion map[pathname:/tmp/intrusion/rootkit.ko]
TRC-7 intrusion map[]
TRC-9 intrusion map[file path:/tmp/intrusion/root/app]
TRC-10 intrusion map[]
TRC-7 intrusion map[]
TRC-13 app map[ip:10.96.0.1]
TRC-9 intrusion map[file path:/tmp/dropped]
TRC-12 nginx map[]
TRC-11 intrusion map[mounted device:/dev/kcap0]
TRC-14 intrusion map[File Flags:O_WRONLY|O_CREAT|O_TRUNC|O_LARGEFILE File Path:/tmp/group/release_agent]
"""  # noqa: E501


class _Without:
    """The fixture without some of its events; with what stands before events apart from them."""

    def __init__(self, ords: Collection[int], *, apart: bool) -> None:
        self._stream = PATH.open("rb")
        self._reader = CaptureReader(self._stream, str(PATH))
        self.info = self._reader.info
        self._ords, self._apart = list(ords), apart

    def batches(self) -> Iterator[Batch]:
        """See `kcap.model.stream.Source`."""
        for batch in self._reader.batches():
            kept = ~np.isin(batch.numpy("ord", -1), self._ords)
            if self._apart:
                yield EMPTY.with_before(batch.before)
                batch = batch.with_before(())  # noqa: PLW2901
            yield batch.take(np.flatnonzero(kept).astype(np.int32))

    def close(self) -> None:
        """See `kcap.model.stream.Source`."""
        self._stream.close()


def found(*words: str) -> list[dict[str, Any]]:
    """The alerts as JSON."""
    result = run("detect", "--format", "jsonl", *words, PATH)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def text(*words: str | Path) -> str:
    """The alerts as tracee-rules prints them."""
    result = run("detect", *(words or (PATH,)))
    assert result.exit_code == 0, result.output
    return result.stdout


def first_of(rules: Iterable[str]) -> list[str]:
    """Rules in the order in which they come first."""
    return list(dict.fromkeys(rules))


def test_what_is_raised() -> None:
    """Each alert, with its data, in the order of the steps."""
    blocks = [block.splitlines() for block in text().split("*** Detection ***\n")[1:]]
    said = [dict(line.split(": ", 1) for line in block if line) for block in blocks]

    assert [one["Hostname"] for one in said] == ["example"] * len(said)
    assert [f"{one['Signature ID']} {one['Command']} {one['Data']}" for one in said] == (
        ALERTS.splitlines()
    )


def test_in_order() -> None:
    """The ten that are asked for come first in this order."""
    names = [one["arg_rule"] for one in found()]

    assert [name for name in first_of(names) if name in ASKED] == ASKED


def test_the_same_from_a_pipe_in_a_replay_and_in_parts(tmp_path: Path) -> None:
    """The text of `detect` of a file is that of standard input, of `replay`, and of both halves."""
    whole = text()
    middle = str(found()[9]["ts"])
    early = found("--end", middle)
    late = found("--start", middle)
    piped = shell(f"kcap detect - < {PATH}", tmp_path)
    replayed = run("replay", "--signatures", "seed", PATH)

    assert (piped.returncode, piped.stdout.decode()) == (0, whole)
    assert (replayed.exit_code, replayed.stdout) == (0, whole)
    assert early
    assert late
    assert early + late == found()


def test_containers_only() -> None:
    """What means something in a container alone is raised of nothing outside."""
    alerts = [one for one in found() if one["arg_rule"] in IN_CONTAINERS]

    assert {one["arg_rule"] for one in alerts} == IN_CONTAINERS
    assert {one.get("container_id") for one in alerts} == {CONTAINER}


@pytest.mark.parametrize(
    ("rule", "path"),
    [("TRC-9", "/tmp/intrusion/dropped"), ("TRC-14", "/tmp/intrusion/group/release_agent")],
)
def test_the_same_steps_on_the_host(rule: str, path: str) -> None:
    """They were done there, and the rule without its origin sees them: only that keeps it quiet."""
    [one] = signatures("seed", {rule})
    anywhere = [each._replace(filter=each.anywhere or each.filter) for each in one.selectors]

    assert path not in raised([one])
    assert path in raised([replace(one, selectors=tuple(anywhere))])


def raised(rules: list[Rule], without: Collection[int] = (), *, apart: bool = False) -> str:
    """The alerts of rules, in JSON."""
    out = io.BytesIO()
    with closing(_Without(without, apart=apart)) as source:
        Pipeline(source, [JsonLines(out)], taps=[Detections(rules)]).run()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    return "\n".join(json.dumps(one) for one in lines if one["kind"] == "alert")


def test_no_alert_without_its_event() -> None:
    """Each alert names the events behind it: without the last one there are just the others."""
    rules = signatures("seed")
    everything = found()
    for every in (1, 2, 3):
        causes = {one["arg_causes"][-1] for one in everything[::every]}
        ords = {int(cause.rpartition(":")[2]) for cause in causes}
        left = [json.loads(line)["arg_alert_id"] for line in raised(rules, ords).splitlines()]

        assert left == [e["arg_alert_id"] for e in everything if causes.isdisjoint(e["arg_causes"])]


def test_later_signatures() -> None:
    """Those that look for the same steps are raised, too; the other later ones are not."""
    later = (101, 102, 103, 104, 105, 107, 108, 1010, 1013, 1014, 1016, 1018, 1022, 1024, 1025)

    assert {one["arg_rule"] for one in found("--signatures", "all")} == {
        f"TRC-{number}" for number in (*range(1, 15), *later)
    }


def test_artifacts_of_its_own() -> None:
    """What it ran, wrote, loaded and unpacked is there, each with its event, nothing else is."""
    size = 71_320
    done = run("artifacts", "list", "--json", PATH)
    listed = [json.loads(line) for line in done.stdout.splitlines()]

    assert sorted((one["kind"], one["path"], one["size"]) for one in listed if one["path"]) == [
        ("exec", "/app", size),
        ("exec", "/memfd:payload", size),
        ("exec", "/tmp/intrusion/intrusion", size),
        ("exec", "/tmp/intrusion/nginx", size),
        ("module", "/tmp/intrusion/rootkit.ko", 14),
        ("write", "/tmp/intrusion/dropped", 64),
        ("write", "/tmp/intrusion/group/release_agent", 5),
        ("write", "/tmp/intrusion/nginx", size),
        ("write", "/tmp/intrusion/rootkit.ko", 14),
    ]
    assert [one["kind"] for one in listed if not one["path"]] == ["mem", "module"]
    assert len({one["sha256"] for one in listed if one["size"] == size}) == 1
    ords = {
        json.loads(row)["ord"] for row in run("cat", "--format", "jsonl", PATH).stdout.splitlines()
    }
    assert {one["ord"] for one in listed} <= ords


def test_sources_before_any_event() -> None:
    """A source may be told of in a batch without events, as live: views of its events are seen."""
    told = raised(signatures("seed"), apart=True)

    assert told == raised(signatures("seed"))
    assert "TRC-14" in told


def test_nothing_of_the_host_it_ran_on() -> None:
    """The fixture is small, and tells of its processes alone: no users, mounts or variables."""
    [host] = json.loads(run("info", "--json", "--host", PATH).stdout)["hosts"]

    assert PATH.stat().st_size < 300_000
    assert (host["host"], host["tables"]) == ("example", {})
    assert set(host["details"]) <= set(KEPT)
    rows = run("cat", "--format", "jsonl", PATH).stdout.splitlines()
    assert len(rows) == 152
    values = [json.loads(row) for row in rows]
    assert {row["host"] for row in values} == {"example"}
    assert {name for row in values for name in row.get("arg_env", ())} == {
        "KUBERNETES_SERVICE_HOST=10.96.0.1",
        "KUBERNETES_SERVICE_PORT=443",
        "LD_PRELOAD=/tmp/intrusion/hook.so",
    }
