"""What rules need of a recording: they get it, what the user said stays, and the rest is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import run

from kcap.detect.rule import About, Rule, Selector
from kcap.errors import KcapError
from kcap.filter import Filter
from kcap.readers.live import choosing
from kcap.readers.live.bpf import hooks, values
from kcap.readers.live.scopes import Choice
from kcap.readers.live.selection import Environment, Selection, select
from kcap.tools import live, needs, ruleset
from kcap.tools.live_select import SelectOptions

EXECUTED = "evt.name = 'sched_process_exec'"


def rules(folder: Path, *conditions: str) -> ruleset.Chosen:
    """Rules with these conditions, called R0, R1 and so on."""
    lines = [f'- id: R{n}\n  name: R\n  condition: "{text}"\n' for n, text in enumerate(conditions)]
    path = folder / "rules.yaml"
    path.write_text("".join(lines))
    found = ruleset.selected([str(path)])
    assert not found.problems
    return found


def options(
    *,
    wanted: tuple[str, ...] = (),
    env: str | None = None,
    stack: bool = False,
    opens: str | None = None,
) -> SelectOptions:
    """Options of record."""
    return {
        "source": "bpf",
        "wanted": wanted,
        "sets": (),
        "exclude": (),
        "scope": (),
        "env": env,
        "stack": stack,
        "opens": opens,
    }


def selection(asked: SelectOptions) -> Selection:
    """What is recorded."""
    choices = [Choice(name) for text in asked["wanted"] for name in text.split(",")]
    environment = None if asked["env"] is None else Environment.of(asked["env"])
    return select(
        choices=choices, environment=environment, stack=asked["stack"], opens=asked["opens"]
    )


@pytest.mark.parametrize(
    ("condition", "turned"),
    [
        (EXECUTED, {}),
        ("evt.name = 'ptrace'", {"wanted": ("default", "ptrace")}),
        ("evt.name matches 'process_vm_w*'", {"wanted": ("default", "process_vm_writev")}),
        (f"{EXECUTED} and ps.envs[HOME] != ''", {"env": "LD_*,KUBERNETES_SERVICE_*,HOME"}),
        (f"{EXECUTED} and args.env startswith 'AWS_'", {"env": "LD_*,KUBERNETES_SERVICE_*,AWS_*"}),
        (f"{EXECUTED} and args.env contains 'A=1'", {"env": "LD_*,KUBERNETES_SERVICE_*,A"}),
        (f"{EXECUTED} and args.env contains 'secret'", {"env": "all"}),
        (f"{EXECUTED} and foreach(args.env, $e, $e = 'x')", {"env": "all"}),
        (f"{EXECUTED} and ps.envs[LD_PRELOAD] != ''", {}),
        (f"{EXECUTED} and args.env startswith ('LD_P', 'LD_A=')", {}),
        (f"{EXECUTED} and exists(thread.callstack.addresses)", {"stack": True}),
        ("file.path = '/etc/shadow'", {"opens": "all"}),
        ("evt.name = 'connect' and file.path = '/etc/shadow'", {"wanted": ("default", "connect")}),
        ("ps.name = 'sh'", {}),
    ],
)
def test_what_is_turned_on(condition: str, turned: dict[str, object], tmp_path: Path) -> None:
    """An option is turned on where a rule looks at what it brings, and nowhere else."""
    asked = options()
    needs.turn_on(asked, rules(tmp_path, condition))

    base = ("default", "sched_process_exec") if EXECUTED in condition else ("default",)
    assert {**asked} == {**options(wanted=base), **turned}


def test_the_user_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is asked for stays as it is; what rules lack then is said, with their names."""
    found = rules(
        tmp_path,
        "evt.name in ('ptrace', 'connect')",
        f"{EXECUTED} and ps.envs[HOME] != '' and ps.envs[LD_PRELOAD] != ''",
        "file.path = '/etc/shadow'",
    )
    asked = options(wanted=("sched_process_exec,ptrace",), env="LD_*,PATH", opens="writes")
    before = {**asked}
    needed = needs.turn_on(asked, found)
    needs.tell_lacking(needed, selection(asked))

    assert {**asked} == before
    assert capsys.readouterr().err.splitlines() == [
        "kcap: the rules: not recorded: connect (R0)",
        "kcap: the rules: --env leaves out the variables HOME",
        "kcap: the rules: --opens writes leaves out files opened for reading (R2)",
    ]


def test_all_that_is_needed_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is turned on is told as options, what can't be had with the rules; else nothing is."""
    conditions = ["evt.name = 'hooked_proc_fops'"] * 4
    found = rules(tmp_path, *conditions, f"{EXECUTED} and ps.envs[HOME] = '/'")
    asked = options()
    needed = needs.turn_on(asked, found)
    needs.tell_lacking(needed, selection(asked))

    assert capsys.readouterr().err.splitlines() == [
        "kcap: the rules: --events default,sched_process_exec --env LD_*,KUBERNETES_SERVICE_*,HOME",
        "kcap: the rules: no recorder sees hooked_proc_fops (R0, R1, R2 and 1 more)",
    ]


def test_no_rules_need_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Without rules nothing changes and nothing is said."""
    asked = options()
    assert needs.turn_on(asked, None) is None
    needs.tell_lacking(None, select())

    assert {**asked} == options()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("known", [hooks.Symbols(1, 2, 3), None])
def test_all_signatures_get_what_they_need(
    known: hooks.Symbols | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the signatures of Tracee only those lack something whose events are not to be seen."""
    monkeypatch.setattr(hooks, "symbols", lambda: known)
    asked = options()
    needed = needs.turn_on(asked, ruleset.selected((), "all"))
    capsys.readouterr()
    needs.tell_lacking(needed, selection(asked))

    assert asked["env"] is None
    assert capsys.readouterr().err == (
        "kcap: the rules: no recorder sees hooked_proc_fops (TRC-16, TRC-1020),"
        " hooked_syscall (TRC-1030)\n"
    ) + (known is None) * (
        "kcap: the rules: this kernel hides what tells of hooked_syscalls (TRC-15, TRC-1030)\n"
    )


def test_events_of_others_are_left_out_and_named() -> None:
    """An event that only other sources have stops no recording of the rest."""
    every = run("detect", "--signatures", "all", "--list-events").stdout.strip().split(",")
    chosen = select(choices=map(Choice, every))
    rest = select(choices=[Choice(name) for name in every if not name.startswith("hooked_")])

    assert chosen.chosen.unseen == ("hooked_proc_fops", "hooked_syscall")
    assert chosen.notes == (
        "no recorder sees hooked_proc_fops, hooked_syscall; the other events are recorded",
    )
    assert chosen.events == rest.events | {"hooked_syscalls"}
    assert "hooked_proc_fops" not in chosen.describe()


def test_events_of_nobody_are_mistakes() -> None:
    """A name that nobody knows stays an error, also beside known ones; so does nothing at all."""
    with pytest.raises(KcapError, match="no event or set is called 'hooked_proc_fop'"):
        choosing.choose([Choice("ptrace"), Choice("hooked_proc_fop")])
    with pytest.raises(KcapError, match="no recorder sees hooked_proc_fops"):
        choosing.choose([Choice("hooked_proc_fops")])
    with pytest.raises(KcapError, match="no event is left"):
        choosing.choose([Choice("ptrace"), Choice("ptrace", drop=True)])
    assert choosing.choose([Choice("hooked_proc_fops", drop=True)]).unseen == ()


def test_what_was_asked_for_beside_the_default() -> None:
    """Of the default a source tells what it can; what is named, it must tell, or be refused."""
    assert choosing.choose([]).asked == frozenset()
    assert choosing.choose([Choice("connect", drop=True)]).asked == frozenset()
    both = choosing.choose([Choice("default"), Choice("openat"), Choice("ptrace")])
    assert both.asked == {"openat", "ptrace"}
    assert choosing.choose(
        [Choice("ptrace"), Choice("ptrace", drop=True), Choice("dup")]
    ).asked == {"dup"}
    with_default = options(wanted=("default", "sched_process_exec"))
    live._check_told("perf", selection(with_default))
    with pytest.raises(KcapError, match="perf does not tell of openat"):
        live._check_told("perf", selection(options(wanted=("default", "openat"))))


def test_patterns_of_variables() -> None:
    """A name that ends with a star means all variables that begin so, and no others."""
    block = b"AWS_KEY=1\0AWSX=2\0HOME=/\0XAWS_=3\0"

    assert values.variables(block, {"AWS_*", "HOME"}) == [b"AWS_KEY=1", b"HOME=/"]
    assert values.variables(block, {"AWS_"}) == []
    assert values.variables(block, {"*"}) == values.variables(block, None)
    assert str(Environment.of("AWS_*,HOME")) == "AWS_*, HOME"
    assert Environment.of("LD_*").level == Environment().level
    assert Environment.of("L*").level == Environment.of("all").level
    assert [str(Environment(level)) for level in range(3)] == [
        "none",
        "LD_*, KUBERNETES_SERVICE_*",
        "all",
    ]


def test_events_of_rules() -> None:
    """A condition tells its events by name or pattern; one that tells only what not, does not."""
    assert ruleset.events_of(_rule(Filter.of("evt.name != 'ptrace'"))) is None
    named = ruleset.events_of(_rule(Filter.of("evt.name in ('ptrace', 'nothing')")))
    assert named == frozenset({"ptrace", "nothing"})
    alerts = Filter.of("evt.name = 'alert' and args.rule = 'R0'")
    assert ruleset.events_of(_rule(alerts)) == frozenset()


def _rule(condition: Filter) -> Rule:
    return Rule(About(id="R", name="R"), (Selector("condition", condition),))


# artifacts


ANY = "rule every { condition: true }"


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights, whoever runs the test."""
    from kcap.guard import rights

    monkeypatch.setattr(rights, "privileged", lambda: True)


def looking(folder: Path, text: str = ANY) -> ruleset.Chosen:
    """YARA rules."""
    pytest.importorskip("yara_x")
    (folder / "a.yar").write_text(text)
    found = ruleset.selected((), yara=[str(folder / "a.yar")])
    assert not found.problems
    return found


@pytest.mark.usefixtures("root")
def test_rules_that_look_at_artifacts_get_executed_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the event that each belongs to; rules that look at none get none."""
    asked = options(wanted=("openat",))
    found = needs.artifacts(looking(tmp_path), None, asked)
    assert found is not None
    assert (found.wanted.exec is not None, found.wanted.network, found.folder) == (True, None, None)
    assert "sched_process_exec" in asked["wanted"]
    assert "the rules: --artifacts exec" in capsys.readouterr().err
    plain = rules(tmp_path, EXECUTED)
    asked = options()
    assert needs.artifacts(plain, None, asked) is None
    assert needs.artifacts(None, None, asked) is None
    assert (asked["wanted"], capsys.readouterr().err) == ((), "")


@pytest.mark.usefixtures("root")
def test_rules_whose_fields_artifacts_answer_get_them(tmp_path: Path) -> None:
    """``pe.*`` only where the option says that artifacts answer it."""
    pe = rules(tmp_path, "pe.is_exec = true")
    assert needs.artifacts(pe, None, options()) is None
    pe.binaries = True
    assert needs.artifacts(pe, None, options()) is not None
    assert needs.artifacts(rules(tmp_path, "is_minidump(file.path)"), None, options()) is not None


@pytest.mark.usefixtures("root")
def test_what_a_user_asks_for_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kcap.readers.live.artifacts import spelling
    from kcap.tools.artifact_options import Asked

    own = Asked(spelling.read(("mem",)).wanted)
    assert needs.artifacts(looking(tmp_path), own, options()) is own
    assert capsys.readouterr().err == ""


def test_where_artifacts_can_t_be_kept_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = options()
    asked["source"] = "proc"
    assert needs.artifacts(looking(tmp_path), None, asked) is None
    assert "not recorded: --artifacts exec (yara:every)" in capsys.readouterr().err
