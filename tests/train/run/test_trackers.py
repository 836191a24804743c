"""What TensorBoard and wandb get of a run: what metrics.jsonl holds, also after a kill; a failure ends only them."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import wandb

from tests.helpers.event_files import assert_events_equal_metrics, hyperparameters
from tests.helpers.tiny import rows
from train.config.finetune import InstructConfig
from train.config.pretrain import Config, DataConfig, LogConfig, SourceConfig, TrainConfig
from train.parallel.world import World
from train.run.appender import Appender
from train.run.metrics_log import MetricsLog

CONFIG = Config(train=TrainConfig(max_steps=100), log=LogConfig(tensorboard=False, wandb="disabled"))
WITH_EVENTS = replace(CONFIG, log=LogConfig(wandb="disabled"))
MAIN = World(0, 1, torch.device("cpu"))


def tokens_read(step: int) -> int:
    return 1000 * step


def open_log(folder: Path, step: int = 0, config: Config | InstructConfig = CONFIG) -> MetricsLog:
    return MetricsLog(folder, config, step, flops_per_token=0, world=MAIN, tokens_read=tokens_read)


def log_steps(log: MetricsLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        log.train_row(step, loss=4.0 - step / 9, lr=step / 1e5, grad_norm=1 / step, seconds=0.3)


def event_files(run: Path) -> list[Path]:
    return sorted(run.glob("*tfevents*"))


def test_event_files_hold_what_metrics_holds(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=WITH_EVENTS)
    for source in ("web", "code"):  # two events of one step
        log.event(0, f"source {source}: 100 tokens in 1 shards")
    log.write(0, "val", loss=4.1, **{"loss/web": 4.0, "loss/code": 4.2}, tokens=2048)
    log_steps(log, 1, 5)
    log.train_row(6, loss=float("nan"), lr=1e-4, grad_norm=float("inf"), seconds=0.3)
    log.event(6, "skipped: the loss or the gradient is not finite", in_a_row=1)
    log.event(4, "checkpoint", pause_seconds=0.1, write_seconds=0.25)  # known later
    log.write(6, "hellaswag", acc=0.25, acc_norm=0.3, examples=10042)
    log.write(6, "sample", text="ROMEO:\n\n<script>alert(1)</script>\u2028 *not* emphasized\n")
    log.write(6, "sample", answers=[{"prompt": "Q:\n", "answer": "A"}, {"prompt": "Q2:\n", "answer": ""}])
    log.write(6, "test", accuracy=0.9)
    assert_events_equal_metrics(tmp_path, tokens_read)  # before the log is closed, too
    log.close()
    assert_events_equal_metrics(tmp_path, tokens_read)


def test_the_configuration_is_the_hyperparameters(tmp_path: Path) -> None:
    mixed = DataConfig(train={"web": SourceConfig("web.bin", 0.7)})
    open_log(tmp_path, config=replace(WITH_EVENTS, data=mixed)).close()
    found = hyperparameters(tmp_path)
    assert found["optim.max_lr"] == 6e-4
    assert found["model.bias"] is True
    assert found["optim.betas"] == "[0.9, 0.95]"
    assert json.loads(found["data.train"]) == {"web": {"files": "web.bin", "weight": 0.7}}
    open_log(tmp_path, config=InstructConfig(log=WITH_EVENTS.log, init="runs/base")).close()
    assert hyperparameters(tmp_path)["init"] == "runs/base"


def test_after_a_kill_each_step_is_in_the_event_files_once(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=WITH_EVENTS)
    log_steps(log, 1, 8)
    log.write(8, "val", loss=3.0, tokens=2048)
    [cut] = event_files(tmp_path)
    os.truncate(cut, cut.stat().st_size // 2)  # in the middle of a record, before the checkpoint's step
    for start in range(3):  # killed again and again, at the same checkpoint
        log = open_log(tmp_path, step=6, config=WITH_EVENTS)
        assert_events_equal_metrics(tmp_path, tokens_read)
        log_steps(log, 7, 7 + start)
    log.write(9, "val", loss=2.0, tokens=2048)
    assert_events_equal_metrics(tmp_path, tokens_read)
    assert [row["step"] for row in rows(tmp_path, "train")] == list(range(1, 10))
    assert [file.stat().st_size > 0 for file in event_files(tmp_path)] == [False, True]
    with event_files(tmp_path)[1].open("ab") as file:
        file.write(b"\x10\0\0\0\0\0\0\0cut")
    open_log(tmp_path, step=9, config=CONFIG).close()  # without the key they stay as they are
    assert_events_equal_metrics(tmp_path, tokens_read)


@pytest.mark.parametrize("what", ["the package", "the file system"])
def test_what_breaks_with_tensorboard_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, what: str
) -> None:
    if what == "the package":
        monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    log = open_log(tmp_path, config=WITH_EVENTS)
    log_steps(log, 1, 3)
    write = Appender.write

    def fail(file: Appender, data: bytes) -> None:
        if "tfevents" in file.path.name:
            raise OSError(errno.ESTALE, "Stale file handle")
        write(file, data)

    monkeypatch.setattr(Appender, "write", fail)
    log_steps(log, 4, 9)
    log.close()
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 10))
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("TensorBoard")]
    assert ("pip install tensorboard" if what == "the package" else "Stale file handle") in line


def test_wandb_offline_keeps_one_run_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    offline = replace(CONFIG, log=LogConfig(tensorboard=False, wandb="offline"))
    for step in (0, 1):
        log = open_log(tmp_path, step, offline)
        log.train_row(step + 1, loss=1.0, lr=1.0, grad_norm=1.0, seconds=1.0)
        log.close()
    run_id = (tmp_path / "wandb_id").read_text()
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) >= 1
    assert all(run_id in folder.name for folder in folders)  # two within a second: the later one gets a number too


@pytest.fixture
def wandb_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Config]]:
    """Write the ~/.netrc of a service at this port, and return a configuration that logs there; stop wandb after."""

    def log_in(port: int) -> Config:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        (tmp_path / ".netrc").write_text(f"machine 127.0.0.1:{port}\n  login user\n  password {'a' * 40}\n")
        return replace(CONFIG, log=LogConfig(tensorboard=False))

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()  # it keeps the address of the service
    yield log_in
    with suppress(ConnectionError):  # its process was killed
        wandb.teardown()


def test_wandb_auto_logs_offline_where_the_service_does_not_answer(
    tmp_path: Path, wandb_login: Callable[[int], Config], capsys: pytest.CaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:  # takes connections, and never answers
        start = time.monotonic()
        log = open_log(tmp_path, config=wandb_login(silent.getsockname()[1]))
        assert time.monotonic() - start < 60
        log.train_row(1, loss=1.0, lr=1.0, grad_norm=1.0, seconds=1.0)
        log.close()
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert f"`wandb sync {tmp_path}/wandb/offline-*` uploads it later" in capsys.readouterr().out


class WandbService(BaseHTTPRequestHandler):
    """The answers that wandb waits for before it logs a run online; none once `silent` is set."""

    silent = threading.Event()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.silent.is_set():
            time.sleep(60)
        answer = {"viewer": {"id": "1", "entity": "me", "username": "me", "teams": {"edges": []}}}
        if b"mutation UpsertBucket" in body:
            name = json.loads(body)["variables"]["name"]
            run = {"id": "1", "name": name, "project": {"name": "p", "entity": {"name": "me"}}}
            answer = {"upsertBucket": {"bucket": run, "inserted": True}}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": answer}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("what", ["the network", "the service's process"])
def test_what_breaks_during_a_wandb_run_costs_nothing(
    tmp_path: Path, wandb_login: Callable[[int], Config], capsys: pytest.CaptureFixture, what: str
) -> None:
    WandbService.silent.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), WandbService) as server:
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        log = open_log(tmp_path, config=wandb_login(server.server_port))
        [folder] = (tmp_path / "wandb").glob("run-*")
        log.write(1, "val", loss=1.0)
        WandbService.silent.set()
        if what != "the network":
            subprocess.run(["pkill", "-KILL", "-P", str(os.getpid()), "wandb-core"], check=True)
        start = time.monotonic()
        for step in range(2, 100):
            log.write(step, "val", loss=1.0)
        assert time.monotonic() - start < 30  # the service answers after 60 s
        log.close()
        assert time.monotonic() - start < 60
        server.shutdown()
    assert len(rows(tmp_path)) == 99
    assert capsys.readouterr().out.count(f"`wandb sync {folder}` uploads it later") == 1


def test_wandb_auto_is_disabled_without_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    log = open_log(tmp_path, config=replace(CONFIG, log=LogConfig(tensorboard=False)))
    assert log.trackers == []
