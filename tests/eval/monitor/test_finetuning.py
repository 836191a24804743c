"""When a fine-tuning run ends: a function of the validation losses that its log holds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.monitor.finetuning import FinetuneEvaluator
from tests.helpers.finetuning import random_examples
from train.config.finetune import ClassifyConfig, ClassifyEval, LabelledData
from train.config.pretrain import LogConfig, TrainConfig
from train.model.gpt import IGNORE_INDEX
from train.parallel.world import World
from train.run.metrics_log import MetricsLog

MAIN = World(0, 1, torch.device("cpu"))


class Nobody:
    """Asks for no stop."""

    def requested(self) -> bool:
        return False


def monitor(folder: Path, losses: Sequence[float], patience: int = 2, done: int = 0) -> FinetuneEvaluator:
    """Of a run of 20 steps at `done` finished ones, whose validations, every second step, give these losses."""
    config = ClassifyConfig(
        data=LabelledData(micro_batch_size=3),
        train=TrainConfig(max_steps=20),
        eval=ClassifyEval(every=2, patience=patience),
        log=LogConfig(wandb="disabled"),
    )
    log = MetricsLog(folder, config, done, 0, MAIN, tokens_read=lambda step: step)
    measured = iter(losses)
    return FinetuneEvaluator(
        config, random_examples(50), MAIN, log, Nobody(), {"val": lambda: {"loss": next(measured)}}
    )


def end(found: FinetuneEvaluator, first: int = 0) -> int | None:
    """The step at which it ends the run."""
    return next((step for step in range(first, 21) if found.run(step)), None)


@pytest.mark.parametrize(
    ("losses", "patience", "ends"),
    [
        ([5, 4, 4.5, 4.1, 1], 2, 6),  # 4.5 and 4.1 are no better than 4
        ([5, 4, 4.5, 3.9, 4, 4], 2, 10),  # it begins anew at 3.9
        ([5, 5, 5, 1], 2, 4),  # as good is no better
        ([5, 6, 1], 1, 2),
        ([5, 4, 3, 2, 1, 2, 1, 0.9, 0.8, 0.7, 0.6], 3, None),
        ([5] * 11, 0, None),
    ],
)
def test_a_run_ends_after_patience_validations_without_a_lower_loss(
    losses: Sequence[float], patience: int, ends: int | None, tmp_path: Path
) -> None:
    found = monitor(tmp_path, losses, patience)
    assert end(found) == ends
    assert found.finished == (ends is not None)


def test_a_run_that_was_killed_ends_where_it_would_have_ended(tmp_path: Path) -> None:
    losses = [5, 4, 4.5, 4.6, 1]
    assert end(monitor(tmp_path, losses)) == 6
    for done in (2, 3, 4):  # later rows are dropped, and measured again
        assert end(monitor(tmp_path, losses[done // 2 + 1 :], done=done), first=done) == 6
    assert end(monitor(tmp_path, [], done=6), first=6) == 6  # nothing is left to measure


def test_every_rank_validates_a_share_of_the_examples_in_as_many_groups(tmp_path: Path) -> None:
    found, shares = monitor(tmp_path, []), []
    for rank in range(2):
        found.world = World(rank, 2, torch.device("cpu"))
        shares.append(found.my_batches())
    assert len(shares[0]) == len(shares[1]) == 2  # of 17 batches; the second rank has none in the last one
    seen = np.concatenate([y[y != IGNORE_INDEX] for share in shares for group in share for _, y in group])
    assert sorted(seen) == sorted(found.val.targets[found.val.targets != IGNORE_INDEX])
