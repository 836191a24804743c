"""The schedule as a function of the step, and which parameters decay."""

import math
import operator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.helpers.commands import ROOT, run_command
from train.config.pretrain import ModelConfig, OptimConfig
from train.model.build import build_classifier
from train.model.gpt import GPT
from train.trainer.optim import build_optimizer, learning_rate


def test_warmup_is_linear_and_the_last_step_reaches_min_lr() -> None:
    optim = OptimConfig(max_lr=6e-4, min_lr=6e-5, warmup_steps=10)
    rates = [learning_rate(step, optim, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([6e-4 * (step + 1) / 10 for step in range(10)])
    assert rates[-1] == pytest.approx(6e-5)
    assert [learning_rate(step, optim, 100) for step in (100, 150)] == pytest.approx([6e-5, 6e-5])  # it stays there
    assert all(later < earlier for earlier, later in pairwise(rates[9:]))


def test_cosine_follows_its_formula() -> None:
    optim = OptimConfig(max_lr=1.0, min_lr=0.2, warmup_steps=5)
    for step in range(5, 25):
        done = (step + 1 - 5) / 20
        assert learning_rate(step, optim, 25) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * done)))


def test_linear_and_constant() -> None:
    linear = OptimConfig(max_lr=1.0, min_lr=0.0, warmup_steps=2, schedule="linear")
    assert [learning_rate(step, linear, 6) for step in range(6)] == pytest.approx([0.5, 1.0, 0.75, 0.5, 0.25, 0.0])
    constant = OptimConfig(max_lr=1.0, warmup_steps=2, schedule="constant")
    assert [learning_rate(step, constant, 4) for step in range(4)] == pytest.approx([0.5, 1.0, 1.0, 1.0])
    for schedule in ("cosine", "linear"):  # a run shorter than its warmup only warms up
        short = OptimConfig(max_lr=1.0, warmup_steps=10, schedule=schedule)
        assert learning_rate(3, short, 4) == pytest.approx(0.4)


def test_wsd_is_constant_then_linear_over_the_last_steps() -> None:
    wsd = OptimConfig(max_lr=1.0, min_lr=0.2, warmup_steps=2, schedule="wsd", cooldown=0.4)
    rates = [learning_rate(step, wsd, 10) for step in range(11)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2])
    assert [learning_rate(step, wsd, 30) for step in range(6)] == rates[:6]  # a longer run, to the last bit
    whole = OptimConfig(max_lr=1.0, warmup_steps=3, schedule="wsd", cooldown=1.0)  # only the warmup comes first
    linear = OptimConfig(max_lr=1.0, warmup_steps=3, schedule="linear")
    assert all(learning_rate(step, whole, 9) == learning_rate(step, linear, 9) for step in range(9))


def test_each_group_has_its_learning_rate_and_without_one_the_hidden_matrices() -> None:
    """In a checkpoint the parameters are in the groups' order, which is that of older checkpoints."""
    model = build_classifier(ModelConfig(n_layer=2, n_head=2, n_embd=8, block_size=4, vocab_size=16), labels=3)
    model.h[0].requires_grad_(False)
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() == 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() == 1]
    rates = OptimConfig(max_lr=0.01, embedding_lr=0.02, vector_lr=0.03)
    groups = {group["name"]: group for group in build_optimizer(model, rates).param_groups}
    assert {name: group["lr_scale"] for name, group in groups.items()} == pytest.approx(
        {"embeddings": 2.0, "hidden": 1.0, "head": 1.0, "vectors": 3.0}
    )
    counted = [p for group in groups.values() for p in group["params"]]
    assert all(map(operator.is_, counted, [*matrices, *vectors]))
    assert groups["embeddings"]["params"] == [model.wte.weight, model.wpe.weight]
    assert groups["head"]["params"] == [model.score.weight]
    muon = {group["name"]: group for group in build_optimizer(model, replace(rates, optimizer="muon")).param_groups}
    assert muon["qkv"]["params"] == [model.h[1].attn.c_attn.weight]
    assert {name: group.get("matrices") for name, group in muon.items()} == {
        "embeddings": None,
        "qkv": 3,
        "hidden": 1,
        "head": None,
        "vectors": None,
    }


def test_only_matrices_decay() -> None:
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=32))
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if name.endswith("bias") or ".ln_" in name or "ln_f" in name else 0.1), name


def test_one_step_is_adamws_formula_in_float64() -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=4, vocab_size=16))
    optim = OptimConfig(max_lr=0.01, weight_decay=0.5)
    optimizer = build_optimizer(model, optim)
    before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad.double()
        decayed = before[name] * (1 - 0.01 * (0.5 if parameter.dim() == 2 else 0.0))
        # after one step both moments are the gradient itself, once their bias is corrected
        expected = decayed - 0.01 * gradient / (gradient.abs() + optim.eps)
        torch.testing.assert_close(parameter.detach().double(), expected, atol=1e-7, rtol=1e-6)


SHARDED = """
import copy, torch, torch.distributed as dist
from train.config.pretrain import ModelConfig, OptimConfig
from train.model.gpt import GPT
from train.run.resume import gather_moments, load_moments
from train.trainer.optim import build_optimizer
dist.init_process_group("gloo")

def model():
    torch.manual_seed(0)
    return GPT(ModelConfig(n_layer=3, n_head=2, n_embd=16, block_size=8, vocab_size=32))

def step(model, optimizer, number):
    for parameter in model.parameters():
        parameter.grad = torch.sin(parameter.detach() * 50 + number)
    optimizer.step()

def same(one, other):
    assert all(map(torch.equal, one.parameters(), other.parameters()))

for algorithm in ("adamw", "muon"):
    config = OptimConfig(optimizer=algorithm)
    plain, sharded, resumed, spread = model(), model(), model(), model()
    world = {"rank": dist.get_rank(), "world_size": 2}
    optimizers = [build_optimizer(plain, config)]
    optimizers += [build_optimizer(m, config, **world, sharded=m is not spread) for m in (sharded, resumed, spread)]
    for number in range(5):
        step(plain, optimizers[0], number), step(sharded, optimizers[1], number), step(spread, optimizers[3], number)
    same(plain, sharded)
    same(plain, spread)
    theirs = optimizers[0].state_dict()["state"]
    size = lambda states: sum(tensor.numel() for state in states for tensor in state.values())
    assert 0.4 < size(optimizers[1].optim.state.values()) / size(theirs.values()) < 0.6

    gather_moments(optimizers[1])
    saved = [optimizers[1].state_dict()["state"] if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(saved, 0)
    assert saved[0].keys() == theirs.keys()
    assert all(torch.equal(saved[0][i][key], theirs[i][key]) for i in theirs for key in theirs[i])
    resumed.load_state_dict(sharded.state_dict())
    load_moments(optimizers[2], copy.deepcopy(saved[0]))  # which are taken as they are
    assert not optimizers[2].state  # no second copy of the moments
    alone = model()
    alone.load_state_dict(sharded.state_dict())
    optimizer = build_optimizer(alone, config)
    load_moments(optimizer, saved[0])
    step(plain, optimizers[0], 5), step(resumed, optimizers[2], 5), step(alone, optimizer, 5)
    same(plain, resumed)
    same(plain, alone)
dist.destroy_process_group()
"""


def test_two_ranks_make_the_same_steps(tmp_path: Path) -> None:
    """7 seconds: AdamW and Muon, bit for bit, with half of the state each or all of it, through a save, and resumed on
    two ranks and on one."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = run_command("python", *torchrun, script, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr
