"""Samples repeat with their seed, and long curves are thinned without losing their ends."""

import base64
import shutil

import numpy as np
import torch

from eval.explain import open_checkpoints, spread
from eval.generation.sampling import generate
from eval.views.over_time import CURVE_POINTS, SAMPLE_TOKENS, SEED, TEMPERATURE, loss_curve, over_time
from eval.views.subject import Subject
from prepare.tokens.tokenizer import CharTokenizer
from tests.helpers.tiny import random_model, save_checkpoint
from train.weights.load_model import LoadedModel, load_model


def test_a_sample_is_what_generate_draws_with_the_same_seed() -> None:
    tokenizer = CharTokenizer("abcdefgh \n")
    model = random_model(vocab_size=10)
    subject = Subject(LoadedModel(model, tokenizer, "tiny"), torch.tensor([1, 2, 3]))
    shown = over_time(subject)
    assert over_time(subject)["sample"] == shown["sample"]
    generator = torch.Generator().manual_seed(SEED)
    drawn = generate(model, [[1, 2, 3]], SAMPLE_TOKENS, TEMPERATURE, generator=generator)
    assert shown["sample"] == tokenizer.decode([int(token) for token in drawn])
    assert shown["train"]["steps"]["shape"] == [0]


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    rows = [{"step": step, "kind": "train", "loss": 5.0} for step in range(1, 20_001)]
    steps = loss_curve([*rows, {"step": 7, "kind": "val", "loss": 1.0}], "train")["steps"]
    drawn = np.frombuffer(base64.b64decode(steps["data"]), "<i4")
    assert (drawn[0], drawn[-1]) == (1, 20_000)
    assert CURVE_POINTS / 2 < len(drawn) <= CURVE_POINTS
    assert list(np.frombuffer(base64.b64decode(loss_curve(rows[:3], "train")["steps"]["data"]), "<i4")) == [1, 2, 3]


def test_of_many_checkpoints_log_spaced_ones_are_shown(tmp_path) -> None:
    def shown(steps: list[int]) -> list[int]:
        return [int(path.name[5:]) for path in spread([tmp_path / f"step_{step:08d}" for step in steps])]

    assert shown([10, 20, 30]) == [10, 20, 30]
    assert shown([10 * n for n in range(1, 129)]) == [10, 20, 40, 80, 160, 320, 640, 1280]
    assert len(set(shown(list(range(1000, 1020))))) == 8


def test_the_page_of_a_run_that_still_trains_shows_the_checkpoints_that_it_has_not_pruned(tmp_path) -> None:
    for step in (2, 4, 6):
        save_checkpoint(tmp_path, step, random_model(), tokenizer=None)
    latest = load_model(str(tmp_path))
    opened = open_checkpoints(str(tmp_path), latest, torch.device("cpu"))
    steps = [next(opened).step]
    for step in (4, 6):
        shutil.rmtree(tmp_path / f"checkpoints/step_{step:08d}")
    rest = list(opened)
    assert [*steps, *(model.step for model in rest)] == [2, 6]
    assert Subject(rest[0], torch.tensor([0])).trained_tokens is None
