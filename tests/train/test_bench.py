"""The training benchmark: its figures, its turns with other programs, its trace, and its mistakes in one line."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from tests.helpers.commands import ROOT, one_line_error, run_command
from tests.helpers.tiny import settings, write_shards
from train import bench
from train.config.pretrain import ModelConfig, OptimConfig, load_config
from train.peers import Peer

SCRIPT = ROOT / "train" / "bench.py"
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


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "train_gpt2.py").write_text(BUILD_NANOGPT)
    (folder / "hellaswag.py").write_text("raise SystemExit('imported')\n")
    return folder


def table(output: str) -> dict[str, list[float]]:
    return {row[0]: [float(word.replace(",", "")) for word in row[1:]] for row in ROW.findall(output)}


def test_programs_take_turns_and_each_has_its_figures(tmp_path: Path, checkout: Path) -> None:
    """15 seconds."""
    data = write_shards(tmp_path / "data")
    command = ["python", SCRIPT, *settings(data, tmp_path / "run"), "--steps", "4", "--warmup", "2"]
    faster, same = "train.seed=1337,model.n_layer=1", "log.every=7"
    result = run_command(*command, "--compare", checkout, faster, same, OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    rows = table(result.stdout)
    assert list(rows) == ["ours", str(checkout), faster, same]
    for median, slowest, fastest, ratio, *phases in rows.values():
        assert slowest <= median <= fastest
        assert ratio == pytest.approx(rows["ours"][0] / median, rel=0.01, abs=0.006)  # printed with two decimals
        assert 0 < max(phases) / 1000 <= 512 / (slowest - 0.5) + 1e-4  # no phase takes longer than the longest step
    assert f"{same}: losses differ by at most 0.0e+00 from ours in 6 steps" in result.stdout
    assert faster + ": losses" not in result.stdout  # another model
    assert "no MFU, since this device's peak is not known" in result.stdout
    assert not (tmp_path / "run").exists()


def test_a_program_that_fails_is_left_out_unless_it_is_the_first(
    tmp_path: Path, checkout: Path, capsys: pytest.CaptureFixture
) -> None:
    (checkout / "train_gpt2.py").write_text(BUILD_NANOGPT.replace("lr=learning_rate", "lr=1 / 0"))
    words = settings(write_shards(tmp_path / "data"), tmp_path / "run")
    ours, theirs = bench.Remote("ours", words), bench.Remote("theirs", [*words, "--peer", str(checkout)])
    try:
        samples = bench.measure([ours, theirs], 2, 1)
        assert {program.name: len(steps) for program, steps in samples.items()} == {"ours": 3}
        assert capsys.readouterr().out == "theirs ended: ZeroDivisionError: division by zero: left out\n"
        with pytest.raises(bench.Ended, match=r"^theirs ended: ZeroDivisionError: division by zero$"):
            bench.measure([theirs, ours], 2, 1)
    finally:
        ours.close(), theirs.close()


def test_two_processes_state_their_all_reduce_and_saves_and_a_trace_is_written(tmp_path: Path) -> None:
    """12 seconds. Without shards the tokens are random."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    changes = {"data__train": tmp_path / "none_*.bin", "data__batch_tokens": 512}
    words = settings(tmp_path, tmp_path / "run", **changes)
    trace = tmp_path / "trace.json"
    command = ["python", *torchrun, SCRIPT, *words, "--steps", "3", "--saves", "2", "--profile", trace]
    result = run_command(*command, OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    assert "512 tokens a step = 2 processes x 2 micro-batches x 4 sequences x 32" in result.stdout
    assert re.search(r"all-reduce of 0.1 MB of gradients: [\d.]+ ms alone; -?[\d.]+ ms are not hidden", result.stdout)
    assert re.search(r"^checkpoints: the loop waited [\d.]+, [\d.]+ ms, at most ", result.stdout, re.MULTILINE)
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::addmm" in names
    heaviest = re.findall(r"^ *\S.*?  +[\d.]+% ", result.stdout, re.MULTILINE)  # names hold spaces, or are cut
    assert len(heaviest) == 10, result.stdout


def test_the_phases_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 3.0, 4.0, 8.0, 9.5])
    monkeypatch.setattr("train.bench.time.perf_counter", lambda: next(moments))
    watch = bench.Stopwatch(torch.device("cpu"))
    for phase in ("forward", "backward", "forward", "backward", "optimizer", "end"):
        watch(phase)
    assert watch.split() == {"forward": 2.0, "backward": 6.0, "optimizer": 1.5}


def test_a_peer_learns_with_its_own_lines(checkout: Path) -> None:
    config = ModelConfig(n_layer=1, n_head=1, n_embd=16, block_size=8, vocab_size=50)
    torch.manual_seed(0)
    peer = Peer(checkout, config, OptimConfig(), torch.device("cpu"))
    x = torch.randint(50, (4, 8))
    losses = [peer.step([(x, x), (x, x)], 1e-2, 1.0, lambda _: None).item() for _ in range(30)]
    assert losses[0] == pytest.approx(4.0, abs=0.5)
    assert losses[-1] < losses[0] - 1


def test_without_a_limit_a_peer_s_gradient_is_not_clipped(checkout: Path) -> None:
    torch.manual_seed(0)
    peer = Peer(checkout, ModelConfig(1, 1, 16, 8, 50), OptimConfig(weight_decay=0.0), torch.device("cpu"))
    x, before = torch.randint(50, (4, 8)), peer.model.lm_head.weight.clone()
    peer.step([(x, x)], 1e-3, 0.0, lambda _: None)
    # the first step of AdamW moves each weight by the learning rate
    assert (peer.model.lm_head.weight - before).abs().max().item() == pytest.approx(1e-3, rel=0.01)


def test_peers_train_with_the_micro_batches_that_ours_found_and_their_losses_are_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    started: dict[str, list[str]] = {}

    class Remote:
        def __init__(self, name: str, words: list[str]) -> None:
            self.name, started[name] = name, words

        def facts(self) -> dict[str, object]:
            facts = {"parameters": 10, "precision": "fp32", "memory": 1, "micro_batches": 2, "micro_batch_size": 6}
            return {"name": self.name, "peer": "--peer" in started[self.name], **facts}

        def run(self, steps: int) -> list[dict[str, float]]:
            return [{"seconds": 1.0, "loss": 5.0, **dict.fromkeys(bench.PHASES, 0.1)}] * steps

        def close(self) -> None:
            pass

    words = settings(tmp_path, tmp_path / "run", data__micro_batch_size="auto")
    options, words = bench.own_options().parse_known_args([*words, "--compare", "theirs", "train.seed=2"])
    monkeypatch.setattr(bench, "Remote", Remote)
    bench.compare(load_config(words, ""), options, words)
    assert started["theirs"] == [*words, "--data.micro_batch_size", "6", "--peer", "theirs"]
    assert started["train.seed=2"] == [*words, "--train.seed", "2"]
    out = capsys.readouterr().out
    assert "train.seed=2: losses differ by at most 0.0e+00" in out
    assert "theirs: losses" not in out


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    words = settings(write_shards(tmp_path / "data"), tmp_path / "run")
    result = run_command("python", SCRIPT, *words, "--compare", tmp_path, OMP_NUM_THREADS="1")
    assert "is no checkout that can be compared: it holds neither nanoGPT's model.py" in one_line_error(result)
    assert "--steps" in one_line_error(run_command("python", SCRIPT, "--steps", "0"), status=2)
    assert "optim.none" in one_line_error(run_command("python", SCRIPT, "--optim.none", "0"), status=2)


def test_the_gpu_benchmark_asks_for_what_there_is() -> None:
    """Its commands cannot run here; each of them, and each change that it compares, is a configuration."""
    result = run_command("make", "-n", "gpu-bench", "PEER=../build-nanogpt", "GPU_PYTHON=python3")
    commands = re.findall(r"python3 train/bench.py (.*)", result.stdout.replace("\\\n", ""))
    assert len(commands) == 5
    assert "-k" in result.stdout  # one table that fails takes no other with it
    compared = []
    for words in map(shlex.split, commands):
        options, rest = bench.own_options().parse_known_args(words)
        for changes in ("", *options.compare):
            compared.append(changes)
            load_config([*rest, *(bench.as_words(changes) if "=" in changes else [])], "")
    assert {"../build-nanogpt", "train.seed=2", "train.precision=fp32", "train.recompute=true"} <= set(compared)
