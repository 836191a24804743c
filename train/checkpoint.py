"""Checkpoints: written so that a killed run never leaves half of one, found by one rule, opened without running code.

    RUN/checkpoints/step_00000500/model.safetensors   the weights
                                  train_state.pt      the optimizer's state
                                  meta.json           step, model shape, tokenizer, data fingerprint

The random state needs no saving: dropout is seeded by (seed, window), see train/step.py.
"""

import json
import os
import pickle
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prepare.cli import RUNS, UserError
from prepare.tokenizer import CharTokenizer, GPT2Tokenizer, load_tokenizer
from train.config import ModelConfig
from train.hf_weights import HUB_NAME, download_hf, is_hf_folder, load_hf
from train.model import GPT

WEIGHTS, TRAIN_STATE, META = "model.safetensors", "train_state.pt", "meta.json"


def save(
    run_dir: Path, step: int, model: GPT, optimizer: torch.optim.Optimizer, meta: dict[str, Any], keep: int
) -> Path:
    """Write the checkpoint of `step` finished steps; it appears by one rename, when it is whole and on disk.

    Older checkpoints beyond the latest `keep` are removed afterwards.
    """
    folder = run_dir / "checkpoints"
    final, unfinished = folder / f"step_{step:08d}", folder / f".step_{step:08d}.tmp"
    for leftover in folder.glob(".step_*.tmp"):  # of a run that was killed while it saved
        shutil.rmtree(leftover)
    unfinished.mkdir(parents=True)
    save_file({name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}, unfinished / WEIGHTS)
    torch.save({"step": step, "optimizer": optimizer.state_dict()}, unfinished / TRAIN_STATE)
    described = {"step": step, "model": asdict(model.config), **meta}
    (unfinished / META).write_text(json.dumps(described, indent=2) + "\n")
    for path in (*unfinished.iterdir(), unfinished):
        _to_disk(path)
    if final.exists():  # the same step, saved by a run whose later steps were given up
        shutil.rmtree(final)
    unfinished.rename(final)
    _to_disk(folder)
    for old in all_checkpoints(run_dir)[:-keep]:
        going = old.with_name(f".{old.name}.tmp")  # removed under another name: half of a checkpoint is never found
        old.rename(going)
        shutil.rmtree(going)
    return final


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def all_checkpoints(run_dir: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted(path for path in (run_dir / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name))


def latest(run_dir: Path) -> Path | None:
    """A run's latest checkpoint."""
    return next(reversed(all_checkpoints(run_dir)), None)


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says about itself."""
    try:
        return json.loads((checkpoint / META).read_text())
    except (OSError, ValueError) as failure:
        raise _damaged(checkpoint / META, failure) from None


def resume(
    run_dir: Path, model: GPT, optimizer: torch.optim.Optimizer, facts: dict[str, Any], allow_change: bool
) -> int:
    """Load the run's latest checkpoint, if it has one, into a model and its optimizer, in place.

    Args:
        facts: what `save` was given as meta; `data`, the fingerprint, must be what it was, unless `allow_change`.

    Returns:
        The number of finished steps; 0 for a new run.

    Raises:
        UserError: the checkpoint is damaged, of a model of another shape, or of other data.
    """
    checkpoint = latest(run_dir)
    if checkpoint is None:
        return 0
    meta = read_meta(checkpoint)
    saved, wanted = meta["model"], asdict(model.config)
    different = [
        f"{key} {saved[key]} (now {wanted[key]})" for key in wanted if saved[key] != wanted[key] and key != "dropout"
    ]
    if different:
        raise UserError(
            f"{checkpoint} holds a model of another shape: {', '.join(different)}; "
            "set these keys back, or start another run with --run.dir"
        )
    if meta["data"] != facts["data"] and not allow_change:
        raise UserError(
            f"{checkpoint} was trained on other data (fingerprint {meta['data'][:8]}, now {facts['data'][:8]}): "
            "give the same data.train, start another run with --run.dir, or go on with --data.allow_change true"
        )
    model.load_state_dict(_read_weights(checkpoint / WEIGHTS))
    try:
        state = torch.load(checkpoint / TRAIN_STATE, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as failure:
        raise _damaged(checkpoint / TRAIN_STATE, failure) from None
    return meta["step"]


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as failure:
        raise _damaged(path, failure) from None


def _damaged(path: Path, failure: Exception) -> UserError:
    reason = (str(failure).splitlines() or [type(failure).__name__])[0]
    return UserError(f"{path} is damaged ({reason}): remove {path.parent}, and the checkpoint before it will be used")


@dataclass
class LoadedModel:
    """A model ready to be scored or to talk: in evaluation mode, float32."""

    model: GPT
    tokenizer: GPT2Tokenizer | CharTokenizer
    name: str  # what to call it: the run and step, the folder, or the hub's name
    step: int | None  # finished training steps; None for a model that is not ours


def load_model(spec: str | None, device: torch.device | str = "cpu") -> LoadedModel:
    """Open what `--model` names: a run directory, a checkpoint, a Hugging Face directory, or a hub name.

    Args:
        spec: None takes the newest run under runs/.
        device: where the weights go.

    Raises:
        UserError: nothing there can be opened.
    """
    path = _newest_run() if spec is None else Path(spec)
    if (path / "checkpoints").is_dir():
        found = latest(path)
        if found is None:
            raise UserError(
                f"{path} has no finished checkpoint yet: let the run reach one, or save one with a STOP file"
            )
        path = found
    if (path / META).is_file():
        meta = read_meta(path)
        model = GPT(ModelConfig(**meta["model"]))
        model.load_state_dict(_read_weights(path / WEIGHTS))
        name = f"{path.resolve().parents[1].name} at step {meta['step']}"
        loaded = LoadedModel(model, load_tokenizer(meta["tokenizer"]), name, meta["step"])
    elif is_hf_folder(path):
        loaded = LoadedModel(load_hf(path), load_tokenizer(None), path.resolve().name, None)
    elif path.exists():
        raise UserError(
            f"--model {path}: neither a run (checkpoints/), nor a checkpoint (meta.json), nor a Hugging Face "
            "directory (config.json)"
        )
    elif HUB_NAME.fullmatch(str(spec)):
        loaded = LoadedModel(load_hf(download_hf(str(spec))), load_tokenizer(None), str(spec), None)
    else:
        raise UserError(f"--model {path}: there is no such folder")
    if loaded.model.config.vocab_size < loaded.tokenizer.vocab_size:
        raise UserError(
            f"--model {path}: its vocabulary of {loaded.model.config.vocab_size} is smaller than its tokenizer's, "
            f"{loaded.tokenizer.name} with {loaded.tokenizer.vocab_size}: they do not belong together"
        )
    loaded.model.to(device).eval()
    return loaded


def _newest_run() -> Path:
    """The run under runs/ with the most recently written checkpoint."""
    runs = [run for run in RUNS.glob("*") if latest(run)]
    if not runs:
        raise UserError(f"no run with a checkpoint under {RUNS}: train one (make quickstart), or name a --model")
    return max(runs, key=lambda run: latest(run).stat().st_mtime)
