"""What every view's function gets, how it says that it cannot show this model, and how it hands over arrays."""

import base64
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from eval.common.open_model import DIVERGED
from eval.views.recording import Recording, record
from prepare.common.cli import ArgumentError, UserError
from prepare.tokens.tokenizer import Tokenizer
from train.config.pretrain import Config, load_config
from train.run.checkpoint import read_meta
from train.run.run_dir import CONFIG
from train.weights.load_model import LoadedModel


class Unavailable(Exception):
    """A view that this model or checkpoint cannot have: the message, one sentence for the reader, is shown instead."""


@dataclass
class Subject:
    """A model, or one checkpoint of a run, and the prompt that the page is about.

    Args:
        loaded: the model in float32 and evaluation mode.
        ids: the prompt's token ids, (T,) int64 on the model's device, with 1 <= T <= block_size.
        shards: the globs of --data, the held-out tokens of a model that is not a run's; empty: not given.
    """

    loaded: LoadedModel
    ids: Tensor
    shards: tuple[str, ...] = ()

    @property
    def trained_tokens(self) -> int | None:
        """The number of tokens that the checkpoint was trained on, with repetitions; None if it is not known."""
        try:
            meta = read_meta(self.loaded.checkpoint, []) if self.loaded.checkpoint else {}
        except UserError:  # pruned since it was loaded: the run is still training
            return None
        batches = meta.get("batches", {})
        return self.loaded.step * batches["tokens"] if "tokens" in batches else None

    @property
    def tokenizer(self) -> Tokenizer:
        return self.loaded.tokenizer

    @cached_property
    def recording(self) -> Recording:
        """The forward pass over the prompt, of which all views take their part. UserError if it is not finite."""
        recording = record(self.loaded.model, self.ids)
        if not recording.logits.isfinite().all():
            raise UserError(DIVERGED)
        return recording

    @property
    def logits(self) -> Tensor:
        """The next token's logits at every position, (T, V), without padding ids."""
        return self.recording.logits[:, : self.tokenizer.vocab_size]


def pretraining_config(run: Path) -> Config:
    """The configuration of a pretraining run, which names its data. Unavailable if its config.yaml is another one."""
    try:
        return load_config(["--config", str(run / CONFIG)], "")
    except ArgumentError:
        raise Unavailable(
            "The config.yaml of this run is missing, or does not name token shards as this version does."
        ) from None


def pack(values: Tensor | np.ndarray, dtype: str = "float16") -> dict[str, Any]:
    """An array for the page, which web/arrays.js unpacks: its little-endian bytes in base64.

    Args:
        dtype: float16 (three digits, up to 65,504), float32, uint16 or int32.
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    content = np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).tobytes()
    return {"dtype": dtype, "shape": list(array.shape), "data": base64.b64encode(content).decode()}
