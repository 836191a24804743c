"""Requests to stop: signals, a file, and Slurm's clock."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.commands import run_command
from train.run.stop_request import SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def _handlers_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_each_signal_is_a_request(tmp_path: Path, number: signal.Signals) -> None:
    stop = StopRequest(tmp_path, 0, is_main=False)
    assert not stop.requested()
    os.kill(os.getpid(), number)
    assert stop.requested()
    assert stop.reason() == number.name


def test_nohup_keeps_ignoring_a_closed_terminal(tmp_path: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest(tmp_path, 0, is_main=True)
    os.kill(os.getpid(), signal.SIGHUP)
    assert not stop.requested()


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    stop = StopRequest(tmp_path, 0, is_main=True)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_stop_file_is_seen_by_rank_0_and_removed_once_obeyed(tmp_path: Path) -> None:
    other, stop = StopRequest(tmp_path, 0, is_main=False), StopRequest(tmp_path, 0, is_main=True)
    (tmp_path / "STOP").touch()
    assert stop.requested()
    assert not other.requested()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.reason() == "a STOP file"  # it is the reason whatever else asks
    other.clear()
    assert (tmp_path / "STOP").exists()
    stop.clear()
    stop.clear()
    assert not (tmp_path / "STOP").exists()
    assert stop.reason() == "SIGUSR1"


def test_a_signal_does_not_kill_a_process_that_is_ending() -> None:
    code = (
        "import os, pathlib, sys; from train.run.stop_request import SIGNALS, StopRequest\n"
        "class Last:\n"  # deleted when Python has taken its handlers away
        "    def __del__(self, kill=os.kill, pid=os.getpid(), signals=list(map(int, SIGNALS))):\n"
        "        for number in signals: kill(pid, number)\n"
        "stop = StopRequest(pathlib.Path('STOP'), 0, True); sys.last = Last()\n"
    )
    assert run_command("python", "-c", code, fresh=True).returncode == -SIGNALS[0]
    assert run_command("python", "-c", code + "stop.ignore_signals()", fresh=True).returncode == 0


def test_slurms_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 100))
    assert not StopRequest(tmp_path, 60, is_main=True).requested()
    stop = StopRequest(tmp_path, 120, is_main=True)
    assert stop.requested()
    assert stop.reason() == "Slurm's time limit"
