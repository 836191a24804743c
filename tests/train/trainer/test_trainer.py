"""The training loop's own doings; whole runs are in tests/train/test_train_gpt2.py."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.tiny import VOCAB
from train.config.pretrain import ModelConfig
from train.data.windows import Began
from train.model.gpt import GPT
from train.parallel.world import World
from train.run.stop_request import StopRequest
from train.trainer.trainer import save


def test_slurms_time_limit_leaves_room_for_the_slowest_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 1000))
    monkeypatch.setattr("train.run.stop_request.signal.signal", lambda *_: None)
    stop, saved = StopRequest(tmp_path, 60, is_main=True), []
    saver = SimpleNamespace(slowest=0.0, save=lambda step, _meta: saved.append(step))
    parts = {
        "raw": GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=VOCAB)),
        "world": World(0, 1, torch.device("cpu")),
        "loader": SimpleNamespace(began=Began(), position=lambda step: {"window": step, "epoch": 0}),
        "norms": SimpleNamespace(latest=[]),
    }
    training = SimpleNamespace(**parts, optimizer=None, saver=saver, stop=stop, facts={}, step=7, skipped=0)
    save(training)
    assert not stop.requested()
    saver.slowest = 600.0
    save(training)
    assert saved == [7, 7]
    assert stop.requested()  # twice 600 s are more than what is left
