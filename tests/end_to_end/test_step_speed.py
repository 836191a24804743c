"""The programs that measure a training step run, and their figures hold together."""

import json
import re
from pathlib import Path

import pytest

from tests.helpers.commands import run_command
from tests.helpers.tiny import settings, write_shards

ROW = re.compile(r"^(\S+)" + r" +([\d,.]+)" * 8, re.MULTILINE)

# build-nanogpt's train_gpt2.py in small: an import from its own folder, definitions, and a training run at the end
BUILD_NANOGPT = """
from dataclasses import dataclass
import torch
import torch.nn as nn
from torch.nn import functional as F
from hellaswag import render_example

@dataclass
class GPTConfig:
    vocab_size: int = 50257
    n_embd: int = 768

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, idx, targets=None):
        logits = self.lm_head(self.wte(idx))
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))

    def configure_optimizers(self, weight_decay, learning_rate, device_type):
        if master_process:
            print("using fused AdamW")
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, weight_decay=weight_decay)

import no_such_package
raise SystemExit("trained")
"""


def test_programs_take_turns(tmp_path: Path) -> None:
    checkout = tmp_path / "theirs"
    checkout.mkdir()
    (checkout / "train_gpt2.py").write_text(BUILD_NANOGPT)
    (checkout / "hellaswag.py").write_text("raise SystemExit('imported')\n")
    words = settings(write_shards(tmp_path / "data"), tmp_path / "run", data__micro_batch_size="auto")
    command = ["-m", "tests.programs.compare_training", checkout, "log.every=7", *words, "--steps", 4, "--warmup", 2]
    result = run_command("python", *command)
    assert result.returncode == 0, result.stderr
    rows = {name: [float(n.replace(",", "")) for n in numbers] for name, *numbers in ROW.findall(result.stdout)}
    assert list(rows) == ["ours", str(checkout), "log.every=7"]
    for median, slowest, fastest, ratio, *phases in rows.values():
        assert slowest <= median <= fastest
        assert ratio == pytest.approx(rows["ours"][0] / median, rel=0.01, abs=0.006)  # printed with two decimals
        assert 0 < max(phases) / 1000 <= 512 / (slowest - 0.5) + 1e-4  # no phase takes longer than the longest step
    assert "log.every=7: losses differ by at most 0.0e+00 from ours in 6 steps" in result.stdout
    assert not (tmp_path / "run").exists()


def test_two_processes_and_their_all_reduce_and_trace(tmp_path: Path) -> None:
    """Without shards the tokens are random."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "tests/programs/step_speed.py"]
    changes = {"data__train": tmp_path / "none_*.bin", "data__batch_tokens": 512}
    words = [*settings(tmp_path, tmp_path / "run", **changes), "--steps", "3", "--trace", tmp_path / "trace.json"]
    result = run_command("python", *torchrun, *words)
    assert result.returncode == 0, result.stderr
    assert "512 tokens a step = 2 processes x 2 micro-batches x 4 sequences x 32" in result.stdout
    assert "no MFU" in result.stdout
    assert re.search(r"all-reduce: 0.1 MB of gradients in [\d.]+ ms alone; -?[\d.]+ ms are not hidden", result.stdout)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert "aten::addmm" in {event.get("name") for event in events}
