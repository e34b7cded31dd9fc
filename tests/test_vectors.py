"""fixtures/vectors: what each capture's JSON file says is what comes out of it."""

from __future__ import annotations

import io
import json
import re
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import vectors
from cli_support import run
from support import opened, read

from kcap.errors import KcapError
from kcap.format import zstd
from kcap.format.recover import recover
from kcap.format.verify import verify

NAMES = sorted(
    p.relative_to(vectors.FOLDER).as_posix()[:-5] for p in vectors.FOLDER.rglob("*.json")
)
MOST_BYTES = 1 << 20


@cache
def expected(name: str) -> dict[str, Any]:
    """What a vector's JSON file says."""
    found: dict[str, Any] = json.loads(path_of(name).with_suffix(".json").read_text("utf-8"))
    return found


def path_of(name: str) -> Path:
    """A vector's capture."""
    return vectors.FOLDER / f"{name}.kcap"


def those(folder: str) -> list[str]:
    """The vectors of a folder."""
    return [name for name in NAMES if name.startswith(f"{folder}/")]


READABLE = [name for name in NAMES if expected(name)["refused"] != "file"]


def digest(batches: list[Any]) -> dict[str, Any]:
    """Count and digest of rows, as a vector has them."""
    lines = [vectors.row_line(row) for row in vectors.rows_of(*batches)]
    return {"count": len(lines), "sha256": vectors.rows_digest(lines)}


def rows_said(name: str, *, pipe: bool = False) -> dict[str, Any]:
    """Count and digest of the rows that a vector must give."""
    said = (expected(name)["stream"] if pipe else None) or expected(name)["rows"]
    return {n: said[n] for n in ("count", "sha256")}


@pytest.mark.parametrize("pipe", [False, True], ids=["file", "pipe"])
@pytest.mark.parametrize("name", READABLE)
def test_rows(name: str, pipe: bool) -> None:
    """Read in order, from a file or a pipe, a vector gives its rows and tells its losses."""
    batches, losses = read(path_of(name).read_bytes(), pipe=pipe)

    assert digest(batches) == rows_said(name, pipe=pipe)
    told = [[loss.kind, loss.count] for loss in losses]
    assert bool(told) == bool(expected(name)["losses"])
    if not pipe:
        assert told == expected(name)["losses"]


@pytest.mark.parametrize("name", READABLE)
def test_rows_by_the_index(name: str) -> None:
    """Read chunk by chunk through the index of the file, a vector gives the same rows."""
    reader = opened(path_of(name).read_bytes())
    index = reader.index()
    assert index is not None
    batches = [
        batch
        for number in range(len(index.table))
        for batch, loss in reader.rescued(number)
        if loss is None
    ]

    assert digest(batches) == rows_said(name)


@pytest.mark.parametrize("name", NAMES)
def test_verbs(name: str, tmp_path: Path) -> None:
    """Every verb ends with the exit code, and a refused file with the error, that are said."""
    path = tmp_path / "vector.kcap"
    path.write_bytes(path_of(name).read_bytes())
    words = {
        "cat": ["cat", path],
        "info": ["info", path],
        "recover": ["recover", path, "-o", tmp_path / "recovered.kcap"],
        "verify": ["verify", path],
    }
    results = {verb: run(*call) for verb, call in words.items()}

    assert {verb: r.exit_code for verb, r in results.items()} == expected(name)["exits"]
    for verb, result in results.items():
        assert result.exception is None or isinstance(result.exception, SystemExit)
        if result.exit_code == 1 and expected(name)["error"] and verb != "recover":
            assert expected(name)["error"] in result.stderr
    if results["recover"].exit_code != 1:
        report = verify(opened((tmp_path / "recovered.kcap").read_bytes()), deep=True)
        assert report.good, report.findings


@pytest.mark.parametrize("name", READABLE)
def test_findings(name: str) -> None:
    """verify has the findings that are said, and none of them goes away with --deep."""
    data = path_of(name).read_bytes()
    plain = [f.what for f in verify(opened(data)).findings]
    deep = [f.what for f in verify(opened(data), deep=True).findings]

    for wanted in expected(name)["findings"]:
        assert any(wanted in what for what in plain), plain
    for wanted in expected(name)["deep_findings"]:
        assert not any(wanted in what for what in plain)
        assert any(wanted in what for what in deep), deep
    assert set(plain) <= set(deep)
    assert bool(plain) == (expected(name)["exits"]["verify"] == 3)


@pytest.mark.parametrize("name", [n for n in READABLE if expected(n)["exits"]["recover"] != 1])
def test_recovered_rows(name: str) -> None:
    """A recovered vector has the rows that a reader gets of the vector itself, at least."""
    out = io.BytesIO()
    recover(io.BytesIO(path_of(name).read_bytes()), out)

    batches, losses = read(out.getvalue())

    assert digest(batches) == rows_said(name)
    assert not losses


@pytest.mark.parametrize("name", [n for n in NAMES if n not in READABLE])
def test_refused_files(name: str) -> None:
    """Of a file that must be refused no row is delivered before the error."""
    rows = 0
    with pytest.raises(KcapError):  # noqa: PT012  (reading is what raises, at some batch)
        for batch in opened(path_of(name).read_bytes()).batches():
            rows += batch.rows
    assert rows == 0


# The files and what makes them


def content(data: bytes) -> Any:
    """What a capture holds, however it is compressed."""
    try:
        reader = opened(data)
    except KcapError as e:
        return str(e)
    totals = dict(reader.footer.totals) if reader.footer else {}
    totals.pop("states", None)
    records = [
        (item.number, item.reason) if hasattr(item, "reason") else item.header[:3]
        for item in reader.scanner().records()
    ]
    try:
        batches = list(reader.batches())
    except KcapError as e:
        return records, totals, e.what
    sides = [side for batch in batches for side in batch.before if not hasattr(side, "reason")]
    return records, totals, digest(batches), repr(sides)


@pytest.fixture(scope="module")
def generated() -> dict[str, vectors.Vector]:
    """What the generator makes now."""
    return vectors.generated()


def test_the_generator_makes_the_committed_files(generated: dict[str, vectors.Vector]) -> None:
    """The same vectors, saying the same, equal in what they hold."""
    assert sorted(generated) == NAMES
    for name, vector in generated.items():
        assert json.loads(vectors.written(vector)) == expected(name), name
        data = path_of(name).read_bytes()
        if vector.data != data:  # another libzstd
            assert content(vector.data) == content(data), name


def test_another_compression_is_no_other_content(generated: dict[str, vectors.Vector]) -> None:
    """The comparison is one of content: another level passes, and another value does not."""
    import vectors_valid

    (wanted,) = [n for n in generated if n.endswith("text-dictionary-plain-wide")]
    with mock.patch.object(zstd.compress, "__defaults__", (19,)):
        (again,) = [v for v in vectors_valid.forms() if wanted.endswith(v.name)]
    data = path_of(wanted).read_bytes()
    other = generated["valid/two-chunks"].data

    assert again.data != data
    assert content(again.data) == content(data)
    assert content(other) != content(data)
    assert content(generated["recoverable/chunk-frame"].data) != content(other)


def test_every_vector_has_both_files() -> None:
    """A capture without expectation, or one without capture, is noticed; all of them are small."""
    captures = {
        p.relative_to(vectors.FOLDER).as_posix()[:-5] for p in vectors.FOLDER.rglob("*.kcap")
    }

    assert captures == set(NAMES)
    assert {name.split("/")[0] for name in NAMES} == set(vectors.FOLDERS)
    assert sum(p.stat().st_size for p in vectors.FOLDER.rglob("*") if p.is_file()) < MOST_BYTES


def test_vectors_say_what_their_folder_says() -> None:
    """Valid ones have no finding; recoverable ones have one; the others refuse something."""
    for name in NAMES:
        said = expected(name)
        assert (said["refused"] is not None) == name.startswith("must_reject/"), name
        if name.startswith("valid/"):
            assert set(said["exits"].values()) == {0}, name
        elif said["refused"] is None or said["refused"] == "record":
            assert said["findings"] or said["deep_findings"], name


def test_vectors_cite_clauses(read_text: Any) -> None:
    """Each vector names the clauses of the specification that it is about."""
    clauses = set(
        re.findall(r"^(?:## )?(\d+(?:\.\d+)?)[. ]", read_text("spec/kcap.md"), re.MULTILINE)
    )

    for name in NAMES:
        assert expected(name)["clauses"], name
        assert set(expected(name)["clauses"]) <= clauses, name


def test_valid_vectors_have_every_form() -> None:
    """Every class, presence and encoding that a small capture can have occurs in one."""
    forms = [tuple(f) for name in those("valid") for f in expected(name)["forms"].values()]
    integers = {f[2] for f in forms if f[0] == 1}
    texts = {f[2] for f in forms if f[0] in (5, 6, 7)}
    plain = {flags | width for flags in (0, 0x10, 0x30) for width in range(5)}
    planes = {flags | 0x40 | width for flags in (0, 0x10, 0x30) for width in (2, 3, 4)}

    assert {f[0] for f in forms} == {1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20}
    assert {f[1] for f in forms} == {0, 1, 2}
    assert integers >= plain | planes
    assert texts == {0, 1, 2, 3}
    assert {f[3] for f in forms if f[0] >= 16} == {1, 2, 3, 4, 5}
