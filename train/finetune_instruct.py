"""Fine-tune a GPT-2 to follow instructions. In one process, or in several under torchrun.

A whole run is `finetune` below (what is built) and Trainer.train in train/trainer/trainer.py (the loop).
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__, unattended=True)  # imports this file as a module, runs its main, and exits

from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from eval.common.curves import plot_runs
from eval.monitor.finetune_report import report_instructions
from eval.monitor.finetuning import InstructEvaluator
from prepare.common.cli import UserError
from prepare.finetuning.instructions import encode_conversation, read_instructions
from train.config.finetune import InstructConfig, check_batch, load_instruct_config
from train.data.examples import Examples, next_token_targets, prepare_once, split_examples
from train.model.build import build_model
from train.parallel.device import prepare_device
from train.parallel.world import World, init_distributed
from train.run.run_dir import open_run
from train.run.stop_request import StopRequest
from train.trainer.finetune import best_model, data_identity, example_loader, freeze, print_summary, run_identity
from train.trainer.trainer import Trainer, one_line_errors
from train.weights.load_model import LoadedModel, load_model

OPENING = """Fine-tune a model to follow instructions; the same command again resumes the run.

    python train/finetune_instruct.py --init runs/quickstart --data.train data/instruction-data.json

"""


def main() -> None:
    config = load_instruct_config(None, OPENING)
    with one_line_errors(config.data.micro_batch_size):
        finetune(config, init_distributed(config.train.device, config.train.timeout_seconds))


def finetune(config: InstructConfig, world: World) -> None:
    # The run directory
    check_batch(config, world.size)
    prepare_device(world.device, varying_lengths=True)
    run = open_run(config, world)
    if run is None:
        return
    stop = StopRequest(run.path, config.checkpoint.margin_seconds, world.is_main)

    # The pretrained model and the examples in its tokens, kept in the run directory
    base = load_model(config.init, option="--init")
    key = data_identity(config, base, template=config.template.describe())
    splits, facts = prepare_once(run.path / "data", key, lambda: make_examples(config, base), world)
    world.print(facts["summary"])

    # The model
    torch.manual_seed(config.train.seed)
    model = build_model(replace(base.model.config, dropout=config.tune.dropout), config.train.recompute)
    model.load_state_dict(base.model.state_dict())
    freeze(model, config.tune)
    model.to(world.device)

    # The run: each example's share of the loss is its number of targets
    loader = example_loader(config, world, splits["train"], splits["train"].num_targets.astype(float))
    template = {"template": config.template.describe(), "converses": facts["converses"]}
    trainer = Trainer(config, world, run, stop, model, loader, run_identity(config, base, splits) | template)
    evaluator = InstructEvaluator(trainer, splits["val"], base.tokenizer)
    print_summary(trainer, splits)
    trainer.train(evaluator.run)
    if world.is_main:
        plot_runs([run.path], run.path / "loss.png", "steps")
        if not trainer.stopped:
            report_instructions(trainer, base, best_model(trainer, classifier=False), splits["test"])
    trainer.finish()


def make_examples(config: InstructConfig, base: LoadedModel) -> tuple[dict[str, Examples], dict[str, Any]]:
    """The examples of data.train in the model's tokens, split into train, val and test, and facts about them."""
    path, size = Path(config.data.train), base.model.config.block_size
    if base.tokenizer.eot is None:
        raise UserError(f"--init {config.init} has no end-of-text token to end an answer with: take a BPE model")
    conversations, empty = read_instructions(path, config.data.encoding)
    encoded = [encode_conversation(messages, base.tokenizer, config.template, size + 1) for messages in conversations]
    if not all(any(loss_mask[1:]) for _, loss_mask, _ in encoded):
        raise UserError(f"the model's {size} tokens leave no room for an answer after template.assistant: shorten it")
    rows = [next_token_targets(tokens, loss_mask) for tokens, loss_mask, _ in encoded]
    # Copies of an instruction stay together: no held-out instruction is also trained on.
    questions = [repr(messages[:-1]) for messages in conversations]
    shares = [config.data.val_share, config.data.test_share]
    numbers = split_examples(questions, [""] * len(rows), shares, config.train.seed)
    splits = {name: Examples.from_rows([rows[number] for number in numbers[name]]) for name in numbers}
    if not len(splits["train"]):
        raise UserError(f"{path}: of {len(rows)} examples none is left to train on: add some")
    turns = [sum(role == "assistant" for role, _ in messages) for messages in conversations]
    cuts = Counter(cut for *_, cut in encoded)
    summary = (
        f"template: {config.template.write('user', '...')!r} + {config.template.assistant!r}\n"
        f"examples: {len(rows):,} of {path.name}, {sum(turns):,} answers, "
        f"{sum(int(split.num_targets.sum()) for split in splits.values()):,} tokens in the loss mask; {empty:,} with "
        f"an empty instruction or answer left out; longer than the model's {size:,} tokens: {cuts['prompt']:,} "
        f"truncated at the beginning of their prompt, {cuts['answer']:,} at the end of their answer too"
    )
    return splits, {"summary": summary, "converses": max(turns) > 1}
