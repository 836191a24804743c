"""Checkpoints: written so that a killed run never leaves half of one, found by one rule, opened without running code.

    RUN/checkpoints/step_00000500/model.safetensors   the weights
                                  train_state.pt      the optimizer's moments
                                  meta.json           step, model shape, tokenizer, what was read in which batches

The random state needs no saving: dropout is seeded by (seed, window), see train/step.py.
"""

import errno
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
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

    Args:
        meta: what the run must agree with when it is resumed, and the tokenizer.

    Raises:
        UserError: it could not be written; nothing of it is left, and the earlier ones are untouched.
    """
    folder = run_dir / "checkpoints"
    final, unfinished = folder / f"step_{step:08d}", folder / f".step_{step:08d}.tmp"
    try:
        _write(unfinished, step, model, optimizer, meta)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as failure:  # torch and safetensors have words of their own for ENOSPC
        shutil.rmtree(unfinished, ignore_errors=True)
        reason = (str(failure).splitlines() or [type(failure).__name__])[0]
        raise UserError(
            f"{final} could not be written ({reason}): make room on the disk and start again; it goes on from the "
            "checkpoint before it"
        ) from None
    unfinished.rename(final)
    _to_disk(folder)
    for old in all_checkpoints(run_dir)[:-keep]:
        going = old.with_name(f".{old.name}.tmp")  # removed under another name: half of a checkpoint is never found
        old.rename(going)
        shutil.rmtree(going)
    return final


def _write(unfinished: Path, step: int, model: GPT, optimizer: torch.optim.Optimizer, meta: dict[str, Any]) -> None:
    unfinished.mkdir(parents=True)
    save_file({name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}, unfinished / WEIGHTS)
    # AdamW's moments only: its learning rate, betas and decay are the configuration's
    torch.save({"optimizer": optimizer.state_dict()["state"]}, unfinished / TRAIN_STATE)
    described = {"step": step, "model": asdict(model.config), **meta}
    (unfinished / META).write_text(json.dumps(described, indent=2) + "\n")
    for path in (*unfinished.iterdir(), unfinished):
        _to_disk(path)


def clear_leftovers(run_dir: Path) -> None:
    """Remove what a run that was killed while it saved has left."""
    for leftover in (run_dir / "checkpoints").glob(".step_*.tmp"):
        shutil.rmtree(leftover)


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
        meta = json.loads((checkpoint / META).read_text())
        if not isinstance(meta, dict) or not {"step", "model", "tokenizer", "data"} <= meta.keys():
            raise ValueError("it lacks step, model, tokenizer or data")
        return meta
    except (OSError, ValueError) as failure:
        raise _damaged(checkpoint / META, failure) from None


def resume(
    run_dir: Path, model: GPT, optimizer: torch.optim.Optimizer, facts: dict[str, Any], allow_change: bool
) -> int:
    """Load the run's latest checkpoint, if it has one, into a model and its optimizer, in place.

    Args:
        facts: what `save` is given as meta; it must be what it was, unless `allow_change`.

    Returns:
        The number of finished steps; 0 for a new run.

    Raises:
        UserError: the checkpoint is damaged, of a model of another shape, or of other data or batches.
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
    changed = [
        f"{key} {_brief(meta.get(key))} (now {_brief(facts[key])})" for key in facts if meta.get(key) != facts[key]
    ]
    if changed and not allow_change:
        raise UserError(
            f"{checkpoint} was trained on other data or batches: {', '.join(changed)}; set them back, another run "
            "with --run.dir, or go on with --data.allow_change true"
        )
    model.load_state_dict(_read_weights(checkpoint / WEIGHTS))
    try:
        state = torch.load(checkpoint / TRAIN_STATE, map_location="cpu", weights_only=True)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state["optimizer"]})
    except (
        OSError,
        RuntimeError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        UnpicklingError,
    ) as failure:
        raise _damaged(checkpoint / TRAIN_STATE, failure) from None
    return meta["step"]


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as failure:
        raise _damaged(path, failure) from None


def _brief(value: object) -> str:
    """A long fingerprint's beginning, a vocabulary's name, other values as they are."""
    if isinstance(value, dict) and "name" in value:
        return str(value["name"])
    return value[:8] if isinstance(value, str) else str(value)


def _damaged(path: Path, failure: Exception) -> UserError:
    reason = (str(failure).splitlines() or [type(failure).__name__])[0]
    if isinstance(failure, OSError) and failure.errno in (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE):
        return UserError(f"{path} cannot be read ({reason}): see to the file's permissions and its disk")
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
