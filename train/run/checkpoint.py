"""Checkpoints: written atomically, so that a killed run never leaves a partial one, and opened without running code.

    RUN/checkpoints/step_00000500/model.safetensors   the weights
                                  train_state.pt      the optimizer's moments
                                  meta.json           step, model shape, tokenizer, data fingerprint, and all checksums

No random state is saved: dropout is seeded by (seed, window), see train/data/loader.py. AsyncSaver writes them.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prepare.common.cli import UserError, first_line
from prepare.common.files import file_sha256, fsync_path
from train.config.pretrain import CheckpointConfig

WEIGHTS, TRAIN_STATE, META = "model.safetensors", "train_state.pt", "meta.json"


class CorruptCheckpoint(UserError):
    """A checkpoint whose files are not the ones that were written: checksum mismatch, truncated, missing."""


# --- writing ----------------------------------------------------------------------------------------------------------


def write(
    run_dir: Path, step: int, weights: Mapping[str, Tensor], train_state: Mapping[str, Any], meta: Mapping[str, Any]
) -> None:
    """Write the checkpoint of `step` finished steps; it becomes visible by one rename, when it is complete and on disk.

    Args:
        weights, train_state: tensors on the CPU, which must not change until this returns.
        meta: JSON-serializable: `model`, `tokenizer`, and the run's identity (see Trainer).

    Raises:
        OSError, RuntimeError, SafetensorError: it could not be written; no part of it is left, and the earlier ones
            are untouched.
    """
    with _atomic_checkpoint(run_dir, step) as folder:
        save_file(dict(weights), folder / WEIGHTS)
        torch.save(dict(train_state), folder / TRAIN_STATE)
        described = {"step": step, **meta, "sha256": {}}
        described["sha256"] = {name: file_sha256(folder / name) for name in (WEIGHTS, TRAIN_STATE)}
        described["sha256"][META] = _meta_sha256(described)
        (folder / META).write_text(json.dumps(described, indent=2) + "\n")


def copy(checkpoint: Path, run_dir: Path) -> None:
    """Copy a checkpoint into another run, where it becomes visible as one that is written does."""
    with _atomic_checkpoint(run_dir, step_of(checkpoint)) as folder:
        for name in (WEIGHTS, TRAIN_STATE, META):
            shutil.copyfile(checkpoint / name, folder / name)


@contextmanager
def _atomic_checkpoint(run_dir: Path, step: int) -> Iterator[Path]:
    """A new folder that becomes the checkpoint of `step` by one rename, once its files are on disk; removed at an
    exception."""
    folder = run_dir / "checkpoints"
    final, unfinished = folder / f"step_{step:08d}", _unused(folder / f".step_{step:08d}.tmp")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        for path in (*unfinished.iterdir(), unfinished):
            fsync_path(path)
        unfinished.rename(final)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    fsync_path(folder)
    fsync_path(run_dir)  # the first checkpoint makes the folder


def prune(run_dir: Path, config: CheckpointConfig, val_losses: Mapping[int, float]) -> None:
    """Remove all checkpoints but the latest `keep`, those of `keep_every` and `keep_steps`, and the one with the lowest
    known validation loss (by step)."""
    checkpoints = {step_of(path): path for path in all_checkpoints(run_dir)}
    kept: set[int | None] = set(list(checkpoints)[-config.keep :])
    kept |= {step for step in checkpoints if config.keep_every and step % config.keep_every == 0}
    kept |= set(config.keep_steps)
    kept.add(_best(checkpoints, val_losses))
    for step in checkpoints.keys() - kept:
        _remove(checkpoints[step])


def roll_back_to_best(run_dir: Path, val_losses: Mapping[int, float]) -> Path | None:
    """Remove the checkpoints after the one with the lowest validation loss (by step), and return that one; None if no
    checkpoint has such a loss."""
    checkpoints = {step_of(path): path for path in all_checkpoints(run_dir)}
    best = _best(checkpoints, val_losses)
    if best is None:
        return None
    for step in [step for step in reversed(checkpoints) if step > best]:
        _remove(checkpoints[step])
    return checkpoints[best]


def _best(steps: Iterable[int], val_losses: Mapping[int, float]) -> int | None:
    """The step with the lowest loss, the earliest of equals; None if no loss is known."""
    measured = [step for step in steps if step in val_losses]
    return min(measured, key=lambda step: (val_losses[step], step), default=None)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint, or the leftovers of one. A failure (NFS keeps open files; another user's) is a warning."""
    removed = checkpoint
    if not removed.name.startswith("."):  # renamed first, so that a partly removed checkpoint is never found
        removed = _unused(removed.with_name(f".{removed.name}.tmp"))
    try:
        checkpoint.rename(removed)
        if removed.is_symlink():
            removed.unlink()
        else:
            shutil.rmtree(removed)
    except OSError as failure:
        print(f"warning: {checkpoint} could not be removed ({failure.strerror})", file=sys.stderr, flush=True)


def _unused(path: Path) -> Path:
    """This path, with a number before its suffix if it exists already."""
    number, unused = 1, path
    while os.path.lexists(unused):
        number += 1
        unused = path.with_stem(f"{path.stem}.{number}")
    return unused


def remove_unfinished(run_dir: Path) -> None:
    """Remove the leftovers of a run that was killed during a save."""
    for leftover in (run_dir / "checkpoints").glob(".step_*.tmp"):
        _remove(leftover)


def rename_corrupt(checkpoints: Sequence[Path]) -> None:
    """Rename corrupt checkpoints, so that they are not found again and their steps can be saved again."""
    for path in checkpoints:
        path.rename(_unused(path.with_name(path.name + ".corrupt")))


def _meta_sha256(meta: Mapping[str, Any]) -> str:
    """The checksum of everything in meta.json but this checksum."""
    sums = {name: value for name, value in meta["sha256"].items() if name != META}
    return hashlib.sha256(json.dumps({**meta, "sha256": sums}, sort_keys=True).encode()).hexdigest()


# --- finding and reading ----------------------------------------------------------------------------------------------


def all_checkpoints(run_dir: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted(path for path in (run_dir / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name))


def step_of(checkpoint: Path) -> int:
    """The number of finished steps, from a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step_"))


def latest_checkpoint(run_dir: Path) -> Path | None:
    """A run's latest checkpoint, valid or not."""
    return next(reversed(all_checkpoints(run_dir)), None)


def read_meta(checkpoint: Path, files: Sequence[str] = (WEIGHTS, TRAIN_STATE)) -> dict[str, Any]:
    """A checkpoint's meta.json, after the checksums of it and of these files have been verified.

    Raises:
        CorruptCheckpoint: a file is missing or changed.
        UserError: a file may not be read, or is a link (as in a hub's cache) that leads nowhere.
    """

    def existing(name: str) -> Path:
        for path in (checkpoint, checkpoint / name):
            if path.is_symlink() and not (path.is_file() or path.is_dir()):
                raise UserError(f"{path} is a link to {path.readlink()}, which is not a file here: restore it")
        return checkpoint / name

    try:
        meta = json.loads(existing(META).read_bytes())
        if meta["sha256"].get(META) != _meta_sha256(meta):
            raise ValueError("checksum mismatch")
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as failure:
        raise corruption_error(checkpoint / META, failure) from None
    for name in files:
        try:
            if file_sha256(existing(name)) != meta["sha256"].get(name):
                raise ValueError(f"checksum mismatch with {META}")
        except (OSError, ValueError) as failure:
            raise corruption_error(checkpoint / name, failure) from None
    return meta


def latest_valid_checkpoint(
    run_dir: Path, files: Sequence[str] = (WEIGHTS, TRAIN_STATE)
) -> tuple[Path | None, dict[str, Any], list[Path]]:
    """A run's latest checkpoint whose `files` are valid, its meta, and the corrupt ones after it, each with a warning
    on stderr; (None, {}, []) for a run without checkpoints. CorruptCheckpoint if there are checkpoints, but none is
    valid."""
    corrupt: list[Path] = []
    for checkpoint in reversed(all_checkpoints(run_dir)):
        try:
            return checkpoint, read_meta(checkpoint, files), corrupt
        except CorruptCheckpoint as failure:
            print(f"warning: {failure}; taking the checkpoint before it", file=sys.stderr, flush=True)
            corrupt.append(checkpoint)
    if corrupt:
        raise CorruptCheckpoint(
            f"none of the {len(corrupt)} checkpoints in {run_dir / 'checkpoints'} is valid (the warnings above): "
            "restore one from a backup, or remove them and start from scratch"
        )
    return None, {}, []


def read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as failure:
        raise corruption_error(path, failure) from None


def corruption_error(path: Path, failure: Exception) -> UserError:
    reason = first_line(failure)
    if isinstance(failure, OSError) and failure.errno in (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE):
        return UserError(f"{path} cannot be read ({reason}): check the file's permissions and its disk")
    return CorruptCheckpoint(f"{path} is corrupt ({reason})")
