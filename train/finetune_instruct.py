"""Fine-tune a GPT-2 to follow instructions. Alone, or under torchrun on as many processes as there are.

The whole run is below, top to bottom; the loop, its checkpoints and its log are pretraining's.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from eval.generation.answers import first_question, greedy_answers
from eval.monitor.finetuning import InstructEvaluator
from eval.scoring.log_likelihood import sum_loss
from prepare.common.cli import UserError, run_script
from prepare.common.files import atomic_write_json
from prepare.finetuning.instructions import encode, read_instructions
from train.config.finetune import InstructConfig, check_batch, load_instruct_config
from train.data.examples import PARTS, Examples, bucketed, divide, next_tokens, prepare_once
from train.model.gpt import GPT
from train.parallel.device import prepare_device
from train.parallel.world import World, init_distributed
from train.run.stop_request import StopRequest
from train.trainer.finetune import assemble, best_model, freeze, identity, initial_model
from train.trainer.job import close, complete, one_line_errors, open_run
from train.trainer.trainer import Training
from train.weights.load_model import LoadedModel

ANSWERS = 20  # in the report
OPENING = """Fine-tune a model to follow instructions; the same command again goes on where a run stopped.

    python train/finetune_instruct.py --init runs/quickstart --data.train data/instruction-data.json

"""


def main() -> None:
    config = load_instruct_config(None, OPENING)
    with one_line_errors(config.data.micro_batch_size):
        finetune(config, init_distributed(config.train.device, config.train.timeout_seconds))


def finetune(config: InstructConfig, world: World) -> None:
    check_batch(config, world.size)
    prepare_device(world.device, varying_lengths=True)
    run = open_run(config, world)
    if run is None:
        return
    stop = StopRequest(run.path, config.checkpoint.margin_seconds, world.is_main)

    # The model to begin with, and the examples in its tokens, kept in files beside the run.
    base = initial_model(config.init)
    made_of = identity(config, base, template=config.template.describe())
    parts, about = prepare_once(run.path / "data", made_of, lambda: make_examples(config, base), world)
    world.print(about["summary"])
    torch.manual_seed(config.train.seed)
    raw = GPT(replace(base.model.config, dropout=config.tune.dropout), config.train.recompute)
    raw.load_state_dict(base.model.state_dict())
    freeze(raw, config.tune)
    raw.to(world.device)

    # The run, and its end. Each example counts as much as it has tokens to learn.
    facts = {"template": config.template.describe(), "converses": about["converses"]}
    shares = parts["train"].counted.astype(float)
    training = assemble(
        config, world, run, stop, base, raw, parts, shares, facts,
        lambda model, context, log: InstructEvaluator(
            config, model, parts["val"], base.tokenizer, context, world, log, stop
        ),
    )  # fmt: skip
    stopped = complete(training)
    if world.is_main:
        from eval.common.curves import plot_runs  # matplotlib, which no other process has to wait for

        plot_runs([run.path], run.path / "loss.png", "steps")
        if not stopped:
            report(training, parts["test"], base)
    close(training, stopped)


def make_examples(config: InstructConfig, base: LoadedModel) -> tuple[dict[str, Examples], dict[str, Any]]:
    """The examples of the file in the model's tokens, divided, and what is to be known of them."""
    path, size = Path(config.data.train), base.model.config.block_size
    if base.tokenizer.eot is None:
        raise UserError(f"--init {config.init} has no end-of-text token to end an answer with: take a BPE model")
    conversations, empty = read_instructions(path)
    encoded = [encode(messages, base.tokenizer, config.template, size + 1) for messages in conversations]
    if not all(any(learnt[1:]) for _, learnt, _ in encoded):
        raise UserError(f"the model's {size} tokens leave no room for an answer behind template.assistant: shorten it")
    rows = [next_tokens(tokens, learnt) for tokens, learnt, _ in encoded]
    # Copies of an instruction stay together: what is held out is nowhere in what is learnt.
    questions = [repr(messages[:-1]) for messages in conversations]
    shares = [config.data.val_share, config.data.test_share]
    *held_out, train = divide(questions, [""] * len(rows), shares, config.train.seed)
    chosen = dict(zip(PARTS, [train, *held_out], strict=True))
    parts = {name: Examples.of([rows[number] for number in numbers]) for name, numbers in chosen.items()}
    if not len(parts["train"]):
        raise UserError(f"{path}: of {len(rows)} examples none is left to train on: add some")
    turns = [sum(role == "assistant" for role, _ in messages) for messages in conversations]
    cuts = Counter(cut for *_, cut in encoded)
    summary = (
        f"template: {config.template.write('user', '...')!r} + {config.template.assistant!r}\n"
        f"examples: {len(rows):,} of {path.name}, {sum(turns):,} answers, "
        f"{sum(int(part.counted.sum()) for part in parts.values()):,} tokens to learn; {empty:,} left out, with an "
        f"empty instruction or answer; longer than the model's {size:,} tokens: {cuts['prompt']:,} lost the beginning "
        f"of their prompt, {cuts['answer']:,} the end of their answer too"
    )
    return parts, {"summary": summary, "converses": max(turns) > 1}


def report(training: Training, test: Examples, base: LoadedModel) -> None:
    """The loss on answers that had no part in the run, before it and after it, and the first answers as they are."""
    best = best_model(training, classifier=False)
    if not len(test):
        return
    size, device, text = training.config.data.micro_batch_size, training.world.device, best.tokenizer.decode
    losses = {}
    for name, model in (("before", base.model.to(device)), ("after", best.model)):
        batches = (test.batch(numbers) for numbers in bucketed(test, size))
        nll, tokens = sum_loss(model, batches, device, training.context)
        losses[name] = nll / tokens
    asked, wanted = zip(*(first_question(test, number) for number in range(min(ANSWERS, len(test)))), strict=True)
    given = greedy_answers(best.model, best.tokenizer, asked, training.config.eval.sample_tokens)
    answers = [
        {"prompt": text(prompt), "wanted": text(answer).removesuffix("<|endoftext|>"), "answer": ours}
        for prompt, answer, ours in zip(asked, wanted, given, strict=True)
    ]
    facts = {"model": best.name, "examples": len(test), "loss": losses, "answers": answers}
    atomic_write_json(training.run.path / "report.json", facts)
    training.log.write(training.step, "test", loss=losses["after"], loss_before=losses["before"])
    training.world.print(
        f"test: {len(test):,} answers held out: loss {losses['after']:.4f} nats a token, {losses['before']:.4f} before "
        f"({training.run.path / 'report.json'})"
    )


if __name__ == "__main__":
    run_script(main)
