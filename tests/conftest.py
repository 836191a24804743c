"""Fixtures that several test files share."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.slurm_cluster import SlurmCluster, why_not

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"  # optional; tests that need it skip, saying so, where it is absent

# Small models on few cores. Threads that wait for each other, spinning, took 6 times the CPU time of one.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
# A shell starts what it puts into the background with Ctrl-C ignored, and nohup with SIGHUP; what the tests start would
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


# Test files that take long start first, one on each of three workers; Slurm's worker mostly waits.
LONGEST = (
    "test_slurm.py",
    "test_torture.py",
    "test_train_gpt2.py",
    "test_explain.py",
    "test_finetune_instruct.py",
    "test_guide.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data, or a skip."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real data: no folder {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A running two-node Slurm, or a skip."""
    if reason := why_not():
        pytest.skip(f"slurm: {reason}")
    with tempfile.TemporaryDirectory(prefix="slurm_") as folder, SlurmCluster(Path(folder)) as cluster:
        yield cluster


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    return _no_skip_in_ci((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    return _no_skip_in_ci((yield))


def _no_skip_in_ci(report: pytest.TestReport | pytest.CollectReport) -> pytest.TestReport | pytest.CollectReport:
    """In CI with the real data at hand everything is there but a GPU: any other skip hides a test, and fails."""
    if report.skipped and os.environ.get("CI") and REAL_DATA.is_dir() and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(word in reason for word in ("GPU", "CUDA")):
            report.outcome, report.longrepr = "failed", f"CI skips no test that it could run; the reason: {reason}"
    return report
