"""The page that the figures stand on."""

from __future__ import annotations

from workloads import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"


def put(program: str, text: str) -> None:
    """Replace the figures of a program on the page.

    Args:
        program: Its file's name.
        text: The figures, Markdown.
    """
    begin, end = f"<!-- figures: tests/bench/{program} --write -->", f"<!-- end of {program} -->"
    page = PAGE.read_text("utf-8")
    before, rest = page.split(begin)
    _, after = rest.split(end)
    PAGE.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", "utf-8")
