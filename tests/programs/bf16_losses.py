"""The recipe's losses in bf16 compared with float32's, step by step, on a CPU without bf16 instructions.

python -m tests.programs.bf16_losses SHARDS [STEPS] [BATCH_TOKENS]     # 124M, T = 1024; on two cores half an hour

Products of bf16 matrices are computed as tensor cores do: bf16 operands, summed in float32, rounded once to bf16. In
float32 arithmetic that equals PyTorch's own emulation to the last bit, and is much faster.
"""

import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prepare.common.cli import ROOT
from tests.programs.step_speed import StepBench
from train.config.pretrain import load_config
from train.parallel import device as hardware
from train.parallel.world import init_distributed

PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)


class InFloat32(TorchDispatchMode):
    """Products of bf16 matrices in float32, their results rounded to bf16."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in PRODUCTS or args[-1].dtype != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        return func(*(matrix.float() for matrix in args), **(kwargs or {})).bfloat16()


def losses(shards: str, steps: int, batch_tokens: int, precision: str) -> list[float]:
    words = ["--config", str(ROOT / "configs" / "gpt2_124m.yaml"), "--data.train", shards, "--train.device", "cpu"]
    words += ["--data.batch_tokens", str(batch_tokens), "--data.micro_batch_size", "4", "--train.compile", "false"]
    config = load_config([*words, "--train.precision", precision], "")
    with tempfile.TemporaryDirectory() as folder:
        bench = StepBench(config, init_distributed("cpu"), Path(folder))
    print(f"{precision}: autocast is {'on' if bench.context._enabled else 'off'}", flush=True)
    found = []
    for step in range(steps):
        taken = bench.run(1)[0]
        found.append(taken["loss"])
        print(f"{precision} step {step}: loss {taken['loss']:.5f}, {taken['seconds']:.1f} s", flush=True)
    return found


def main(shards: str, steps: int = 50, batch_tokens: int = 4096) -> None:
    with mock.patch.object(hardware, "_cpu_has_bf16", return_value=True), InFloat32():
        rounded = losses(shards, steps, batch_tokens, "bf16")
    exact = losses(shards, steps, batch_tokens, "fp32")
    gaps = [abs(a - b) for a, b in zip(rounded, exact, strict=True)]
    print("gaps:", " ".join(f"{gap:.1e}" for gap in gaps))
    print(f"largest {max(gaps):.1e}, at step {gaps.index(max(gaps))}; losses {exact[0]:.4f} to {exact[-1]:.4f}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
