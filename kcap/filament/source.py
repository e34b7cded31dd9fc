"""Finding filaments and reading what their files say, without running them."""

from __future__ import annotations

import ast
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Final, NamedTuple

from kcap import trust
from kcap.errors import KcapError
from kcap.filament.limits import SOURCE_BYTES

SHIPPED: Final = Path(__file__).parent / "shipped"
"""The folder of the filaments that come with kcap."""

HANDLERS: Final = {"on_next_kevent": 1, "on_next_event": 3}
"""The functions that get events, and the era of Fibratus whose word that is."""

_CALLED: Final = (*HANDLERS, "on_init", "on_stop", "on_interval")
_MODULES_MAX: Final = 1000
_VERSION_DIGITS: Final = 12

OURS: Final = "utils.dotdict"
"""A module that filaments import and that comes with kcap."""


@dataclass(frozen=True, slots=True)
class Module:
    """A module beside a filament that it imports."""

    name: str
    path: str
    text: str
    package: bool = False


@dataclass(frozen=True, slots=True)
class Filament:
    """A filament that can be started."""

    name: str
    path: Path
    text: str
    """Its source."""
    doc: str
    """Its docstring."""
    handler: str
    """One of `HANDLERS`."""
    functions: frozenset[str]
    """The functions of it that are called."""
    imports: tuple[str, ...]
    """What it and the modules beside it import from elsewhere."""
    modules: tuple[Module, ...] = ()
    arguments: tuple[str, ...] = ()
    """Behind its name, in ``sys.argv``."""
    names: frozenset[str] = field(default=frozenset(), repr=False)
    """All names in it and in the modules beside it."""

    @property
    def version(self) -> str:
        """Changes with its source: the beginning of a digest of that."""
        digest = hashlib.sha256()
        for text in (self.text, *(f"{module.name}\0{module.text}" for module in self.modules)):
            digest.update(text.encode() + b"\0" * bool(self.modules))
        return digest.hexdigest()[:_VERSION_DIGITS]

    @property
    def era(self) -> int:
        """The era of Fibratus in whose words it is written."""
        return HANDLERS[self.handler]

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.doc.strip().partition("\n")[0].strip()


def find(spec: str, folders: Sequence[str | os.PathLike[str]] = ()) -> Filament:
    """The filament that a user names.

    Args:
        spec: ``NAME`` or ``PATH.py``, arguments behind it after commas.
        folders: Where filaments are looked for before those that come with kcap.

    Returns:
        The filament.

    Raises:
        KcapError: There is none, or its file can't be one.
    """
    name, *arguments = spec.split(",")
    if not name:
        raise KcapError(
            "a filament without a name", expected="NAME or PATH.py, arguments after a comma"
        )
    if name.endswith(".py"):
        return read(Path(name), arguments)
    for folder in (*map(_folder, folders), SHIPPED):
        path = folder / f"{name}.py"
        if os.sep not in name and path.is_file():
            return read(path, arguments)
    known = [path.stem for path in files(folders)]
    near = get_close_matches(name, known, 1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise KcapError(
        f"there is no filament {name!r}",
        expected="a .py file, or one of those that 'kcap list filaments' names",
        hint=f"{meant}kcap list filaments",
    )


def files(folders: Sequence[str | os.PathLike[str]] = ()) -> list[Path]:
    """The files that may be filaments.

    Args:
        folders: As for `find`; in the first of two folders with a file of one name is the one
            that counts.

    Returns:
        Their paths, by name.

    Raises:
        KcapError: A folder is none.
    """
    found: dict[str, Path] = {}
    for folder in (*map(_folder, folders), SHIPPED):
        for path in folder.glob("*.py"):
            if not path.name.startswith("_"):
                found.setdefault(path.stem, path)
    return [found[name] for name in sorted(found)]


class Listed(NamedTuple):
    """A filament in a list."""

    name: str
    path: Path
    summary: str
    error: str | None = None
    """Why it can't be started."""


def listed(folders: Sequence[str | os.PathLike[str]] = ()) -> list[Listed]:
    """The filaments that there are; none is run.

    Args:
        folders: As for `files`.

    Returns:
        They, by name; files without a function that gets events are none.

    Raises:
        KcapError: A folder is none.
    """
    found = []
    for path in files(folders):
        try:
            if _handler(_tree(path, _text(path))) is not None:
                found.append(Listed(path.stem, path, read(path).summary))
        except KcapError as e:
            found.append(Listed(path.stem, path, "", str(e).removeprefix(f"{path}: ")))
    return found


def _folder(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise KcapError("no such folder", file=str(folder), expected="a folder with filaments")
    return path


def read(path: Path, arguments: Sequence[str] = ()) -> Filament:
    """Read a filament's file.

    Args:
        path: The file.
        arguments: What ``sys.argv`` has behind the filament's name.

    Returns:
        The filament.

    Raises:
        KcapError: It can't be read, root must not trust it, or it can't be a filament.
    """
    text = _text(path)
    tree = _tree(path, text)
    handler = _handler(tree)
    if handler is None:
        raise KcapError(
            "a filament has a function that gets the events",
            file=str(path),
            expected="on_next_kevent(kevent) or on_next_event(event)",
        )
    defined = _defined(tree)
    if (node := defined[handler]) is not None:
        _check_handler(path, node)
    doc = ast.get_docstring(tree)
    if not doc or not doc.strip():
        raise KcapError(
            "a filament says what it does", file=str(path), line=1, expected="a docstring"
        )
    modules: dict[str, Module] = {}
    imports: set[str] = set()
    names: set[str] = set()
    _follow(path.parent, Module("", str(path), text), tree, modules, imports, names)
    return Filament(
        name=path.stem,
        path=path,
        text=text,
        doc=doc,
        handler=handler,
        functions=frozenset(defined.keys() & {*_CALLED}),
        imports=tuple(sorted(n for n in imports if n != "utils" and not n.startswith(OURS))),
        modules=tuple(modules[name] for name in sorted(modules)),
        arguments=tuple(arguments),
        names=frozenset(names),
    )


def _defined(tree: ast.Module) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef | None]:
    """The names that a module defines: functions, and others as None."""
    found: dict[str, ast.FunctionDef | ast.AsyncFunctionDef | None] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: None for target in node.targets if isinstance(target, ast.Name)}
    return found


def _handler(tree: ast.Module) -> str | None:
    defined = _defined(tree)
    return next((name for name in HANDLERS if name in defined), None)


def _check_handler(path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    given = node.args
    count = len(given.posonlyargs) + len(given.args)
    more = given.vararg or given.kwarg or given.kwonlyargs
    if isinstance(node, ast.AsyncFunctionDef) or count != 1 or more:
        raise KcapError(
            f"{node.name} gets one event",
            file=str(path),
            line=node.lineno,
            expected=f"a plain function with exactly one argument: def {node.name}(event)",
        )


def _text(path: Path) -> str:
    """The text of a file, which root must be able to trust."""
    try:
        if not path.is_file():
            raise KcapError("no such file", file=str(path), expected="a filament: a .py file")
        trust.check(path)
        with path.open("rb") as file:
            data = file.read(SOURCE_BYTES + 1)
        if len(data) > SOURCE_BYTES:
            raise KcapError(
                "too long for a filament",
                file=str(path),
                expected=f"at most {SOURCE_BYTES:,} bytes",
            )
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise KcapError(
            "no UTF-8", file=str(path), offset=e.start, expected="Python source in UTF-8"
        ) from e
    except OSError as e:
        raise KcapError(f"can't be read: {e.strerror}", file=str(path)) from e


def _tree(path: Path, text: str) -> ast.Module:
    try:
        return ast.parse(text, str(path))
    except SyntaxError as e:
        raise KcapError(f"no Python: {e.msg}", file=str(path), line=e.lineno) from e
    except (ValueError, RecursionError, MemoryError) as e:
        raise KcapError(f"no Python: {e}", file=str(path)) from e


def _follow(
    folder: Path,
    module: Module,
    tree: ast.Module,
    modules: dict[str, Module],
    imports: set[str],
    names: set[str],
) -> None:
    """Collect what a module imports: files of the folder with their text, others by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
    for name in _imported(tree, module):
        beside = _beside(folder, name) if name not in modules else None
        if beside is None:
            if name not in modules and name.partition(".")[0] not in modules:
                imports.add(name)
            continue
        if len(modules) >= _MODULES_MAX:
            raise KcapError(
                "imports too much", file=module.path, expected=f"at most {_MODULES_MAX} modules"
            )
        text = _text(beside)
        found = Module(name, str(beside), text, beside.name == "__init__.py")
        modules[name] = found
        _follow(folder, found, _tree(beside, text), modules, imports, names)


def _imported(tree: ast.Module, module: Module) -> Iterator[str]:
    """The modules that a module imports, each after the packages that it lies in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_packages(alias.name)
        elif isinstance(node, ast.ImportFrom) and (base := _base(node, module)):
            yield from _with_packages(base)
            # What is taken from a package may be a module of it.
            yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _base(node: ast.ImportFrom, module: Module) -> str:
    """The full name of what something is imported from; empty where there is no such package."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".") if module.name else []
    up = node.level - module.package
    return (
        ".".join([*parts[: len(parts) - up], *filter(None, [node.module])])
        if up <= len(parts)
        else ""
    )


def _with_packages(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[: n + 1]) for n in range(len(parts)))


def _beside(folder: Path, name: str) -> Path | None:
    """The file of a module in the filament's folder; Python's own modules come first."""
    if name.partition(".")[0] in sys.stdlib_module_names:
        return None
    place = folder.joinpath(*name.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None
