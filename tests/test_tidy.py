"""The rules of the house, checked on the source itself; each with a snippet that breaks it."""

from __future__ import annotations

import ast
import csv
import functools
import hashlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
AREAS = ("kcap", "readers", "writers", "tools")
LINKS = {"kcap/readers", "kcap/tools", "kcap/writers"}
GENERATED = {"tests/kaitai/kcap.py"}
"""Made from spec/kcap.ksy by tests/kaitai/compile.js: nobody edits or reads it line by line."""
FILE_LINES = 500
FUNCTION_LINES = 70

MAY_IMPORT = {
    "kcap": {"kcap"},
    "readers": {"kcap", "readers"},
    "writers": {"kcap", "writers"},
    "tools": {"kcap", "readers", "writers", "tools"},
    "tests": {"kcap", "readers", "writers", "tools"},
    "bundle": {"kcap", "tools"},
}

PIPELINE = "kcap/replay/pipeline.py"
BATCHES_CALLERS: set[str] = set()
"""Besides the pipeline; at most one, and with its reason."""

# Nothing that runs in a replay may depend on when, where or how often it runs.
BANNED = re.compile(
    r"(time\.(time|time_ns|monotonic|monotonic_ns|perf_counter|perf_counter_ns|localtime|sleep)"
    r"|(datetime\.)?(datetime|date)\.(now|utcnow|today)|os\.(urandom|environ|getenv|uname)"
    r"|(random|secrets|socket|locale|uuid|getpass|platform|tempfile|urllib(?!\.parse)|http)(\..*)?|hash)"
)
LIVE = ("readers/live/",)
"""Recorders' sources see this host and this moment: that is what they are for."""
SPEAKERS = {
    f"writers/sinks/{name}.py"
    for name in ("courier", "deadline", "fluent", "http", "journal", "server", "syslog")
}
"""What runs in couriers: it waits for servers, and changes nothing of what they get."""
SPEAKING = re.compile(r"(socket|time)(\..*)?")

ALLOWED = {
    ("kcap/format/writer.py", "os.urandom"): "a file's id must be unknown to what it records",
    ("writers/sinks/fluent.py", "os.urandom"): "a login proves nothing with a known salt",
    ("kcap/guard/child.py", "os.environ"): "Windows starts nothing without SYSTEMROOT",
    ("kcap/guard/seccomp.py", "os.uname"): "system calls have other numbers on other machines",
    ("kcap/trust.py", "os.environ"): "variables that bring code from elsewhere are refused",
    ("writers/sinks/delivery.py", "tempfile"): "a spool that nobody named has a name of its own",
    ("writers/sinks/delivery.py", "tempfile.mkstemp"): "the same",
}
"""(file, name) to the reason why a banned name may stand there."""

WORDS = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")

Rule = Callable[[str, str, ast.Module], Iterator[str]]


def in_areas(path: str) -> bool:
    """Whether a file is part of the package."""
    return path.startswith(tuple(f"{area}/" for area in AREAS))


def file_length(path: str, text: str, _: ast.Module) -> Iterator[str]:
    """A file has fewer than 500 lines."""
    lines = text.count("\n")
    if lines >= FILE_LINES:
        yield f"{path}: {lines} lines"


@functools.lru_cache(maxsize=1)
def nodes(tree: ast.AST) -> list[ast.AST]:
    """All nodes of a tree; rules look at one file after the other."""
    return list(ast.walk(tree))


def function_length(path: str, _: str, tree: ast.Module) -> Iterator[str]:
    """A function has fewer than 70 lines."""
    for node in nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines >= FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name} has {lines} lines"


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a module imports."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}"


def imports_one_way(path: str, _: str, tree: ast.Module) -> Iterator[str]:
    """Imports go from tools to readers and writers, from those to kcap, and by full names."""
    area = path.split("/", 1)[0]
    for line, name in imported(tree):
        first, second = (*name.split("."), "")[:2]
        if first in AREAS and first != "kcap":
            yield f"{path}:{line}: {name}: its name is kcap.{name}"
        elif not first:
            yield f"{path}:{line}: {name}: imports are absolute"
        elif first == "kcap":
            target = second if second in AREAS else "kcap"
            if target not in MAY_IMPORT[area]:
                yield f"{path}:{line}: {area} imports {name}"


def one_loop(path: str, _: str, tree: ast.Module) -> Iterator[str]:
    """Only the pipeline takes batches from a source; a source may hand on another's."""
    if path in {PIPELINE, *BATCHES_CALLERS} or not in_areas(path):
        return
    within_source = {
        node
        for a_class in nodes(tree)
        if isinstance(a_class, ast.ClassDef)
        for method in a_class.body
        if isinstance(method, ast.FunctionDef) and method.name == "batches"
        for node in ast.walk(method)
    }
    for node in nodes(tree):
        if not isinstance(node, ast.Attribute):
            continue
        if node.attr == "batches" and node not in within_source:
            yield f"{path}:{node.lineno}: takes batches beside {PIPELINE}"


def public_names_explained(path: str, _: str, tree: ast.Module) -> Iterator[str]:
    """Every public module, class, function and method has a docstring."""
    if not in_areas(path):
        return
    if ast.get_docstring(tree) is None:
        yield f"{path}: no docstring"
    todo: list[ast.AST] = [tree]
    while todo:
        for node in ast.iter_child_nodes(todo.pop()):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                overloads = any("overload" in ast.dump(d) for d in node.decorator_list)
                if not node.name.startswith("_") and not overloads:
                    if ast.get_docstring(node) is None:
                        yield f"{path}:{node.lineno}: {node.name} has no docstring"
                    if isinstance(node, ast.ClassDef):
                        todo.append(node)


def dotted(node: ast.AST) -> str:
    """``a.b.c`` as it stands there; empty for what is no such chain of names."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join((node.id, *reversed(parts))) if isinstance(node, ast.Name) else ""


def banned_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of everything that would make a replay depend on its surroundings."""
    for line, name in imported(tree):
        if BANNED.fullmatch(name):
            yield line, name
    for node in nodes(tree):
        called = node.func if isinstance(node, ast.Call) else node
        if isinstance(called, ast.Attribute) or (
            called is not node and isinstance(called, ast.Name)
        ):
            name = dotted(called)
            if BANNED.fullmatch(name):
                yield called.lineno, name


def deterministic(path: str, _: str, tree: ast.Module) -> Iterator[str]:
    """The core, the writers and the readers of files use no clock, chance, network or locale."""
    if not path.startswith(("kcap/", "readers/", "writers/")) or path.startswith(LIVE):
        return
    for line, name in sorted(set(banned_names(tree))):
        if path in SPEAKERS and SPEAKING.fullmatch(name):
            continue
        if (path, name) not in ALLOWED:
            yield f"{path}:{line}: {name}"


def nothing_left_open(path: str, text: str, _: ast.Module) -> Iterator[str]:
    """No file says that something is still to be done."""
    for number, line in enumerate(text.splitlines(), 1):
        if WORDS.search(line):
            yield f"{path}:{number}: {line.strip()}"


RULES: list[Rule] = [
    file_length,
    function_length,
    imports_one_way,
    one_loop,
    public_names_explained,
    deterministic,
    nothing_left_open,
]

LONG_FUNCTION = "def f():\n" + "    a = 1\n" * FUNCTION_LINES
BREAKS: list[tuple[Rule, str, str]] = [
    (file_length, "kcap/a.py", "a = 1\n" * FILE_LINES),
    (function_length, "tests/a.py", LONG_FUNCTION),
    (function_length, "kcap/a.py", "class A:\n    async " + LONG_FUNCTION.replace("    ", " " * 8)),
    (imports_one_way, "kcap/a.py", "from kcap.readers import tracee"),
    (imports_one_way, "kcap/a.py", "def f():\n    from kcap import tools"),
    (imports_one_way, "readers/a.py", "import kcap.writers.jsonl"),
    (imports_one_way, "writers/a.py", "from kcap import readers"),
    (imports_one_way, "writers/a.py", "from kcap.tools.cli import main"),
    (imports_one_way, "tools/a.py", "import readers"),
    (imports_one_way, "tools/a.py", "from writers.jsonl import JsonLines"),
    (imports_one_way, "readers/live/a.py", "from .. import tracee"),
    (one_loop, "tools/a.py", "for batch in source.batches():\n    print(batch)"),
    (one_loop, "kcap/replay/other.py", "def run(source):\n    yield from source.batches()"),
    (one_loop, "writers/a.py", "take = source.batches"),
    (one_loop, "readers/a.py", "def batches(source):\n    yield from source.batches()"),
    (public_names_explained, "kcap/a.py", "a = 1"),
    (public_names_explained, "kcap/a.py", '"""A."""\ndef f(): pass'),
    (
        public_names_explained,
        "kcap/a.py",
        '"""A."""\nclass A:\n    """A."""\n    def f(self): pass',
    ),
    (deterministic, "kcap/a.py", "import time\nnow = time.time()"),
    (deterministic, "kcap/a.py", "from time import time_ns"),
    (deterministic, "writers/a.py", "import datetime\nnow = datetime.datetime.now()"),
    (deterministic, "readers/a.py", "import os\na = os.urandom(16)"),
    (deterministic, "readers/a.py", "import os\na = os.environ['TZ']"),
    (deterministic, "kcap/a.py", "from uuid import uuid4"),
    (deterministic, "kcap/a.py", "import random"),
    (deterministic, "kcap/a.py", "import socket"),
    (deterministic, "kcap/a.py", "import locale"),
    (deterministic, "writers/sinks/render.py", "import time\nnow = time.monotonic()"),
    (deterministic, "writers/sinks/courier.py", "import random"),
    (deterministic, "writers/a.py", "import urllib.request"),
    (deterministic, "kcap/a.py", "key = hash('a')"),
    (nothing_left_open, "kcap/a.py", "a = 1  # TO" + "DO: more"),
]
KEEPS: list[tuple[Rule, str, str]] = [
    (imports_one_way, "tools/a.py", "from kcap.readers import tracee\nfrom kcap.model import text"),
    (imports_one_way, "kcap/a.py", "import json\nfrom kcap.model.toolset import readers_of"),
    (one_loop, PIPELINE, "for batch in source.batches():\n    print(batch)"),
    (
        one_loop,
        "readers/a.py",
        "class A:\n    def batches(self):\n        yield from self.b.batches()",
    ),
    (deterministic, "readers/live/a.py", "import socket"),
    (deterministic, "writers/sinks/courier.py", "import time\nnow = time.monotonic()"),
    (deterministic, "writers/a.py", "from urllib.parse import quote"),
    (deterministic, "tools/a.py", "import time\nnow = time.time()"),
    (deterministic, "kcap/a.py", "def f(batch):\n    return batch.id, hashlib.sha256(batch.time)"),
]


def sources() -> list[str]:
    """Every Python file of the project, by its path from the top."""
    folders = [ROOT / folder for folder in MAY_IMPORT]
    found = [p.relative_to(ROOT) for folder in folders for p in folder.rglob("*.py")]
    apart = (*LINKS, *GENERATED)
    return sorted(p.as_posix() for p in found if not p.as_posix().startswith(apart))


@functools.cache
def findings() -> dict[Rule, list[str]]:
    """What each rule finds in the sources; one file at a time, as to parse them takes longest."""
    found: dict[Rule, list[str]] = {rule: [] for rule in RULES}
    for path in sources():
        text = (ROOT / path).read_text("utf-8")
        tree = ast.parse(text)
        for rule in RULES:
            found[rule] += rule(path, text, tree)
    return found


def git(*words: str) -> list[str]:
    """The lines of a git command; the test skips where this is no checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    trust = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }
    command = ["git", "-C", str(ROOT), *words, "-z"]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, **trust})
    return [line for line in done.stdout.decode().split("\0") if line]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house_rule(rule: Rule) -> None:
    """Every source file keeps the rule."""
    assert findings()[rule] == []


@pytest.mark.parametrize(("rule", "path", "text"), BREAKS)
def test_a_broken_rule_is_noticed(rule: Rule, path: str, text: str) -> None:
    """Negative control: the snippet breaks the rule."""
    assert list(rule(path, text, ast.parse(text)))


@pytest.mark.parametrize(("rule", "path", "text"), KEEPS)
def test_a_kept_rule_is_quiet(rule: Rule, path: str, text: str) -> None:
    """The snippet keeps the rule."""
    assert list(rule(path, text, ast.parse(text))) == []


def test_the_rules_saw_the_project() -> None:
    """Negative control: the files that the rules walk are the project's, each once."""
    paths = sources()

    assert {"kcap/errors.py", "readers/__init__.py", "tests/test_tidy.py"} <= set(paths)
    assert len({(ROOT / path).resolve() for path in paths}) == len(paths)


def test_exceptions_are_still_needed() -> None:
    """An allowance that nothing uses is taken away; the pipeline has at most one fellow."""
    used = {
        (path, name)
        for path in {path for path, _ in ALLOWED}
        for _, name in banned_names(ast.parse((ROOT / path).read_text("utf-8")))
    }

    assert set(ALLOWED) <= used
    assert len(BATCHES_CALLERS) <= 1


def test_packages_are_listed() -> None:
    """Every package, and every file in one that is no module, is in pyproject's lists."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    packages = {"kcap.spec": ROOT / "spec"}  # data alone: the specification for `kcap docs`
    for path in sources():
        folder = Path(path).parent
        if in_areas(path):
            assert (ROOT / folder / "__init__.py").exists(), f"{folder} is no package"
            name = ".".join(folder.parts)
            packages[name if folder.parts[0] == "kcap" else f"kcap.{name}"] = ROOT / folder

    assert sorted(packages) == table["packages"]
    for name, folder in packages.items():
        patterns = table["package-data"].get(name, [])
        for file in folder.iterdir():
            if file.is_file() and file.suffix not in {".py", ".pyc"} and not file.is_symlink():
                assert any(fnmatch(file.name, pattern) for pattern in patterns), file


def test_sources_are_committed() -> None:
    """No source file lies about that a clone would miss."""
    suffixes = (".py", ".tsv", ".toml", ".md", ".kcap", ".sh", ".c")

    assert [
        p for p in git("ls-files", "--others", "--exclude-standard") if p.endswith(suffixes)
    ] == []


def test_links_are_the_three() -> None:
    """Only kcap/readers, kcap/writers and kcap/tools are links, each to its folder."""
    links = {
        line.split("\t")[1] for line in git("ls-files", "--stage") if line.startswith("120000")
    }

    assert links == LINKS
    for link in LINKS:
        if (ROOT / link).is_symlink():
            assert (ROOT / link).readlink().as_posix() == f"../{Path(link).name}"


def test_nothing_foreign_is_copied_in(data: Callable[[str], Path]) -> None:
    """No file of the project is one of the foreign samples."""
    with data("MANIFEST.tsv").open(encoding="utf-8", newline="") as file:
        known = {row["sha256"]: row["file"] for row in csv.DictReader(file, delimiter="\t")}
    paths = [path for path in git("ls-files") if (ROOT / path).is_file()]
    digests = {path: hashlib.sha256((ROOT / path).read_bytes()).hexdigest() for path in paths}

    assert len(known) > 1
    assert {path: known[digest] for path, digest in digests.items() if digest in known} == {}


def test_no_module_is_loaded_twice() -> None:
    """Nothing imports readers, writers or tools by their bare names: two classes of one name."""
    bare = {name.split(".")[0] for name in sys.modules} & {"readers", "writers", "tools"}

    assert bare == set()
