"""Events and filters made at random, of values that could tell two engines apart.

Hypothesis gives the seed alone: it draws a value in the time in which a filter is evaluated.
"""

from __future__ import annotations

import random
from typing import Any

from filter_rows import SOURCE, batch, column
from filter_trees import EDGES

from kcap.filter import Filter, FilterError
from kcap.model import catalogue, naming
from kcap.model.batch import Batch
from kcap.model.classes import I64_MAX, I64_MIN, TypeClass

TEXTS = [
    "",
    "a",
    "A",
    "ab",
    "abc",
    "sh",
    "SH",
    "/usr/bin/sh",
    "/bin/\u212aelvin",
    "kelvin",
    "\u0130stanbul",
    "i\u0307stanbul",
    "\u03c3\u03c2\u03a3",
    "stra\u00dfe",
    "STRASSE",
    "C:\\Windows\\cmd.EXE",
    "c:\\windows\\CMD.exe",
    "a\0b",
    "*",
    "a?c",
    "10.0.0.1",
    "::ffff:10.0.0.1",
    "fe80::1",
    "-1",
    "0",
    "007",
    "O_RDONLY|O_CLOEXEC",
    "e\u0301",
    "\u00e9",
    "\U0001f600",
    "true",
    '{"k": "a", "kb": [1]}',
    "NT AUTHORITY\\SYSTEM",
    "line\nline",
]
FILLERS = [f"h{i:03}/filler/{'ab' * (i % 5)}/{i}s" for i in range(80)]
"""More entries for a dictionary, so that the ways for large ones are taken."""

FLOATS = [0.0, -0.0, 1.5, -1.0, 2.0**53, 2.0**63, 2.0**64, 1e300, float("inf"), float("nan")]
NUMBERS: dict[TypeClass, list[Any]] = {
    TypeClass.I64: [n for n in EDGES if n <= I64_MAX] + [I64_MIN, 1, 2, 0x80000],
    TypeClass.U64: [n for n in EDGES if n > I64_MAX] + [I64_MAX + 2],
    TypeClass.F64: FLOATS,
    TypeClass.BOOL: [True, False],
}
JSON = [
    '{"k":"a","kb":1}',
    '[{"name":"k","v":"A"}]',
    "[]",
    "18446744073709551616",
    '{"a":{"b":"c"}}',
]
POOL: dict[TypeClass, list[Any]] = {
    **NUMBERS,
    TypeClass.STR: TEXTS,
    TypeClass.BIN: [b"", b"a", b"\xff\0", b"\xab\xcd"],
    TypeClass.JSON: JSON,
}
EVENTS = ["openat", "mmap", "connect", "CreateProcess", "CreateFile", "RegSetValue"]
ARGUMENTS = ["v", "flags", "prot", "pathname"]
COLUMNS: dict[str, tuple[TypeClass, list[Any]]] = {
    "event": (TypeClass.STR, EVENTS),
    "category": (TypeClass.STR, ["file", "network", "module", "registry"]),
    "source": (TypeClass.STR, [SOURCE.id, "other"]),
    "kind": (TypeClass.STR, ["event", "state"]),
    "ts": (TypeClass.I64, [0, -1, 1_700_000_000_123_456_789, 86_400 * 10**9 - 1, I64_MIN, I64_MAX]),
    "seq": (TypeClass.I64, NUMBERS[TypeClass.I64]),
    "ord": (TypeClass.I64, [0, 1, 2]),
    "pid": (TypeClass.I64, NUMBERS[TypeClass.I64]),
    "ppid": (TypeClass.I64, NUMBERS[TypeClass.I64]),
    "retval": (TypeClass.I64, NUMBERS[TypeClass.I64]),
    "process_name": (TypeClass.STR, TEXTS),
    "exe": (TypeClass.STR, TEXTS),
    "cmdline": (TypeClass.STR, ["sh -c 'a b'", 'cmd.exe "a b" c', *TEXTS]),
    "user": (TypeClass.STR, TEXTS),
    "state:parent.name": (TypeClass.STR, TEXTS),
    "state:ancestors.name": (TypeClass.LIST, TEXTS),
    "state:ancestors.pid": (TypeClass.LIST_I64, NUMBERS[TypeClass.I64]),
}


def quoted(text: str) -> str:
    """A text as a filter has it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


TEXT_FIELDS = """process_name exe user process_name exe user process_name exe user ps.exe ps.cmdline
    ps.name ps.name
    evt.name evt.category event file.name file.path file.extension ps.parent.name ps.username
    ps.domain evt.date.weekday registry.path"""
NUMBER_FIELDS = (
    "evt.seq pid ppid retval pid evt.pid evt.time.h evt.date.d evt.nparams evt.time.ns ps.ppid"
)
ANY_FIELDS = """args.v args.v args.v args.flags args.prot args.pathname evt.arg[v] evt.arg[flags]
    arg_v arg_pathname args.nothing"""
LIST_FIELDS = """ps.args ps.ancestor arg_v__list arg_v__list_i64 arg_v__list_bool arg_v__list_f64
    ps.envs"""
FIELDS = {
    "text": TEXT_FIELDS.split(),
    "number": NUMBER_FIELDS.split(),
    "any": ANY_FIELDS.split(),
    "list": LIST_FIELDS.split(),
    "ip": ["net.dip", "net.sip"],
}
OTHERS = "b in /filler/ a* *a* * ? *\\cmd.* s? *K* ss O_RDONLY PROT_READ"
PARTS = [*TEXTS, *EVENTS, *OTHERS.split()]
FRACTIONS = [
    "1.5",
    "9007199254740992.0",
    "9007199254740993.0",
    "18446744073709551616.5",
    "-1.0",
    "5s",
]
ADDRESSES = [
    *["10.0.0.1", "10.0.0.0/8", "fe80::1", "fe80::/10", "::ffff:10.0.0.1"],
    *["'10.0.0.1'", "'10.0.0.0/8'"],
]
WORD_OPS = "contains startswith endswith matches fuzzy fuzzynorm"
WORDS = [word for op in WORD_OPS.split() for word in (op, f"i{op}")]
MEMBERS = ["in", "iin", "intersects", "iintersects", "not in", "not iin"]
SIGNS = ["=", "!=", "~=", "<", "<=", ">", ">="]
CALLS = """exists({text}) | {any} exists | regex({text}, '^a', 'b$', '(?i)SH') | arg_v__bool | true
| regex({any}, '[^a-z]') | lower({text}) = {a} | upper({any}) contains {a} | length({any}) >= {n}
| length({text}) < {n} | base({text}) ~= {a} | base({text}, false) = {a} | dir({text}) = dir({any})
| ext({text}) iin ({a}, '.exe') | concat({text}, {a}) startswith {b} | is_abs({text}) | 1 = 1
| replace({text}, {a}, {b}) = {text} | split({text}, {a}) intersects ({b}) | volume({text}) = 'C:'
| count({any}, '*a*', true) > {n} | indexof({text}, {a}) = {n} | substr({text}, {n}, 3) = {a}
| entropy({text}) > 1.5 | md5({text}) = md5({a}) | cidr_contains({any}, '10.0.0.0/8', fe80::/10)
| foreach({any}, $x, $x = {a} or $x icontains {b}) | ltrim({text}, {a}) = rtrim({text}, {b})
| foreach(ps._ancestors, $x, $x.name = {a} and $x.pid > {n}) | ps.ancestor[{n}] = {a}
| ps.envs[k] = {a} | ps.ancestor[any] = {a}
| ps.ancestor[root] = {a} | ps.args[{n}] = {a} | arg_v[k] = {a}
| {any}[{n}] = {a} | pid = ppid | pid < retval
| {a} = {text} | {n} <= pid | ps.ancestor[0].name ~= {a} | ps._ancestors[].pid in ({n})"""
FORMS = [form.strip() for form in CALLS.split("|")]


class Maker:
    """Makes events, and filters that ask for the few values that these have.

    Args:
        seed: Of everything it makes.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        size = self.rng.choice([3, 5, 40])
        self._texts = self.rng.sample(TEXTS, min(size, len(TEXTS)))
        self._numbers = self.rng.sample(EDGES, min(size, len(EDGES)))

    def events(self, count: int) -> Batch:
        """Events with values of every class, in small dictionaries and in large ones."""
        rng = self.rng
        fill = FILLERS if rng.random() < 0.6 else []
        found = {}
        for name, (cls, pool) in COLUMNS.items():
            if rng.random() < 0.9:
                # What the state knows of ancestors may have gaps.
                gaps = name.startswith("state:") and pool is TEXTS
                found[name] = column(cls, self._values(cls, pool, count, gaps=gaps), fill)
        for name in ARGUMENTS:
            # An argument has one class in each row, as in any capture.
            classes = rng.sample(list(TypeClass), rng.choice([1, 1, 2, 3]))
            owner = rng.choices([*classes, *classes, None], k=count)
            base = naming.argument(name)
            for cls in classes:
                values = self._values(cls, POOL[cls.child or cls], count)
                kept = [v if o is cls else None for v, o in zip(values, owner, strict=True)]
                full = naming.column_name(base, cls, catalogue.home(base))
                found[full] = column(cls, kept, fill if cls is TypeClass.STR else ())
        return batch(found, count)

    def _values(
        self, cls: TypeClass, pool: list[Any], count: int, *, gaps: bool = False
    ) -> list[Any]:
        rng = self.rng
        missing = rng.choice([0, 0, 0, 0.2, 0.9])
        some = self._texts if pool is TEXTS else pool
        chosen = [v for v in pool if type(v) is not bool and v in self._numbers]
        some = chosen if chosen and rng.random() < 0.7 else some
        if cls.child is None:
            found = rng.choices(some, k=count)
        else:
            items = [*some, None] if gaps else some
            found = [rng.choices(items, k=rng.randrange(4)) for _ in range(count)]
        return [None if rng.random() < missing else value for value in found]

    def _constant(self, kind: str) -> str:
        rng = self.rng
        if kind in ("any", "list"):
            kind = rng.choice(["text", "text", "number", "number", "ip", "bool"])
        if kind == "text":
            text = rng.choice([*self._texts[:8], rng.choice(PARTS)])
            at = rng.randrange(len(text) + 1)
            # What ends in one text and begins in the next; what is equal but for case.
            across = rng.choice(self._texts)[-1:] + text[:1]
            forms = [text[:at], text[at:], f"*{text[at:]}", f"{text[:at]}*", across]
            return quoted(rng.choice([text, text, *forms, text.lower(), text.upper()]))
        if kind == "number":
            numbers = [*self._numbers, rng.choice([*EDGES, *range(-3, 4), 0x80000])]
            digits = str(rng.choice(numbers))
            return rng.choice([digits, digits, f"'{digits}'", rng.choice(FRACTIONS)])
        return rng.choice(ADDRESSES) if kind == "ip" else rng.choice(["true", "false"])

    def _comparison(self) -> str:
        """An operator between a field and a constant, a list, or another field."""
        rng = self.rng
        kind = rng.choice([*FIELDS, "text", "text", "text"])
        left = rng.choice(FIELDS[kind])
        form = rng.choice(["sign", "sign", "word", "word", "member", "member of field", "field"])
        if form == "sign":
            return f"{left} {rng.choice(SIGNS)} {self._constant(kind)}"
        if form in ("word", "member"):
            items = [self._constant(kind) for _ in range(rng.randrange(1, 4))]
            op = rng.choice(WORDS if form == "word" else MEMBERS)
            return f"{left} {op} ({', '.join(items)})"
        if form == "member of field":
            return f"{left} {rng.choice(MEMBERS)} {rng.choice(FIELDS['list'])}"
        return f"{left} {rng.choice(SIGNS + WORDS)} {rng.choice(FIELDS[kind] + FIELDS['any'])}"

    def _leaf(self) -> str:
        rng = self.rng
        if rng.random() < 0.7:
            return self._comparison()
        return rng.choice(FORMS).format(
            text=rng.choice(FIELDS["text"] + FIELDS["any"]),
            any=rng.choice(FIELDS["any"] + FIELDS["list"]),
            a=self._constant("text"),
            b=self._constant("text"),
            n=rng.randrange(5),
        )

    def expression(self, depth: int = 2) -> str:
        """A filter as text; it need not make sense."""
        form = self.rng.randrange(7) if depth else 0
        if form < 4:
            return self._leaf()
        if form == 4:
            return f"not ({self.expression(depth - 1)})"
        parts = [f"({self.expression(depth - 1)})" for _ in range(self.rng.randrange(2, 4))]
        return (" and " if form == 5 else " or ").join(parts)

    def filters(self, count: int, depth: int = 2) -> list[tuple[str, int | None]]:
        """Filters that make sense, with their eras."""
        found: list[tuple[str, int | None]] = []
        while len(found) < count:
            text, era = self.expression(depth), self.rng.choice([None, None, 1, 3])
            if accepted(text, era):
                found.append((text, era))
        return found


def accepted(text: str, era: int | None = None) -> bool:
    """Whether a filter makes sense."""
    try:
        Filter.of(text, era)
    except FilterError:
        return False
    return True
