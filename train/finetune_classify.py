"""Fine-tune a GPT-2 to name the class of a text. Alone, or under torchrun on as many processes as there are.

The whole run is below, top to bottom; the loop, its checkpoints and its log are pretraining's.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from eval.monitor.finetuning import ClassifyEvaluator
from eval.scoring.classification import Tally, class_probabilities, labelled
from eval.scoring.log_likelihood import DIVERGED
from prepare.common.cli import UserError, run_script
from prepare.common.files import atomic_write_json
from prepare.finetuning.labelled import read_labelled
from train.config.finetune import ClassifyConfig, check_batch, load_classify_config
from train.data.examples import PARTS, Examples, bucketed, divide, prepare_once
from train.model.classifier import Classifier
from train.parallel.device import prepare_device
from train.parallel.world import World, init_distributed
from train.run.stop_request import StopRequest
from train.trainer.finetune import assemble, best_model, freeze, identity, initial_model
from train.trainer.job import close, complete, one_line_errors, open_run
from train.trainer.trainer import Training
from train.weights.load_model import LoadedModel

OPENING = """Fine-tune a model to classify texts; the same command again goes on where a run stopped.

    python train/finetune_classify.py --init runs/quickstart --data.train data/SMSSpamCollection

"""


def main() -> None:
    config = load_classify_config(None, OPENING)
    with one_line_errors(config.data.micro_batch_size):
        finetune(config, init_distributed(config.train.device, config.train.timeout_seconds))


def finetune(config: ClassifyConfig, world: World) -> None:
    check_batch(config, world.size)
    prepare_device(world.device, varying_lengths=True)
    run = open_run(config, world)
    if run is None:
        return
    stop = StopRequest(run.path, config.checkpoint.margin_seconds, world.is_main)

    # The model to begin with, and the texts in its tokens, kept in files beside the run.
    base = initial_model(config.init)
    made_of = identity(config, base, columns=[config.data.text, config.data.label])
    parts, about = prepare_once(run.path / "data", made_of, lambda: make_examples(config, base), world)
    world.print(about["summary"])
    labels = about["labels"]

    # The classifier: the model with a head.
    weights = label_weights(config.data.class_weights, parts["train"], len(labels))
    torch.manual_seed(config.train.seed)
    shape = replace(base.model.config, dropout=config.tune.dropout)
    raw = Classifier(shape, len(labels), weights.tolist(), config.train.recompute)
    raw.load_state_dict(base.model.state_dict(), strict=False)  # but for the head
    freeze(raw, config.tune)
    raw.to(world.device)

    # The run, and its end.
    shares = weights[targets(parts["train"])]
    training = assemble(
        config, world, run, stop, base, raw, parts, shares, {"labels": labels},
        lambda model, context, log: ClassifyEvaluator(config, model, parts["val"], context, world, log, stop),
    )  # fmt: skip
    stopped = complete(training)
    if world.is_main:
        from eval.common.curves import plot_runs  # matplotlib, which no other process has to wait for

        plot_runs([run.path], run.path / "loss.png", "steps")
        if not stopped:
            report(training, parts["test"])
    close(training, stopped)


def make_examples(config: ClassifyConfig, base: LoadedModel) -> tuple[dict[str, Examples], dict[str, Any]]:
    """The texts of the file in the model's tokens, divided, and what is to be known of them."""
    path, size = Path(config.data.train), base.model.config.block_size
    pairs, empty = read_labelled(path, config.data.text, config.data.label)
    counts = Counter(label for label, _ in pairs)
    labels = sorted(counts)
    if len(labels) < 2:
        raise UserError(f"{path}: all {len(pairs)} texts are {labels[0]!r}: a classifier needs two labels or more")
    tokens = [base.tokenizer.encode(text) for _, text in pairs]
    rows = [labelled(row, labels.index(label), size) for row, (label, _) in zip(tokens, pairs, strict=True)]
    # Copies of a text stay together: what is held out is nowhere in what is learnt.
    texts, strata = [text for _, text in pairs], [label for label, _ in pairs]
    *held_out, train = divide(texts, strata, [config.data.val_share, config.data.test_share], config.train.seed)
    chosen = dict(zip(PARTS, [train, *held_out], strict=True))
    parts = {name: Examples.of([rows[number] for number in numbers]) for name, numbers in chosen.items()}
    if lacking := set(range(len(labels))) - set(targets(parts["train"]).tolist()):
        raise UserError(f"{path}: no text of {labels[min(lacking)]!r} is left to train on: add some")
    long = sum(len(row) > size for row in tokens)
    summary = (
        f"labels: {', '.join(f'{label} {counts[label]:,}' for label in labels)}\n"
        f"texts:  {len(pairs):,} of {path.name}, {len(set(texts)):,} of them different; {empty:,} empty ones left out; "
        f"{long:,} longer than the model's {size:,} tokens lost their end"
    )
    return parts, {"labels": labels, "counts": counts, "summary": summary}


def targets(examples: Examples) -> np.ndarray:
    """The label of each text: the target of its last token."""
    return examples.targets[examples.offsets[1:] - 1]


def label_weights(kind: str, train: Examples, labels: int) -> np.ndarray:
    """What a text of each label counts, float64: 1, or (balanced) n / (labels x texts with this label)."""
    counts = np.bincount(targets(train), minlength=labels)
    return np.ones(labels) if kind == "none" else len(train) / (labels * counts)


def report(training: Training, test: Examples) -> None:
    """What the run has achieved, on texts that had no part in it: report.json, report.png and a line."""
    from eval.common.curves import plot_confusion  # matplotlib: as above

    best = best_model(training, classifier=True)
    if not len(test):
        return
    tally, path = Tally(len(best.labels)), training.run.path
    batches = [test.batch(numbers) for numbers in bucketed(test, training.config.data.micro_batch_size)]
    for probabilities, truth in class_probabilities(best.model, batches, training.world.device, training.context):
        tally.add(probabilities, truth)
    metrics = tally.metrics()
    if not math.isfinite(metrics["loss"]):
        raise UserError(DIVERGED)
    facts = {"model": best.name, "examples": len(test), **metrics, "labels": best.labels}
    atomic_write_json(path / "report.json", {**facts, "confusion": tally.confusion.astype(int).tolist()})
    plot_confusion(tally, best.labels, path / "report.png")
    training.log.write(training.step, "test", **metrics)
    words = ", ".join(f"{key} {value:.4f}" for key, value in metrics.items())
    training.world.print(f"test: {len(test):,} texts held out: {words} ({path / 'report.png'})")


if __name__ == "__main__":
    run_script(main)
