"""Every clause of the specification that says *must* is cited by a test.

A test cites clauses in its docstring, as ``spec 6.4`` or ``Clauses 8.1, 8.2``; a vector in its JSON
file, which tests/test_vectors.py holds against what kcap does.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SPEC = TESTS.parent / "spec" / "kcap.md"
VECTORS = TESTS.parent / "fixtures" / "vectors"
CITED = re.compile(r"\b(?:spec|[Cc]lauses?) ((?:\d+(?:\.\d+)?)(?:, \d+(?:\.\d+)?)*)")
CLAUSE = re.compile(r"^(?:## )?(\d+(?:\.\d+)?)[. ]", re.MULTILINE)


def clauses(text: str) -> dict[str, str]:
    """The clauses by number; what stands before the first one of a chapter is the chapter's."""
    parts = CLAUSE.split(text)
    found: dict[str, str] = {}
    for number, content in zip(parts[1::2], parts[2::2], strict=True):
        assert number not in found, number
        found[number] = content
    return found


def with_must(text: str) -> set[str]:
    """The clauses that say must."""
    return {number for number, content in clauses(text).items() if re.search(r"\bmust\b", content)}


def cited_by(docstrings: Iterable[str]) -> Iterator[str]:
    """The clauses that some docstrings cite."""
    for text in docstrings:
        for match in CITED.finditer(text):
            yield from match[1].split(", ")


def docstrings(paths: Iterable[Path]) -> Iterator[str]:
    """The docstrings of the tests in some files."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield ast.get_docstring(node) or ""


def by_tests() -> set[str]:
    """The clauses that tests cite."""
    return set(cited_by(docstrings(TESTS.glob("test_*.py"))))


def by_vectors() -> set[str]:
    """The clauses that vectors cite."""
    return {
        number
        for path in VECTORS.rglob("*.json")
        for number in json.loads(path.read_text("utf-8"))["clauses"]
    }


def test_every_must_is_cited() -> None:
    """No rule of the specification is without a test that names it."""
    assert with_must(SPEC.read_text("utf-8")) - by_tests() - by_vectors() == set()


def test_what_is_cited_is_there() -> None:
    """No test and no vector cites a clause that the specification does not have."""
    known = set(clauses(SPEC.read_text("utf-8")))

    assert (by_tests() | by_vectors()) - known == set()


def test_a_must_that_nobody_cites_is_seen() -> None:
    """Negative control: a new rule, a test without its number, and a word that only looks alike."""
    text = SPEC.read_text("utf-8")
    more = text.replace("\n## 12. ", "\n11.1 A reader must sing.\n\n## 12. ")

    assert with_must(more) - with_must(text) == {"11.1"}
    assert with_must(re.sub(r"\bmust\b", "mustard", text)) == set()
    assert len(with_must(text)) > 40


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A thing holds (spec 6.4).", ["6.4"]),
        ("Of both (spec 8.1, 8.2).", ["8.1", "8.2"]),
        ("Of a chapter: spec 4", ["4"]),
        ("Clauses 1.3, 7.4: they agree.", ["1.3", "7.4"]),
        ("Special 6.4, respec 7, section 6.4", []),
    ],
)
def test_how_clauses_are_cited(text: str, found: list[str]) -> None:
    """What counts as a citation, and what does not."""
    assert list(cited_by([text])) == found
