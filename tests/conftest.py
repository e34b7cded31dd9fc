"""What the tests share: where things are, what this host can do, how to run kcap."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import every_rule
import pytest
from hypothesis import HealthCheck, settings
from support import capture
from tracee_support import OPENED
from workload_support import Workloads

ROOT = Path(__file__).resolve().parent.parent
IS_ROOT = sys.platform == "linux" and os.geteuid() == 0

# A slow machine is no error; the examples are the same in every run unless asked otherwise.
settings.register_profile(
    "kcap",
    deadline=None,
    derandomize=True,
    max_examples=50,  # all tests together end within 20 minutes; the long run has 500
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("long", settings.get_profile("kcap"), derandomize=False, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "kcap"))


OF_THE_HOST = (
    "test_artifacts_alerts", "test_artifacts_asked", "test_artifacts_examples",
    "test_artifacts_live", "test_artifacts_outside",
    "test_artifacts_record", "test_artifacts_stall",
    "test_audit_live", "test_baseline", "test_bundle", "test_cgroups", "test_cli", "test_control",
    "test_detect_live", "test_doctor", "test_durability", "test_field", "test_guard",
    "test_heartbeat", "test_outlets", "test_info_host", "test_live", "test_packaging", "test_probe",
    "test_packets_live", "test_packets_same",
    "test_prometheus", "test_readme",
    "test_record", "test_rotation_live", "test_run", "test_scenario", "test_self_defence",
    "test_signatures_live", "test_sinks_amqp", "test_sinks_journal", "test_sinks_syslog",
    "test_service", "test_soak", "test_tidy", "test_trace_", "test_trust", "test_workloads",
)  # fmt: skip
"""Modules whose tests look at this host, or at the checkout, while something happens there."""


SLOW = (
    "test_diff.py::test_an_import_has_what_the_foreign_file_has[fibratus/v1.6.0-test.kcap]",
    "test_format.py::test_every_cut_gives_exactly_the_complete_chunks[False]",
    "test_tracee_damage.py::test_a_flipped_bit[False]",
    "test_tracee_gob.py::test_a_flipped_bit[False]",
)
"""Tests of 10 s and more that have a quicker twin, which stays: these are for the long run."""


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by these markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root where we are not root on Linux; say which tests must be alone."""
    skip = pytest.mark.skip(reason="needs root on Linux")
    for item in items:
        root, module = item.get_closest_marker("root"), item.path.stem
        if not IS_ROOT and root:
            item.add_marker(skip)
        if root or module.startswith(OF_THE_HOST):
            item.add_marker(pytest.mark.host)
        if item.nodeid.endswith(SLOW):
            item.add_marker(pytest.mark.long)
        item.add_marker(pytest.mark.xdist_group(module))


def pytest_collection_finish() -> None:
    """Spare Python's collector what stays for ever; kcap asks for it behind each file it ends.

    With all tests loaded that took 0.3 s each time, most of what some of them took.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let it see all again, so that nothing is left when the process ends."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of captures that kcap made."""
    return ROOT / "fixtures"


@pytest.fixture(scope="session")
def intrusion(fixtures: Path) -> Path:
    """The recording of the little intrusion."""
    return fixtures / "intrusion.kcap"


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """What makes a verb run rules of every kind."""
    return every_rule.words(every_rule.written(tmp_path_factory.mktemp("rules")))


@pytest.fixture(scope="session")
def read_text() -> Callable[[str], str]:
    """Give the text of one of the project's own files, by its path from the top."""
    return lambda path: (ROOT / path).read_text("utf-8")


@pytest.fixture(scope="session")
def data() -> Callable[[str], Path]:
    """Give the path of a foreign sample; the test skips where the samples are not at hand."""
    folder = Path(os.environ.get("KCAP_TEST_DATA") or ROOT.parent / "shared" / "data")

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(f"no {path}; KCAP_TEST_DATA names the folder of the foreign samples")
        return path

    return find


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Give the path of a program; the test skips where it is not installed."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not installed; `make test` as root on Debian installs it")
        return path

    return find


@pytest.fixture(scope="session")
def workloads(tmp_path_factory: pytest.TempPathFactory) -> Workloads:
    """The programs of tests/workloads; the test skips where one cannot be built."""
    return Workloads(tmp_path_factory.mktemp("workloads"))


@pytest.fixture
def kcap(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Run the kcap command in a process of its own, in the test's folder."""

    def run(
        *words: str | Path, stdin: bytes = b"", **env: str
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "kcap.tools", *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            input=stdin,
            capture_output=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A closed capture with every kind of record and three chunks."""
    path = tmp_path / "closed.kcap"
    path.write_bytes(capture())
    return path


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Two Tracee events as JSON lines."""
    path = tmp_path / "events.jsonl"
    path.write_text(f"{json.dumps(OPENED)}\n" * 2)
    return path
