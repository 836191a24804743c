"""Early stopping, which depends only on the validation losses in the log, and each rank's share of a validation."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval.monitor.finetuning import FinetuneEvaluator, first_question
from tests.helpers.finetuning import random_examples
from train.config.finetune import ClassifyConfig, ClassifyEval, LabelledData
from train.config.pretrain import LogConfig, TrainConfig
from train.data.examples import Examples
from train.model.loss import IGNORE_INDEX
from train.parallel.world import World
from train.run.metrics_log import MetricsLog

MAIN = World(0, 1, torch.device("cpu"))


def evaluator(folder: Path, losses: Sequence[float], patience: int = 2, done: int = 0) -> FinetuneEvaluator:
    """Of a run of 20 steps resumed at `done`, whose validations, every second step, give these losses."""
    config = ClassifyConfig(
        data=LabelledData(micro_batch_size=3),
        train=TrainConfig(max_steps=20),
        eval=ClassifyEval(every=2, patience=patience),
        log=LogConfig(tensorboard=False, wandb="disabled"),
    )
    log = MetricsLog(folder, config, done, 0, MAIN, tokens_read=lambda step: step)
    stop, values = SimpleNamespace(requested=lambda: False), iter(losses)
    trainer = SimpleNamespace(config=config, world=MAIN, log=log, stop=stop, model=None, context=None)
    return FinetuneEvaluator(trainer, random_examples(50), {"val": lambda: {"loss": next(values)}})


def last_step(evaluator: FinetuneEvaluator, first: int = 0) -> int | None:
    """The step at which it stops the run."""
    return next((step for step in range(first, 21) if evaluator.run(step)), None)


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([5, 4, 4.5, 4.1, 1], 2, 6),  # neither 4.5 nor 4.1 is better than 4
        ([5, 4, 4.5, 3.9, 4, 4], 2, 10),  # the count restarts at 3.9
        ([5, 5, 5, 1], 2, 4),  # equal is not better
        ([5, 6, 1], 1, 2),
        ([5, 4, 3, 2, 1, 2, 1, 0.9, 0.8, 0.7, 0.6], 3, None),
        ([5] * 11, 0, None),
    ],
)
def test_a_run_stops_after_patience_validations_without_a_lower_loss(
    losses: Sequence[float], patience: int, expected: int | None, tmp_path: Path
) -> None:
    assert last_step(evaluator(tmp_path, losses, patience)) == expected


def test_a_resumed_run_stops_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    losses = [5, 4, 4.5, 4.6, 1]
    assert last_step(evaluator(tmp_path, losses)) == 6
    for done in (2, 3, 4):  # later rows are dropped, and evaluated again
        assert last_step(evaluator(tmp_path, losses[done // 2 + 1 :], done=done), first=done) == 6
    assert last_step(evaluator(tmp_path, [], done=6), first=6) == 6  # nothing is left to evaluate


def test_every_rank_validates_a_share_of_the_examples_in_as_many_groups(tmp_path: Path) -> None:
    found, shares = evaluator(tmp_path, []), []
    for rank in range(2):
        found.world = World(rank, 2, torch.device("cpu"))
        shares.append(found.my_batches())
    assert len(shares[0]) == len(shares[1]) == 2  # of 17 batches; the second rank has none in the last one
    seen = np.concatenate([y[y != IGNORE_INDEX] for share in shares for group in share for _, y in group])
    assert sorted(seen) == sorted(found.val.targets[found.val.targets != IGNORE_INDEX])


def test_the_first_question_ends_where_its_answer_begins() -> None:
    tokens, targets = [5, 6, 7, 8, 9, 3, 4, 2], [IGNORE_INDEX, IGNORE_INDEX, 8, 9, IGNORE_INDEX, IGNORE_INDEX, 2, 1]
    examples = Examples.from_rows([([1], [1]), (tokens, targets), (tokens[:4], targets[:4])])
    assert first_question(examples, 1) == ([5, 6, 7], [8, 9])
    assert first_question(examples, 2) == ([5, 6, 7], [8, 9])
