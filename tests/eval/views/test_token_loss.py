"""The loss of each token and by position, against F.cross_entropy in float64 and counted frequencies."""

import base64
import copy
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from eval.views.subject import Subject, Unavailable
from eval.views.token_loss import octaves, token_loss
from prepare.common.cli import UserError
from prepare.tokens.shards import open_shard
from prepare.tokens.tokenizer import CharTokenizer
from tests.helpers.tiny import VOCAB, write_shards
from train.config.pretrain import ModelConfig
from train.model.build import build_model
from train.weights.load_model import LoadedModel


def unpack(array: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["data"]), array["dtype"]).reshape(array["shape"]).copy()


@pytest.mark.parametrize("architecture", ["gpt2", "modern"])
def test_losses_of_the_passage_and_by_position(tmp_path: Path, architecture: str) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(2, 2, 16, block_size=24, vocab_size=VOCAB, architecture=architecture)).eval()
    path = write_shards(tmp_path, sizes=()) / "tiny_val_000000.bin"
    loaded = LoadedModel(model, CharTokenizer("".join(map(chr, range(64, 64 + VOCAB)))), "tiny")
    subject = Subject(loaded, torch.arange(3), shards=(str(path),))
    tokens = torch.from_numpy(open_shard(path).astype("int64"))
    found = token_loss(subject)
    passage = {name: torch.from_numpy(unpack(array)) for name, array in found["passage"].items()}

    windows = (len(tokens) - 1) // 24
    y = tokens[1 : 24 * windows + 1].view(windows, 24)
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(tokens[: 24 * windows].view(windows, 24))
    losses = F.cross_entropy(logits.transpose(1, 2), y, reduction="none")  # (windows, 24)
    counts = Counter(tokens.tolist())
    unigram = torch.tensor([[-math.log(counts[token] / len(tokens)) for token in row] for row in y.tolist()])

    assert passage["ids"].tolist() == tokens[:25].tolist()
    torch.testing.assert_close(passage["loss"].double(), losses[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(passage["unigram"], unigram[0])
    assert [(each["first"], each["last"]) for each in found["positions"]] == [
        (1, 1),
        (2, 2),
        (3, 4),
        (5, 8),
        (9, 16),
        (17, 24),
    ]
    for each in found["positions"]:
        part = slice(each["first"] - 1, each["last"])
        assert each["loss"] == pytest.approx(losses[:, part].mean().item(), abs=1e-5)
        assert each["unigram"] == pytest.approx(unigram[:, part].mean().item(), abs=1e-5)
        error = losses[:, part].mean(1).std(correction=0).item() / windows**0.5
        assert each["error"] == pytest.approx(error, rel=1e-3)
    assert (found["tokens"], found["counted"]) == (windows * 24, 3000)
    assert found["loss"] == pytest.approx(losses.mean().item(), abs=1e-5)
    assert found["unigram"] == pytest.approx(unigram.mean().item(), abs=1e-5)
    with torch.no_grad():
        model.wte.weight[:] = math.nan
    with pytest.raises(UserError, match="diverged"):
        token_loss(subject)
    with pytest.raises(Unavailable, match="--data"):
        token_loss(Subject(loaded, torch.arange(3)))


def test_octaves_cover_every_position_once() -> None:
    for size in (1, 2, 3, 8, 9, 1024):
        assert [i for first, end in octaves(size) for i in range(first, end)] == list(range(size))
