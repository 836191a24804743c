"""Fine-tune a GPT-2 to classify texts. In one process, or in several under torchrun.

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

import numpy as np
import torch

from eval.common.curves import plot_runs
from eval.monitor.finetune_report import report_classifier
from eval.monitor.finetuning import ClassifyEvaluator
from prepare.common.cli import UserError
from prepare.finetuning.labelled import read_labelled
from train.config.finetune import ClassifyConfig, check_batch, load_classify_config
from train.data.examples import Examples, label_targets, prepare_once, split_examples
from train.model.build import build_classifier
from train.parallel.device import prepare_device
from train.parallel.world import World, init_distributed
from train.run.run_dir import open_run
from train.run.stop_request import StopRequest
from train.trainer.finetune import best_model, data_identity, example_loader, freeze, print_summary, run_identity
from train.trainer.trainer import Trainer, one_line_errors
from train.weights.load_model import LoadedModel, load_model

OPENING = """Fine-tune a model to classify texts; the same command again resumes the run.

    python train/finetune_classify.py --init runs/quickstart --data.train data/SMSSpamCollection

"""


def main() -> None:
    config = load_classify_config(None, OPENING)
    with one_line_errors(config.data.micro_batch_size):
        finetune(config, init_distributed(config.train.device, config.train.timeout_seconds))


def finetune(config: ClassifyConfig, world: World) -> None:
    # The run directory
    check_batch(config, world.size)
    prepare_device(world.device, varying_lengths=True)
    run = open_run(config, world)
    if run is None:
        return
    stop = StopRequest(run.path, config.checkpoint.margin_seconds, world.is_main)

    # The pretrained model and the texts in its tokens, kept in the run directory
    base = load_model(config.init, option="--init")
    key = data_identity(config, base, columns=[config.data.text, config.data.label])
    splits, facts = prepare_once(run.path / "data", key, lambda: make_examples(config, base), world)
    labels = facts["labels"]
    world.print(facts["summary"])

    # The classifier: the model with a new head
    weights = label_weights(config.data.class_weights, splits["train"], len(labels))
    torch.manual_seed(config.train.seed)
    shape = replace(base.model.config, dropout=config.tune.dropout)
    model = build_classifier(shape, len(labels), weights.tolist(), config.train.recompute)
    model.load_state_dict(base.model.state_dict(), strict=False)  # all but the head
    freeze(model, config.tune)
    model.to(world.device)

    # The run
    loader = example_loader(config, world, splits["train"], weights[targets(splits["train"])])
    identity = {**run_identity(config, base, splits), "labels": labels}
    trainer = Trainer(config, world, run, stop, model, loader, identity)
    evaluator = ClassifyEvaluator(trainer, splits["val"])
    print_summary(trainer, splits)
    trainer.train(evaluator.run)
    if world.is_main:
        plot_runs([run.path], run.path / "loss.png", "steps")
        if not trainer.stopped:
            report_classifier(trainer, best_model(trainer, classifier=True), splits["test"])
    trainer.finish()


def make_examples(config: ClassifyConfig, base: LoadedModel) -> tuple[dict[str, Examples], dict[str, Any]]:
    """The texts of data.train in the model's tokens, split into train, val and test, and facts about them."""
    path, size = Path(config.data.train), base.model.config.block_size
    pairs, empty = read_labelled(path, config.data.text, config.data.label, config.data.encoding)
    counts = Counter(label for label, _ in pairs)
    labels = sorted(counts)
    if len(labels) < 2:
        raise UserError(f"{path}: all {len(pairs)} texts are {labels[0]!r}: a classifier needs two labels or more")
    tokens = [base.tokenizer.encode(text) for _, text in pairs]
    rows = [label_targets(row, labels.index(label), size) for row, (label, _) in zip(tokens, pairs, strict=True)]
    # Copies of a text stay together: no held-out text is also trained on.
    texts, strata = [text for _, text in pairs], [label for label, _ in pairs]
    numbers = split_examples(texts, strata, [config.data.val_share, config.data.test_share], config.train.seed)
    splits = {name: Examples.from_rows([rows[number] for number in numbers[name]]) for name in numbers}
    if lacking := set(range(len(labels))) - set(targets(splits["train"]).tolist()):
        raise UserError(f"{path}: no text of {labels[min(lacking)]!r} is left to train on: add some")
    long = sum(len(row) > size for row in tokens)
    summary = (
        f"labels: {', '.join(f'{label} {counts[label]:,}' for label in labels)}\n"
        f"texts:  {len(pairs):,} of {path.name}, {len(set(texts)):,} different; {empty:,} empty ones left out; "
        f"{long:,} longer than the model's {size:,} tokens truncated at the end"
    )
    return splits, {"labels": labels, "counts": counts, "summary": summary}


def targets(examples: Examples) -> np.ndarray:
    """The label of each text, (n,) int32: the target of its last token."""
    return examples.targets[examples.offsets[1:] - 1]


def label_weights(kind: str, train: Examples, labels: int) -> np.ndarray:
    """The weight of each label's texts in the loss, (labels,) float64: 1, or (balanced) n / (labels x its texts)."""
    counts = np.bincount(targets(train), minlength=labels)
    return np.ones(labels) if kind == "none" else len(train) / (labels * counts)
