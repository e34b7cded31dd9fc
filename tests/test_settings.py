"""Settings: which one wins, where each stands, what is refused, and what is never read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli_support import run
from hypothesis import given
from hypothesis import strategies as st
from settings_support import called, environment, merged, refused

from kcap import trust
from kcap.filament.limits import Limits
from kcap.tools import settings
from kcap.tools.cli import main
from kcap.tools.settings import places, verbs

ROOT = Path(__file__).parent.parent
OTHER = 1000
"""A user who is not root."""


# Which one wins

OPTIONS = {
    # An option of record: what the file, the environment and the command line say, and what that is
    # for the verb; None for what holds else.
    "keep": ("3", "4", "5", (3, 4, 5, None)),
    "split-size": ("1M", "2M", "3M", (1 << 20, 2 << 20, 3 << 20, None)),
    "split-time": ("10", "1m", "1h", (10.0, 60.0, 3600.0, None)),
    "level": ("7", "8", "9", (7, 8, 9, 3)),
    "case": ("of file", "of env", "of flag", ("of file", "of env", "of flag", None)),
    "scope": (
        "[comm=a, follow]",
        "comm=b follow",
        "comm=c",
        (("comm=a", "follow"), ("comm=b", "follow"), ("comm=c",), ()),
    ),
}


@given(
    name=st.sampled_from(sorted(OPTIONS)),
    given_in=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    form=st.sampled_from(["yaml", "toml"]),
)
def test_the_command_line_wins_over_variables_and_those_over_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    given_in: tuple[bool, bool, bool],
    form: str,
) -> None:
    """Whichever of the three say something, the last of file, variable and flag holds."""
    in_file, in_env, in_flag = given_in
    file, env, flag, values = OPTIONS[name]
    path = tmp_path_factory.mktemp("settings") / f"kcap.{form}"
    if form == "yaml":
        path.write_text(f"record:\n  {name}: {file}\n" if in_file else "")
    else:
        text = re.sub(r"([\w=]+)", r'"\1"', file) if file.startswith("[") else f'"{file}"'
        path.write_text(f"[record]\n{name} = {text}\n" if in_file else "")
    variables = {f"KCAP_RECORD_{name.upper().replace('-', '_')}": env} if in_env else {}
    words = [f"--{name}", flag] if in_flag else []

    found = called("--config", path, "record", *words, **variables).params

    field = name.replace("-", "_")
    expected = (
        values[2] if in_flag else values[1] if in_env else values[0] if in_file else values[3]
    )
    assert found[field] == expected


@pytest.mark.parametrize(
    ("text", "variable", "expected"),
    [("yes", None, True), ("no", None, False), ("true", "0", False), ("off", "yes", True)],
)
def test_flags_are_truth_values(
    tmp_path: Path, text: str, variable: str | None, expected: bool
) -> None:
    """A flag is said with yes or no, in a file as in a variable."""
    path = tmp_path / "kcap.yaml"
    path.write_text(f"record: {{force: {text}}}")
    variables = {} if variable is None else {"KCAP_RECORD_FORCE": variable}

    assert called("--config", path, "record", **variables).params["force"] is expected


def test_other_names_of_a_verb_have_its_settings(tmp_path: Path) -> None:
    """`capture` is set as `record`, and `install-service` as `service install`."""
    path = tmp_path / "kcap.yaml"
    path.write_text("record: {keep: 7}\nservice: {install: {name: web}}")

    assert called("--config", path, "record").params["keep"] == 7
    with environment():
        root = main.make_context("kcap", ["--config", str(path), "capture"])
        for name, field, value in (("capture", "keep", 7), ("install-service", "name", "web")):
            command = main.get_command(root, name)
            assert command is not None
            assert command.make_context(name, [], parent=root).params[field] == value


def test_a_verb_of_a_verb_has_a_section_in_its_section(tmp_path: Path) -> None:
    """What stands in service: install: is for that alone."""
    path = tmp_path / "kcap.yaml"
    path.write_text("service: {install: {name: web}}")
    with environment():
        root = main.make_context("kcap", ["--config", str(path), "service"])
        service = main.get_command(root, "service")
        assert isinstance(service, click.Group)
        outer = service.make_context("service", ["install"], parent=root)
        install, status = (service.get_command(outer, n) for n in ("install", "status"))
        assert install is not None
        assert status is not None
        assert install.make_context("install", [], parent=outer).params["name"] == "web"
        assert status.make_context("status", [], parent=outer).params["name"] == "kcap"


def test_the_file_is_the_named_one_else_the_variables_else_the_users_else_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that there is, and only that; --config '' is none."""
    system, home, xdg = tmp_path / "etc", tmp_path / "home", tmp_path / "xdg"
    for folder in (system, home / ".config" / "kcap", xdg / "kcap"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(places, "SYSTEM", system)
    monkeypatch.setattr(trust, "is_root", lambda: False)
    environ = {"HOME": str(home)}
    assert places.chosen(None, environ) is None
    assert places.silent(environ)

    (system / "kcap.toml").touch()
    assert places.chosen(None, environ) == str(system / "kcap.toml")
    (home / ".config/kcap/kcap.yaml").touch()
    assert places.chosen(None, environ) == str(home / ".config/kcap/kcap.yaml")
    (xdg / "kcap" / "kcap.yaml").touch()
    environ["XDG_CONFIG_HOME"] = str(xdg)
    assert places.chosen(None, environ) == str(xdg / "kcap/kcap.yaml")
    environ["KCAP_CONFIG"] = "of-variable.yaml"
    assert places.chosen(None, environ) == "of-variable.yaml"
    assert places.chosen("named.yaml", environ) == "named.yaml"
    assert places.chosen("", environ) is None
    assert not places.silent(environ)

    monkeypatch.setattr(trust, "is_root", lambda: True)
    del environ["KCAP_CONFIG"]
    assert places.chosen(None, environ) == str(system / "kcap.toml")
    (system / "kcap.yaml").touch()
    assert "two files of settings" in refused(lambda: places.chosen(None, environ))


def test_the_working_folder_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kcap.yaml that lies where kcap is started says nothing."""
    (tmp_path / "kcap.yaml").write_text("nonsense: [")
    monkeypatch.chdir(tmp_path)
    with environment(HOME=str(tmp_path / "none"), XDG_CONFIG_HOME=""):
        result = run("config")

    assert result.exit_code == 0
    assert result.stdout == "# no file of settings\n"


# What a run gets


def test_a_run_gets_sinks_transformers_filaments_and_log(tmp_path: Path) -> None:
    """Each with its place; numbers with units are numbers."""
    text = """\
sinks:
  - "null:"
  - url: amqp://guest@localhost/
    exchange: kcap
    headers: {site: berlin}
    password: {env: BROKER}
transformers:
  - remove: [irp]
  - tags: {site: !env SITE}
filament: {path: [/a, /b], memory-bytes: 64M, call-s: 500ms, rows: 7}
logging: {file: /var/log/kcap/kcap.log, max-size: 1M, keep: 2}
"""
    path = tmp_path / "kcap.yaml"
    found = merged(path, text, BROKER="secret-word", SITE="berlin").settings

    null, amqp = found.sinks
    assert (null.url, null.options, null.source) == ("null:", {}, f"{path} line 2")
    assert amqp.options == {
        "exchange": "kcap",
        "headers": {"site": "berlin"},
        "password": "secret-word",
    }
    assert [(one.name, one.arguments) for one in found.transformers] == [
        ("remove", ["irp"]),
        ("tags", {"site": "berlin"}),
    ]
    assert found.filament.path == ("/a", "/b")
    assert found.filament.limits == Limits(memory_bytes=64 << 20, call_s=0.5, rows=7)
    assert found.logging.max_bytes == 1 << 20
    assert found.with_sinks(["console:"]).sinks[0].url == "console:"
    assert found.with_sinks([]) is found


def test_variables_set_what_belongs_to_no_verb(tmp_path: Path) -> None:
    """KCAP_SINKS is a list of URLs; other sections have a variable an option."""
    found = merged(
        tmp_path / "kcap.yaml",
        "sinks: ['console:']\nfilament: {path: [/file]}\nlogging: {level: debug}",
        KCAP_SINKS="null: amqp://localhost/",
        KCAP_FILAMENT_PATH=os.pathsep.join(["/a", "/b"]),
        KCAP_FILAMENT_CALL_S="3",
        KCAP_LOGGING_LEVEL="error",
    ).settings

    assert [(one.url, one.source) for one in found.sinks] == [
        ("null:", "KCAP_SINKS"),
        ("amqp://localhost/", "KCAP_SINKS"),
    ]
    assert found.filament.path == ("/a", "/b")
    assert found.filament.limits.call_s == 3.0
    assert found.logging.level == "error"


def test_a_value_may_be_in_a_variable_or_a_file(tmp_path: Path) -> None:
    """Of verbs, too; one that is not there is an error for who needs it."""
    secret = tmp_path / "secret"
    secret.write_text("word of file\n")
    path = tmp_path / "kcap.yaml"
    path.write_text(f"record:\n  case: !file {secret}\n  note: {{env: KCAP_TEST_NOTE}}\n")

    found = called("--config", path, "record", KCAP_TEST_NOTE="word of env").params
    assert (found["case"], found["note"]) == ("word of file", "word of env")
    assert "'KCAP_TEST_NOTE' is not set" in refused(lambda: called("--config", path, "record"))
    secret.unlink()
    assert f"{secret}: the value can't be read" in refused(
        lambda: called("--config", path, "record", KCAP_TEST_NOTE="x")
    )
    toml = tmp_path / "kcap.toml"
    toml.write_text('[record]\nnote = {env = "KCAP_TEST_NOTE"}\n')
    assert called("--config", toml, "record", KCAP_TEST_NOTE="x").params["note"] == "x"


def test_every_option_of_every_verb_can_be_set() -> None:
    """Each option with a long name that does not print something and end is a setting."""
    for name in verbs.sections():
        for path, command in verbs.commands((name,)):
            keys = verbs.keys(command)
            for option in command.params:
                if isinstance(option, click.Option) and any(o[:2] == "--" for o in option.opts):
                    ends = option.is_eager and option.is_flag
                    assert (option.name in {k.field for k in keys.values()}) != ends, (path, option)
    assert "list-events" not in verbs.keys(verbs.command_at(("record",)))


def test_nothing_is_loaded_without_settings(closed: Path) -> None:
    """No YAML, no schema; with a file both are: the control."""
    script = (
        "import sys\nfrom kcap.tools.cli import main\n"
        "try:\n    main(sys.argv[1:], prog_name='kcap')\nexcept SystemExit:\n    pass\n"
        "print('yaml' in sys.modules, 'kcap.tools.settings.schema' in sys.modules)"
    )
    empty = closed.with_name("kcap.yaml")
    empty.touch()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("KCAP_")}
    for words, loaded in (
        (["info"], "False False"),
        (["--config", str(empty), "info"], "True True"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *words, str(closed)],
            env={**clean, "PYTHONPATH": str(ROOT), "HOME": str(closed.parent)},
            capture_output=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.decode().splitlines()[-1] == loaded


# What root reads


@pytest.mark.root
@pytest.mark.parametrize("fault", ["owner", "mode", None])
def test_root_reads_no_settings_that_others_can_change(tmp_path: Path, fault: str | None) -> None:
    """Nor a secret; what root alone can change is read: the control."""
    path, secret = tmp_path / "kcap.yaml", tmp_path / "secret"
    path.write_text(f"record: {{note: !file {secret}}}")
    secret.write_text("x")
    for wrong, name in ((path, "kcap.yaml"), (secret, "secret")):
        if fault == "owner":
            os.chown(wrong, OTHER, 0)
        elif fault == "mode":
            wrong.chmod(0o646)
        if fault is None:
            assert called("--config", path, "record").params["note"] == "x"
            continue
        said = refused(lambda: called("--config", path, "record"))
        assert "root does not load what others can change" in said
        assert name in said
        os.chown(wrong, 0, 0)
        wrong.chmod(0o600)


def test_of_gives_the_same_settings_in_every_context(tmp_path: Path) -> None:
    """The file is read once a run."""
    path = tmp_path / "kcap.yaml"
    path.write_text("filament: {rows: 7}")
    context = called("--config", path, "replay", "x")

    with environment():
        found = settings.of(context)
        path.unlink()
        assert settings.of(context) is found
        assert settings.of(context.find_root()).filament.limits.rows == 7


def test_a_service_has_the_settings_that_it_was_installed_with(tmp_path: Path) -> None:
    """Named ones stand in its unit; what they say of its files is not said otherwise there."""
    path = tmp_path / "kcap.yaml"
    path.write_text("record: {split-time: 1h, output: elsewhere.kcap}")
    install = ("service", "install", "--print")
    with environment(HOME=str(tmp_path / "none"), XDG_CONFIG_HOME=""):
        plain = run(*install).stdout
        named = run("--config", path, *install)
    with environment(KCAP_CONFIG=os.path.relpath(path)):
        by_variable = run(*install).stdout

    assert "--split-size 256M --keep 16" in plain
    assert "--config" not in plain
    assert named.exit_code == 0, named.stderr
    assert f" --config {path} record -o " in named.stdout
    assert "--split-size" not in named.stdout
    assert "--keep 16" in named.stdout
    assert by_variable == named.stdout
    path.write_text("record: {split-time: often}")
    with environment():
        refused_too = run("--config", path, *install)
    assert refused_too.exit_code == 1
    assert f"{path} line 1: 'split-time': 'often' is no duration" in refused_too.stderr
