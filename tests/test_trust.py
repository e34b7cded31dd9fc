"""What others can change is not loaded as root; and what root can rely on is."""

from __future__ import annotations

import importlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_support import run
from hypothesis import given
from hypothesis import strategies as st

from kcap import plugins, trust
from kcap.errors import KcapError
from kcap.readers.live.bpf import btf

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or os.geteuid() != 0, reason="root's files on Linux"
    ),
]

ROOT = Path(__file__).parent.parent
OTHER = 1000
"""A user who is not root, and a group."""
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}


class Step(NamedTuple):
    """A folder or file on the way to what is loaded."""

    owner: int
    group: int
    mode: int


FINE = Step(0, 0, 0o755)
STEPS = st.builds(
    Step,
    st.sampled_from([0, 0, 0, OTHER]),
    st.sampled_from([0, OTHER]),
    st.sampled_from([0o755, 0o755, 0o555, 0o775, 0o757, 0o777, 0o1777, 0o1775]),
)


@contextmanager
def outside() -> Iterator[Path]:
    """A folder that every user can reach, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="kcap-trust-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def way(folder: Path, steps: list[Step]) -> list[Path]:
    """Make folders within each other, and a file in the last: one for each step."""
    paths = []
    for step in steps:
        folder /= "x"
        paths.append(folder)
        if step is not steps[-1]:
            folder.mkdir()
    folder.write_text("rules")
    for path, step in zip(paths, steps, strict=True):
        os.chown(path, step.owner, step.group)
        path.chmod(step.mode)
    return paths


def changes(paths: list[Path]) -> bool:
    """Whether the other user really can change the file, or put another in its place."""
    pid = os.fork()
    if pid == 0:
        done = False
        try:
            os.setgroups([])
            os.setresgid(OTHER, OTHER, OTHER)
            os.setresuid(OTHER, OTHER, OTHER)
            for path in paths:
                for attempt in (
                    lambda path=path: path.chmod(0o777),
                    lambda path=path: path.rename(path.with_name("y")),
                    lambda path=path: path.is_file() and path.open("r+").close(),
                ):
                    try:
                        done |= attempt() is not False
                    except OSError:
                        continue
        finally:
            os._exit(int(done))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def why_refused(path: Path) -> str | None:
    """What is said of a file; None where it is loaded."""
    try:
        trust.check(path)
    except KcapError as error:
        return str(error)
    return None


@given(steps=st.lists(STEPS, min_size=1, max_size=3))
def test_what_another_user_can_change_is_refused(steps: list[Step]) -> None:
    """Whatever the kernel lets another user change is refused, and only what may be written to."""
    with outside() as folder:
        paths = way(folder, steps)
        refused = why_refused(paths[-1])
        assert refused is None or any(str(path) in refused for path in paths)

        if all(step.owner == 0 and not step.mode & 0o022 for step in steps):
            assert refused is None
        if changes(paths):
            assert refused


@pytest.mark.parametrize(
    ("steps", "can"),
    [
        ([FINE, Step(0, 0, 0o644)], False),
        ([FINE, Step(OTHER, 0, 0o444)], True),
        ([FINE, Step(0, OTHER, 0o664)], True),
        ([FINE, Step(0, 0, 0o646)], True),
        ([Step(0, OTHER, 0o775), Step(0, 0, 0o600)], True),
        ([Step(0, 0, 0o1777), Step(0, 0, 0o644)], False),
    ],
)
def test_the_other_user_tries(steps: list[Step], can: bool) -> None:
    """Negative control: the other user of the property changes what is open to others, only."""
    with outside() as folder:
        assert changes(way(folder, steps)) == can


@pytest.mark.parametrize(
    ("place", "step", "said"),
    [
        (2, Step(OTHER, 0, 0o600), "user 1000 owns it"),
        (2, Step(0, OTHER, 0o664), "group 1000 may write to it"),
        (2, Step(0, 0, 0o664), "group 0 may write to it"),
        (2, Step(0, 0, 0o646), "everybody may write to it"),
        (1, Step(0, 0, 0o777), "everybody may write to it"),
        (0, Step(OTHER, OTHER, 0o755), "user 1000 owns it"),
        (2, Step(OTHER, 0, 0o1644), "user 1000 owns it"),
    ],
)
def test_the_refusal_names_the_first_at_fault(place: int, step: Step, said: str) -> None:
    """File, reason and remedy; made good, the same file passes."""
    with outside() as folder:
        steps = [FINE, FINE, Step(0, 0, 0o644)]
        paths = way(folder, [*steps[:place], step, *steps[place + 1 :]])
        with pytest.raises(KcapError, match=said) as caught:
            trust.check(paths[-1])

        assert str(paths[place]) in str(caught.value)
        assert caught.value.hint == f"chown root {paths[place]}; chmod go-w {paths[place]}"
        subprocess.run(["sh", "-c", caught.value.hint], check=True)
        trust.check(paths[-1])  # negative control


def test_a_folder_like_tmp_is_fine_for_roots_own_files() -> None:
    """There nobody takes away what is root's; without the sticky bit, or of another, it is not."""
    with outside() as folder:
        *_, shared, file = way(folder, [Step(0, 0, 0o1777), Step(0, 0, 0o644)])
        trust.check(file)

        os.chown(file, OTHER, 0)
        with pytest.raises(KcapError, match="owns it"):
            trust.check(file)
        os.chown(file, 0, 0)
        shared.chmod(0o777)
        with pytest.raises(KcapError, match="everybody"):
            trust.check(file)


def test_links_are_followed_and_looked_at() -> None:
    """A good file behind a link that another can exchange is refused; behind root's it is not."""
    with outside() as folder:
        good, bad = folder / "good", folder / "bad"
        good.mkdir()
        bad.mkdir()
        (good / "file").write_text("")
        (bad / "link").symlink_to(good)
        (good / "way").symlink_to("../bad/link/../good/file")
        for path in (bad / "link/file", good / "way"):
            trust.check(path)  # negative control: all of it is root's

        bad.chmod(0o777)
        for path in (bad / "link/file", good / "way", good / "../bad/link/file"):
            with pytest.raises(KcapError, match=f"{bad}: root does not load"):
                trust.check(path)
        bad.chmod(0o1777)
        os.lchown(bad / "link", OTHER, OTHER)
        with pytest.raises(KcapError, match=r"link: root does not load .* owns it"):
            trust.check(bad / "link/file")


def test_what_cannot_be_looked_at_is_refused(tmp_path: Path) -> None:
    """Nothing there, and a link to itself, are errors of ours."""
    (tmp_path / "loop").symlink_to("loop")

    for name, why in (("none", "No such file"), ("loop", "symbolic links")):
        with pytest.raises(KcapError, match=f"{name}: root loads no file .*{why}"):
            trust.check(tmp_path / name)


def test_other_users_check_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What an ordinary user loads is that user's business."""
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)

    trust.check(tmp_path / "none")


def start(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Start kcap in a process of its own."""
    command = [sys.executable, *(words or ("-m", "kcap.tools")), "--version"]
    return subprocess.run(
        command, cwd=cwd, env={**CLEAN, **env}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder with a module of a name that kcap imports, which says so when it is loaded."""
    folder = tmp_path / "trap"
    folder.mkdir()
    (folder / "click.py").write_text("print('sprung')\nraise SystemExit(9)\n")
    return folder


@pytest.mark.parametrize("more", ["{trap}", "{root}:{trap}", ":{trap}"])
def test_no_code_from_pythonpath(trap: Path, tmp_path: Path, more: str) -> None:
    """The variable and the folder are named, before anything of that folder is loaded."""
    value = more.format(trap=trap, root=ROOT)
    done = start(cwd=tmp_path, PYTHONPATH=value)

    assert done.returncode == 1
    assert done.stdout == ""
    named = tmp_path if value.startswith(":") else trap
    assert done.stderr.splitlines() == [
        f"kcap: root takes no code from where PYTHONPATH says: {named}",
        "hint: env -u PYTHONPATH kcap ...",
    ]
    # Negative control: this is what would have been loaded.
    entry = ("-c", "from kcap.tools.cli import main; main()")
    assert start(*entry, cwd=tmp_path, PYTHONPATH=value).stdout == "sprung\n"


def test_kcaps_own_folder_may_be_named(tmp_path: Path, trap: Path) -> None:
    """A checkout is found by it; and where Python ignores variables, so does kcap."""
    assert start(cwd=tmp_path, PYTHONPATH=str(ROOT)).stdout.startswith("kcap ")
    isolated = start("-I", "-m", "kcap.tools", cwd=tmp_path, PYTHONPATH=str(trap))
    assert isolated.stdout.startswith("kcap ")


@pytest.mark.parametrize("name", ["PYTHONPYCACHEPREFIX", "PYTHONUSERBASE"])
def test_no_code_from_other_variables(name: str, tmp_path: Path) -> None:
    """Each variable that brings code is refused by name."""
    done = start(cwd=tmp_path, **{name: str(tmp_path)})

    assert done.returncode == 1
    assert f"root takes no code from where {name} says: {tmp_path}" in done.stderr


def test_nothing_is_started_by_pythonstartup(tmp_path: Path) -> None:
    """Python reads it for those who type; it is no reason to refuse."""
    (tmp_path / "startup.py").write_text("print('sprung')\n")

    assert "sprung" not in start(cwd=tmp_path, PYTHONSTARTUP=str(tmp_path / "startup.py")).stdout


def test_no_code_from_the_working_folder(trap: Path) -> None:
    """``python -m`` looks there first; the negative control is the same without the start-up."""
    assert start(cwd=trap).stdout.startswith("kcap ")

    assert start("-m", "kcap.tools.cli", cwd=trap).stdout == "sprung\n"


def test_no_packages_of_the_user_who_became_root(tmp_path: Path) -> None:
    """Who keeps the own HOME keeps the own packages, and code that Python loads unasked."""
    python = Path(sys.base_prefix, "bin/python3")
    home = tmp_path / "home"
    words = "from kcap import trust; trust.isolate(); print('fine')"
    command = [python, "-c", words]
    env = {**CLEAN, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    ask = [python, "-m", "site", "--user-site"]
    folder = Path(subprocess.check_output(ask, env=env, text=True).strip())
    folder.mkdir(parents=True)

    def isolated() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    assert isolated().stdout == "fine\n"  # negative control: root's own
    os.chown(home, OTHER, OTHER)
    refused = isolated()
    assert refused.returncode == 1
    assert f"{home}: root does not load what others can change: user 1000" in refused.stderr


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Install a distribution with a reader; gives the folder it is installed in."""

    def install(name: str) -> Path:
        folder = tmp_path / "packages"
        about = folder / f"{name}-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text("[kcap.readers]\nacme = acme_reader:Reader\n")
        (folder / "acme_reader.py").write_text(
            "class Reader:\n    reads = 'acme'\n    sniff = staticmethod(lambda head: False)\n"
        )
        monkeypatch.syspath_prepend(folder)
        plugins.found.cache_clear()
        return folder

    yield install
    plugins.found.cache_clear()
    sys.modules.pop("acme_reader", None)
    importlib.invalidate_caches()


@pytest.mark.parametrize("name", ["acme-kcap", "kcap"])
def test_a_reader_of_another_distribution_is_refused(
    name: str,
    acme: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where it calls itself ours: distribution and file are named, nothing is imported."""
    file = acme(name) / "acme_reader.py"
    (tmp_path / "x").write_text("nothing that is known\n")
    # As where kcap is installed: without a project beside it.
    monkeypatch.setattr(plugins, "_checkout", lambda _: None)

    with pytest.raises(KcapError, match="root loads nothing else") as caught:
        plugins.load(plugins.READERS, "acme")
    assert f"{name} 1.0, {file}" in str(caught.value)
    assert "acme_reader" not in sys.modules

    monkeypatch.setattr(trust, "is_root", lambda: False)  # negative control
    plugins.found.cache_clear()
    assert plugins.load(plugins.READERS, "acme").reads == "acme"


def test_what_root_does_not_load_is_told(acme: Callable[[str], Path], tmp_path: Path) -> None:
    """In the list of readers, and where nothing else can read an input."""
    file = acme("acme-kcap") / "acme_reader.py"
    (tmp_path / "x").write_text("nothing that is known\n")

    listed = [x for x in run("import", "--list").stdout.splitlines() if x.startswith("acme")]
    why = f"root loads nothing but kcap's own: acme-kcap 1.0, {file}"
    assert listed == [f"acme            ?; NOT AVAILABLE: {why}"]
    refused = run("cat", tmp_path / "x")
    assert refused.exit_code == 1
    assert f"as another user than root also: acme-kcap 1.0, {file}" in refused.stderr


def test_an_unknown_name_is_no_plugin() -> None:
    """Nothing of that name is anybody's."""
    with pytest.raises(ImportError, match=r"no nobody in kcap\.readers"):
        plugins.load(plugins.READERS, "nobody")
    assert plugins.whence(EntryPoint("a", "b:C", plugins.READERS)) == "b:C"


def test_types_of_the_kernel_are_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of types that others can change says nothing to a program in the kernel."""
    with outside() as folder:
        [file] = way(folder, [Step(0, 0, 0o666)])
        monkeypatch.setenv(btf.PATH_VARIABLE, str(file))
        with pytest.raises(KcapError, match=f"{file}: root does not load what others can change"):
            btf.Btf.of_kernel()

        file.chmod(stat.S_IRUSR)
        with pytest.raises(KcapError, match="BTF"):  # negative control: now it is read
            btf.Btf.of_kernel()
