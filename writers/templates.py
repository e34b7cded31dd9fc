"""Templates over the columns of events: text of one's own, a routing key, the body of a request.

A template is jinja2's language without what reaches out of it (`kcap.writers.sandbox`). Names are
columns (``{{ event }}``, ``{{ arg_pathname }}``), and ``params`` holds an event's arguments by
the names that its source gave them, numbers as text where they have a name. Templates that only put
columns between text cost no Python time for each event; others are worked out once for each
combination of values that events have in the columns that the template names.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap.errors import KcapError, LimitError, MissingExtraError
from kcap.model import catalogue, decode, distinct, text
from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass
from kcap.model.kinds import DECIDING, Kinds
from kcap.model.side import SourceInfo
from kcap.writers import arguments, blocks, fragments, rendered
from kcap.writers.fragments import Texts

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes

PLACEHOLDER: Final = "-"
"""What stands for a value that an event does not have."""

TEMPLATE_CHARS: Final = 1 << 16
"""Longest template."""

_PARAMS: Final = "params"
_RANGE: Final = "range"
_MISSING: Final = object()
_FAILURES: Final = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError),
    *(TypeError, ValueError),
)
"""What values that a template was not made for make Python raise, beside jinja2's own errors."""


class _Cell(NamedTuple):
    """A column that stands in a template as it is, or through one filter."""

    name: str
    """The column, or the argument."""
    is_param: bool
    render: Callable[[Column], Texts] | None
    """None for `rendered.plain_texts`."""
    missing: str
    line: int


class Params(Mapping[str, Any]):
    """The arguments of an event by name; the case of a name does not count.

    Args:
        found: Name to value.
    """

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._found = found

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        if name in self._found:
            return self._found[name]
        folded = name.casefold()
        for known, value in self._found.items():
            if known.casefold() == folded:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class Template:
    """Text out of events.

    Args:
        source: The template.
        name: What it is called in errors: a file, an option.
        missing: What stands for a value that an event does not have; None where that is an error.
        printable: Escape in every value what could steer a terminal.

    Raises:
        KcapError: The template can't be understood, or asks for what there is not.
        MissingExtraError: jinja2 is not installed.

    Example:
        >>> template = Template("{{ event }} by {{ process_name }}", name="--template")
        >>> template.texts(batch)
        ['execve by bash', 'openat by -']
    """

    def __init__(
        self,
        source: str,
        *,
        name: str,
        missing: str | None = PLACEHOLDER,
        printable: bool = False,
    ) -> None:
        self.name = name
        self._missing = missing
        self._printable = printable
        self._families: dict[str, str] = {}
        tree, self._compiled = _compiled(source, name, missing, printable=printable)
        self._names, self._params = _asked(tree, name)
        self._parts = _parts(tree, missing)

    def columns(self, batch: Batch) -> set[str]:
        """The columns that the template looks at.

        Args:
            batch: Events.

        Returns:
            Those of the batch.
        """
        found = {n for name in self._names for n in arguments.spellings(batch, name)}
        return found | {a.column for a in self._arguments(batch)}

    def texts(self, batch: Batch) -> list[str]:
        """The text of each event.

        Args:
            batch: Events, and what the stream says before them.

        Returns:
            One text an event.

        Raises:
            KcapError: The template can't be worked out for an event, or its text is too long.
        """
        return [made for piece in self.pieces(batch) for made in piece.to_pylist()]

    def pieces(self, batch: Batch) -> Iterator[pa.Array]:
        """The text of each event, in arrays of moderate size.

        Args:
            batch: Events, and what the stream says before them.

        Yields:
            Arrays of utf8, all together one text an event.

        Raises:
            KcapError: The template can't be worked out for an event, or its text is too long.
        """
        for side in batch.before:
            if isinstance(side, SourceInfo):
                self._families[side.id] = side.collector
        for block in blocks.of(batch.select(self.columns(batch) | DECIDING)):
            kinds = Kinds(block, self._families)
            if self._parts is None:
                yield self._worked_out(block, kinds)
            else:
                yield self._put_together(self._parts, block, kinds)

    def _arguments(self, batch: Batch) -> list[arguments.Argument]:
        """The arguments that the template may look at."""
        if self._params is not None and not self._params:
            return []
        found = arguments.found(batch)
        if self._params is None:
            return found
        return [a for a in found if a.name.casefold() in self._params]

    def _put_together(self, parts: Sequence[str | _Cell], block: Batch, kinds: Kinds) -> pa.Array:
        """Texts of a template that only names columns."""
        made: list[pa.Array | pa.Scalar] = []
        for part in parts:
            if isinstance(part, str):
                made.append(pa.scalar(part, pa.utf8()))
            else:
                made.append(self._cells(part, block, kinds))
        if not any(isinstance(part, _Cell) for part in parts):
            made.append(pa.array([""] * block.rows, pa.utf8()))
        texts = fragments.joined(*made)
        longest = pc.max(pc.utf8_length(texts)).as_py()
        try:
            rendered.check_chars(longest or 0)
        except LimitError as e:
            e.file = self.name
            raise
        return texts

    def _cells(self, cell: _Cell, block: Batch, kinds: Kinds) -> pa.Array:
        """The text that each event has in the place of a column."""
        if cell.is_param:
            folded = cell.name.casefold()
            found = [a for a in self._arguments(block) if a.name.casefold() == folded]
            wanted = [(a.column, a.name) for a in found]
        else:
            wanted = [(column, "") for column in arguments.spellings(block, cell.name)]
        pool, first = [pa.array([cell.missing], pa.utf8())], 1
        ids = np.zeros(block.rows, np.int32)
        for name, argument in wanted:
            column = block.columns[name]
            texts = self._shown(cell, argument, column, kinds)
            codes = np.arange(len(column), dtype=np.int32) if texts.codes is None else texts.codes
            rows = slice(None) if column.rows is None else column.rows
            ids[rows] = np.where(ids[rows] == 0, codes + np.int32(first), ids[rows])
            pool.append(texts.entries)
            first += len(texts.entries)
        if self._missing is None and not ids.all():
            what = f"an event has no {text.printable(cell.name)}"
            raise KcapError(what, file=self.name, line=cell.line)
        return pa.concat_arrays(pool).take(pa.array(ids))

    def _shown(self, cell: _Cell, argument: str, column: Column, kinds: Kinds) -> Texts:
        try:
            if cell.render is not None:
                return cell.render(column)
        except (TypeError, ValueError) as e:
            raise KcapError(str(e), file=self.name, line=cell.line) from e
        plain = rendered.plain_texts(column, printable=self._printable)
        if not argument or column.cls not in arguments.INTEGERS:
            return plain
        return arguments.texts(argument, kinds, column)

    def _worked_out(self, block: Batch, kinds: Kinds) -> pa.Array:
        """Texts of any other template: one for each combination of values."""
        names = sorted(self._names)
        factors = [_factor(block, name) for name in names]
        found = self._arguments(block)
        factors += [_argument_factor(block, a, kinds) for a in found]
        if not factors:
            return pa.array([self._one({})] * block.rows, pa.utf8())
        groups = distinct.grouped(
            [codes for _, codes in factors], [len(values) for values, _ in factors]
        )
        # Python time for each combination, not for each event; where every event has its own, as
        # with a time in the template, that is 10 to 20 us each.
        columns = [
            [values[code] for code in codes.tolist()]
            for (values, _), codes in zip(factors, groups.codes, strict=True)
        ]
        texts = []
        for row in zip(*columns, strict=True):
            given = {n: v for n, v in zip(names, row, strict=False) if v is not _MISSING}
            if self._params is None or self._params:
                given[_PARAMS] = Params(_by_name(found, row[len(names) :]))
            texts.append(self._one(given))
        return pa.array(texts, pa.utf8()).take(pa.array(groups.rows))

    def _one(self, given: dict[str, Any]) -> str:
        """The text for some values."""
        from jinja2 import TemplateError

        from kcap.writers import sandbox

        given[sandbox.BUDGET] = [sandbox.STEPS]
        given.setdefault(_RANGE, sandbox.range_of)
        chars, parts = 0, []
        try:
            for part in self._compiled.root_render_func(self._compiled.new_context(given, True)):
                chars += len(part)
                rendered.check_chars(chars)
                parts.append(part)
        except KcapError as e:
            e.file, e.line = self.name, _line_of(self._compiled, e)
            raise
        except (TemplateError, *_FAILURES) as e:
            what = f"the template can't be worked out: {text.printable(str(e))}"
            raise KcapError(what, file=self.name, line=_line_of(self._compiled, e)) from e
        return "".join(parts)


def _by_name(found: Sequence[arguments.Argument], values: Sequence[Any]) -> dict[str, Any]:
    """Arguments by name, the first of several."""
    out: dict[str, Any] = {}
    for argument, value in zip(found, values, strict=True):
        if value is not _MISSING:
            out.setdefault(argument.name, value)
    return out


def _compiled(
    source: str, name: str, missing: str | None, *, printable: bool
) -> tuple[nodes.Template, jinja2.Template]:
    """A template as a tree, and ready for use.

    Raises:
        KcapError: It can't be understood.
        MissingExtraError: jinja2 is not installed.
    """
    if len(source) > TEMPLATE_CHARS:
        what, most = f"a template of {len(source):,} characters", f"at most {TEMPLATE_CHARS:,}"
        raise LimitError(what, file=name, expected=most)
    try:
        from jinja2 import TemplateSyntaxError
    except ImportError as e:
        raise MissingExtraError(
            "jinja2 is not installed", file=name, hint="pip install 'kcap[templates]'"
        ) from e
    from kcap.writers import sandbox

    environment = sandbox.Environment(missing, printable=printable)
    try:
        # Parsed twice: the limits change the tree, and what is asked for is read from it as it was.
        tree = environment.parse(source)
        _check_times(tree, name)
        made = environment.from_string(sandbox.bounded(environment.parse(source)))
    except TemplateSyntaxError as e:
        what = f"the template can't be understood: {text.printable(e.message or str(e))}"
        raise KcapError(what, file=name, line=e.lineno) from e
    except (SyntaxError, RecursionError, MemoryError, *_FAILURES) as e:
        what = f"the template can't be understood: {text.printable(str(e))}"
        raise KcapError(what, file=name) from e
    return tree, made


def _check_times(tree: nodes.Template, name: str) -> None:
    """See that times are given forms that there are.

    Raises:
        KcapError: One is not.
    """
    from jinja2 import nodes as parts

    for node in tree.find_all(parts.Filter):
        pattern = node.args[0] if node.name == "utc" and node.args else None
        if isinstance(pattern, parts.Const) and isinstance(pattern.value, str):
            try:
                rendered.utc_of(0, pattern.value)
            except ValueError as e:
                raise KcapError(str(e), file=name, line=node.lineno) from e


def _asked(tree: nodes.Template, name: str) -> tuple[set[str], set[str] | None]:
    """The columns that a template names, and the arguments: None for all of them.

    Raises:
        KcapError: There is no such column.
    """
    from jinja2 import meta
    from jinja2 import nodes as parts

    names = meta.find_undeclared_variables(tree) - {_RANGE}
    for unknown in sorted(n for n in names if n != _PARAMS and not arguments.is_column(n)):
        line = next(n.lineno for n in tree.find_all(parts.Name) if n.name == unknown)
        near = difflib.get_close_matches(unknown, [*catalogue.envelope(), _PARAMS], 1)
        raise KcapError(
            f"the template names {text.printable(unknown)}, which is no column",
            file=name,
            line=line,
            expected="a column, as exe or arg_NAME, or params.NAME",
            hint=f"did you mean {near[0]}?" if near else "'kcap docs columns' lists them",
        )
    uses = sum(n.name == _PARAMS for n in tree.find_all(parts.Name))
    single = [found for n in tree.find_all(parts.Expr) if (found := _param(n)) is not None]
    params = None if uses > len(single) else {found.casefold() for found in single}
    return names - {_PARAMS}, params


def _param(node: nodes.Expr) -> str | None:
    """The argument in ``params.NAME`` or ``params["NAME"]``."""
    from jinja2 import nodes as parts

    from kcap.writers import sandbox

    if not isinstance(node, (parts.Getattr, parts.Getitem)):
        return None
    if not isinstance(node.node, parts.Name) or node.node.name != _PARAMS:
        return None
    if isinstance(node, parts.Getattr):
        return None if node.attr in sandbox.OF_MAPPINGS else node.attr
    key = node.arg
    return key.value if isinstance(key, parts.Const) and isinstance(key.value, str) else None


def _parts(tree: nodes.Template, missing: str | None) -> list[str | _Cell] | None:
    """A template that only puts columns between text, taken apart; None for any other."""
    from jinja2 import nodes as parts

    out: list[str | _Cell] = []
    for node in tree.body:
        if not isinstance(node, parts.Output):
            return None
        for item in node.nodes:
            part = item.data if isinstance(item, parts.TemplateData) else _cell(item, missing)
            if part is None:
                return None
            out.append(part)
    return out


def _cell(node: nodes.Expr, missing: str | None) -> _Cell | None:
    """A column, as it is or through a filter that whole columns have."""
    from jinja2 import nodes as parts

    render: Callable[[Column], Texts] | None = None
    shown, line = missing or "", node.lineno
    if isinstance(node, parts.Filter) and isinstance(node.node, parts.Name):
        given = [arg.value for arg in node.args if isinstance(arg, parts.Const)]
        if node.kwargs or len(given) < len(node.args) or node.node.name == _PARAMS:
            return None
        if node.name == "utc" and all(isinstance(value, str) for value in given[:1]):
            pattern = given[0] if given else None

            def render(column: Column) -> Texts:
                return rendered.column_utc(column, pattern)

        elif node.name in {"json", "tojson"} and not given:
            render, shown = rendered.column_json, "null"
        else:
            return None
        node = node.node
    if isinstance(node, parts.Name) and node.name not in {_PARAMS, _RANGE}:
        return _Cell(node.name, False, render, shown, line)
    name = _param(node)
    return None if name is None else _Cell(name, True, None, shown, line)


_Factor = tuple[Sequence[Any], npt.NDArray[np.int64]]
"""Different values, the last of which is `_MISSING`, and which of them each event has."""


def _factor(block: Batch, name: str) -> _Factor:
    """A column as values of a template."""
    values: list[Any] = []
    codes = np.full(block.rows, -1, np.int64)
    for spelled in arguments.spellings(block, name):
        column = block.columns[spelled]
        if not len(column):
            continue
        found = distinct.distinct(column)
        rows = slice(None) if column.rows is None else column.rows
        codes[rows] = np.where(codes[rows] < 0, found.codes + len(values), codes[rows])
        entries = found.entries.to_pylist()
        if column.cls is TypeClass.JSON:
            entries = [rendered.document(entry) for entry in entries]
        values += entries
    return _complete(values, codes)


def _argument_factor(block: Batch, argument: arguments.Argument, kinds: Kinds) -> _Factor:
    """An argument as values of a template: numbers that have a name there are text."""
    column = block.columns[argument.column]
    if not len(column) or column.cls not in arguments.INTEGERS:
        return _factor(block.select([argument.column]), argument.column)
    decoders, places = kinds.decoders(argument.name, column)
    decoders = [decoder if decode.known(decoder) else "" for decoder in decoders]
    found = distinct.distinct(column)
    pairs = distinct.grouped([places, found.codes], [len(decoders), len(found.entries)])
    entries = found.entries.to_pylist()
    values = [
        decode.text_of(decoders[place], entries[code]) if decoders[place] else entries[code]
        for place, code in zip(*(codes.tolist() for codes in pairs.codes), strict=True)
    ]
    codes = np.full(block.rows, -1, np.int64)
    codes[slice(None) if column.rows is None else column.rows] = pairs.rows
    return _complete(values, codes)


def _complete(values: list[Any], codes: npt.NDArray[np.int64]) -> _Factor:
    codes[codes < 0] = len(values)
    return [*values, _MISSING], codes


def _line_of(template: jinja2.Template, error: BaseException) -> int | None:
    """The line of a template that raised an error."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return line
