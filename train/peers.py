"""Other programs' training steps, from their checkouts as they are: nanoGPT's model.py, build-nanogpt's train_gpt2.py.

Both train with the same lines: forward passes and backward passes of the micro-batches, the gradient clipped, AdamW.
Model, AdamW's settings and precision are the program's own.
"""

import ast
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from prepare.common.cli import UserError
from train.config.pretrain import ModelConfig, OptimConfig
from train.trainer.step import MicroBatch

PROGRAMS = {"nanoGPT": "model.py", "build-nanogpt": "train_gpt2.py"}  # the file that defines GPT


class Peer:
    """A checkout's model and optimizer, and its step."""

    def __init__(self, folder: Path, config: ModelConfig, optim: OptimConfig, device: torch.device) -> None:
        """Raises UserError: the folder is neither program's checkout."""
        self.name, path = find_program(folder)
        program = definitions(path)
        shape = {field.name: getattr(config, field.name) for field in fields(program.GPTConfig)}
        if config.vocab_size == 50257:
            shape["vocab_size"] = 50304  # as both of them train
        model = program.GPT(program.GPTConfig(**shape)).to(device)
        own = {"weight_decay": optim.weight_decay, "learning_rate": optim.max_lr, "device_type": device.type}
        if self.name == "nanoGPT":
            own["betas"] = optim.betas
        self.model: nn.Module = model
        self.optimizer = model.configure_optimizers(**own)
        self.context = torch.autocast(device.type, dtype=torch.bfloat16)
        if self.name == "nanoGPT" and device.type == "cpu":
            self.context = torch.autocast("cpu", enabled=False)  # its train.py: float32 there
        torch.set_float32_matmul_precision("high")  # both allow TF32

    def step(
        self, micro_batches: Sequence[MicroBatch], lr: float, grad_clip: float, mark: Callable[[str], None]
    ) -> Tensor:
        """What both programs do in a step; returns the mean loss. `mark` as in train/trainer/step.py."""
        device = next(self.model.parameters()).device
        total = torch.zeros((), device=device)
        for inputs, targets in micro_batches:
            x, y = inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            mark("forward")
            with self.context:
                _, loss = self.model(x, y)
                loss = loss / len(micro_batches)
            total += loss.detach()
            mark("backward")
            loss.backward()
        mark("optimizer")
        nn.utils.clip_grad_norm_(self.model.parameters(), grad_clip or float("inf"))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        mark("end")
        return total


def find_program(folder: Path) -> tuple[str, Path]:
    """Which program's checkout a folder is, and the file that defines its GPT."""
    for name, file in PROGRAMS.items():
        path = folder / file
        if path.is_file() and "class GPTConfig" in path.read_text():
            return name, path
    files = " or ".join(f"{name}'s {file}" for name, file in PROGRAMS.items())
    raise UserError(f"{folder} is no checkout that can be compared: it holds neither {files}")


def definitions(path: Path) -> ModuleType:
    """A module of a script's classes and functions alone: nothing is trained, and what only training imports is not."""
    tree = ast.parse(path.read_text())
    first_class = next(node.lineno for node in tree.body if isinstance(node, ast.ClassDef))

    def needed(node: ast.stmt) -> bool:
        if isinstance(node, ast.ImportFrom) and (path.parent / f"{node.module}.py").exists():
            return False  # the checkout's own, with imports of its own
        imports = isinstance(node, ast.Import | ast.ImportFrom) and node.lineno < first_class
        return imports or isinstance(node, ast.ClassDef | ast.FunctionDef)

    tree.body = [node for node in tree.body if needed(node)]
    module = ModuleType(f"peer_{path.stem}")
    module.__file__ = str(path)
    module.master_process = False  # build-nanogpt's configure_optimizers looks at it
    sys.modules[module.__name__] = module  # where dataclasses and torch.compile look
    exec(compile(tree, str(path), "exec"), module.__dict__)
    return module
