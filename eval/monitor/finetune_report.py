"""The report of a finished fine-tuning run: scores on held-out test examples, as report.json, a picture and a line."""

import math

from eval.common.curves import plot_confusion
from eval.common.open_model import DIVERGED
from eval.generation.sampling import greedy_answer
from eval.monitor.finetuning import first_question
from eval.scoring.classification import Tally, class_probabilities
from eval.scoring.log_likelihood import sum_loss
from prepare.common.cli import UserError
from prepare.common.files import atomic_write_json
from prepare.tokens.vocabulary import END_OF_TEXT
from train.data.examples import Examples, length_buckets
from train.trainer.trainer import Trainer
from train.weights.load_model import LoadedModel

ANSWERS = 20  # in the report


def report_classifier(trainer: Trainer, best: LoadedModel, test: Examples) -> None:
    """Score the classifier on the test texts: report.json, report.png, a row of metrics.jsonl and a line."""
    if not len(test):
        return
    tally, path = Tally(len(best.labels)), trainer.run.path
    batches = [test.batch(numbers) for numbers in length_buckets(test, trainer.config.data.micro_batch_size)]
    for probabilities, truth in class_probabilities(best.model, batches, trainer.world.device, trainer.context):  # ty: ignore[invalid-argument-type]
        tally.add(probabilities, truth)
    metrics = tally.metrics()
    if not math.isfinite(metrics["loss"]):
        raise UserError(DIVERGED)
    facts = {"model": best.name, "examples": len(test), **metrics, "labels": best.labels}
    atomic_write_json(path / "report.json", {**facts, "confusion": tally.confusion.astype(int).tolist()})
    plot_confusion(metrics, tally.confusion, tally.bins, best.labels, path / "report.png")
    trainer.log.write(trainer.step, "test", **metrics)
    scores = ", ".join(f"{key} {value:.4f}" for key, value in metrics.items())
    trainer.world.print(f"test: {len(test):,} held-out texts: {scores} ({path / 'report.png'})")


def report_instructions(trainer: Trainer, base: LoadedModel, best: LoadedModel, test: Examples) -> None:
    """Score the test answers before and after fine-tuning, and generate answers to the first test prompts: report.json,
    a row of metrics.jsonl and a line."""
    if not len(test):
        return
    size, device, decode = trainer.config.data.micro_batch_size, trainer.world.device, best.tokenizer.decode
    losses = {}
    for name, model in (("before", base.model.to(device)), ("after", best.model)):
        batches = (test.batch(numbers) for numbers in length_buckets(test, size))
        nll, tokens = sum_loss(model, batches, device, trainer.context)
        losses[name] = nll / tokens
    answers = []
    for number in range(min(ANSWERS, len(test))):
        question, wanted = first_question(test, number)
        answer = greedy_answer(best.model, best.tokenizer, question, trainer.config.eval.sample_tokens)
        wanted = decode(wanted).removesuffix(END_OF_TEXT)
        answers.append({"prompt": decode(question), "wanted": wanted, "answer": answer})
    facts = {"model": best.name, "examples": len(test), "loss": losses, "answers": answers}
    atomic_write_json(trainer.run.path / "report.json", facts)
    trainer.log.write(trainer.step, "test", loss=losses["after"], loss_before=losses["before"])
    trainer.world.print(
        f"test: {len(test):,} held-out answers: loss {losses['after']:.4f} nats per token, {losses['before']:.4f} "
        f"before fine-tuning ({trainer.run.path / 'report.json'})"
    )
