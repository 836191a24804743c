"""The training benchmark: its figures, its trace, and the comparison with other programs."""

import json
import re
from pathlib import Path

import pytest
import torch

from tests.helpers.commands import ROOT, run_command
from tests.helpers.tiny import settings, write_shards
from tests.programs import step_speed

SCRIPT = ROOT / "tests" / "programs" / "step_speed.py"
ROW = re.compile(r"^(\S+)" + r" +([\d,.]+)" * 8, re.MULTILINE)

# build-nanogpt's train_gpt2.py in small: definitions, an import from its own folder, and a training run at the end
BUILD_NANOGPT = """
import inspect
from dataclasses import dataclass
import torch
import torch.nn as nn
from torch.nn import functional as F
from hellaswag import render_example

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x):
        return x + self.fc(x)

@dataclass
class GPTConfig:
    block_size: int = 1024
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, idx, targets=None):
        x = self.wte(idx)
        for block in self.h:
            x = block(x)
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))

    def configure_optimizers(self, weight_decay, learning_rate, device_type):
        if master_process:
            print("using fused AdamW")
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, weight_decay=weight_decay)

class DataLoaderLite:
    pass

import no_such_package
raise SystemExit("trained")
"""


def test_programs_take_turns_and_one_that_fails_is_left_out(tmp_path: Path) -> None:
    """15 seconds."""
    checkout, broken = tmp_path / "theirs", tmp_path / "broken"
    for folder, code in ((checkout, BUILD_NANOGPT), (broken, BUILD_NANOGPT.replace("lr=learning_rate", "lr=1 / 0"))):
        folder.mkdir()
        (folder / "train_gpt2.py").write_text(code)
        (folder / "hellaswag.py").write_text("raise SystemExit('imported')\n")
    data, smaller, same = write_shards(tmp_path / "data"), "train.seed=1337,model.n_layer=1", "log.every=7"
    command = ["python", "-m", "tests.programs.compare_training", checkout, broken, smaller, same]
    words = settings(data, tmp_path / "run", data__micro_batch_size="auto")
    result = run_command(*command, *words, "--steps", "4", "--warmup", "2", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    rows = {name: [float(n.replace(",", "")) for n in numbers] for name, *numbers in ROW.findall(result.stdout)}
    assert list(rows) == ["ours", str(checkout), smaller, same]
    for median, slowest, fastest, ratio, *phases in rows.values():
        assert slowest <= median <= fastest
        assert ratio == pytest.approx(rows["ours"][0] / median, rel=0.01, abs=0.006)  # printed with two decimals
        assert 0 < max(phases) / 1000 <= 512 / (slowest - 0.5) + 1e-4  # no phase takes longer than the longest step
    assert f"{broken} has ended, with the error above: left out" in result.stdout
    assert "ZeroDivisionError" in result.stderr
    assert f"{same}: losses differ by at most 0.0e+00 from ours in 6 steps" in result.stdout
    assert smaller + ": losses" not in result.stdout  # another model
    assert not (tmp_path / "run").exists()


def test_two_processes_and_their_all_reduce_and_trace(tmp_path: Path) -> None:
    """Without shards the tokens are random."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    changes = {"data__train": tmp_path / "none_*.bin", "data__batch_tokens": 512}
    words = settings(tmp_path, tmp_path / "run", **changes)
    trace = tmp_path / "trace.json"
    result = run_command("python", *torchrun, SCRIPT, *words, "--steps", "3", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    assert "512 tokens a step = 2 processes x 2 micro-batches x 4 sequences x 32" in result.stdout
    slowest, fastest = re.search(r"slowest ([\d,]+), fastest ([\d,]+)", result.stdout).groups()
    assert 0 < int(slowest.replace(",", "")) <= int(fastest.replace(",", ""))
    assert "no MFU" in result.stdout
    profile = ROOT / "tests" / "programs" / "profile_step.py"
    result = run_command("python", *torchrun, profile, trace, *words, OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    assert re.search(r"all-reduce: 0.1 MB of gradients in [\d.]+ ms alone; -?[\d.]+ ms are not hidden", result.stdout)
    assert "aten::addmm" in {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    heaviest = re.findall(r"^ *\S.*?  +[\d.]+% ", result.stdout, re.MULTILINE)  # names hold spaces, or are cut
    assert len(heaviest) == 10, result.stdout


def test_the_phases_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 3.0, 4.0, 8.0, 9.5])
    monkeypatch.setattr("tests.programs.step_speed.time.perf_counter", lambda: next(moments))
    watch = step_speed.Stopwatch(torch.device("cpu"))
    for phase in ("forward", "backward", "forward", "backward", "optimizer", "end"):
        watch(phase)
    assert watch.split() == {"forward": 2.0, "backward": 6.0, "optimizer": 1.5}
