"""Checkpoints: written so that a killed run never leaves half of one, found by one rule, opened without running code.

    RUN/checkpoints/step_00000500/model.safetensors   the weights
                                  train_state.pt      the optimizer's moments
                                  meta.json           step, model shape, tokenizer, what was read, and all checksums

The random state needs no saving: dropout is seeded by (seed, window), see train/trainer/step.py.
train/run/async_saver.py writes them.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prepare.common.cli import UserError, first_line
from prepare.common.files import file_sha256, fsync_path
from train.data.windows import Began
from train.model.gpt import GPT
from train.trainer.optim import load_moments

WEIGHTS, TRAIN_STATE, META = "model.safetensors", "train_state.pt", "meta.json"


class CorruptCheckpoint(UserError):
    """A checkpoint whose files are not those that were written."""


# --- writing ----------------------------------------------------------------------------------------------------------


def write(
    run_dir: Path, step: int, weights: Mapping[str, Tensor], train_state: Mapping[str, Any], meta: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of `step` finished steps; it appears by one rename, when it is whole and on disk.

    Args:
        weights, train_state: tensors on the CPU, which nobody changes meanwhile.
        meta: JSON-able; `model` and `tokenizer`, and what the run must agree with when it is resumed.

    Raises:
        OSError, RuntimeError, SafetensorError: it could not be written; nothing of it is left, and the earlier ones
            are untouched.
    """
    folder = run_dir / "checkpoints"
    final, unfinished = folder / f"step_{step:08d}", _unused(folder / f".step_{step:08d}.tmp")
    try:
        unfinished.mkdir(parents=True)
        save_file(dict(weights), unfinished / WEIGHTS)
        torch.save(dict(train_state), unfinished / TRAIN_STATE)
        described = {"step": step, **meta, "sha256": {}}
        described["sha256"] = {name: file_sha256(unfinished / name) for name in (WEIGHTS, TRAIN_STATE)}
        described["sha256"][META] = _meta_sha256(described)
        (unfinished / META).write_text(json.dumps(described, indent=2) + "\n")
        for path in (*unfinished.iterdir(), unfinished):
            fsync_path(path)
        unfinished.rename(final)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    fsync_path(folder)
    fsync_path(run_dir)  # the first checkpoint makes the folder
    return final


def prune(run_dir: Path, keep: int, val_losses: Mapping[int, float]) -> None:
    """Remove checkpoints, but the latest `keep` and the one with the lowest known validation loss (by step)."""
    checkpoints = {step_of(path): path for path in all_checkpoints(run_dir)}
    kept = set(list(checkpoints)[-keep:])
    kept.add(_best(checkpoints, val_losses))
    for step in checkpoints.keys() - kept:
        _remove(checkpoints[step])


def roll_back_to_best(run_dir: Path, val_losses: Mapping[int, float]) -> Path | None:
    """Remove the checkpoints after the one with the lowest validation loss (by step), and return that one; None if no
    checkpoint has such a loss.

    Raises:
        UserError: one of them stays where it is.
    """
    checkpoints = {step_of(path): path for path in all_checkpoints(run_dir)}
    best = _best(checkpoints, val_losses)
    if best is None:
        return None
    for step in [step for step in reversed(checkpoints) if step > best]:
        _remove(checkpoints[step])
    if (newest := latest(run_dir)) != checkpoints[best]:
        raise UserError(f"{newest} would be taken for the best checkpoint, that of step {best}: remove it yourself")
    return checkpoints[best]


def _best(steps: Iterable[int], val_losses: Mapping[int, float]) -> int | None:
    """The step with the lowest loss, the first of equals; None where none is known."""
    measured = [step for step in steps if step in val_losses]
    return min(measured, key=lambda step: (val_losses[step], step), default=None)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint, or what is left of one. That it cannot be removed (NFS keeps what somebody reads; another
    user's) is a warning, and no failure."""
    going = checkpoint
    if not going.name.startswith("."):  # half of a checkpoint is never found: first it gets a name that is not
        going = _unused(going.with_name(f".{going.name}.tmp"))
    try:
        checkpoint.rename(going)
        if going.is_symlink():
            going.unlink()
        else:
            shutil.rmtree(going)
    except OSError as failure:
        print(f"warning: {checkpoint} could not be removed ({failure.strerror})", file=sys.stderr, flush=True)


def _unused(path: Path) -> Path:
    """This path, or with a number before its suffix where something is there already."""
    number, unused = 1, path
    while os.path.lexists(unused):
        number += 1
        unused = path.with_stem(f"{path.stem}.{number}")
    return unused


def remove_unfinished(run_dir: Path) -> None:
    """Remove what a run that was killed while it saved has left."""
    for leftover in (run_dir / "checkpoints").glob(".step_*.tmp"):
        _remove(leftover)


def rename_corrupt(damaged: Sequence[Path]) -> None:
    """Rename damaged checkpoints, so that they are no longer found, and their steps can be saved again."""
    for path in damaged:
        path.rename(_unused(path.with_name(path.name + ".damaged")))


def _meta_sha256(meta: Mapping[str, Any]) -> str:
    """The checksum of all that meta.json says, but for this one."""
    sums = {name: value for name, value in meta["sha256"].items() if name != META}
    return hashlib.sha256(json.dumps({**meta, "sha256": sums}, sort_keys=True).encode()).hexdigest()


# --- finding and reading ----------------------------------------------------------------------------------------------


def all_checkpoints(run_dir: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted(path for path in (run_dir / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name))


def step_of(checkpoint: Path) -> int:
    """The finished steps that a checkpoint's name states."""
    return int(checkpoint.name.removeprefix("step_"))


def latest(run_dir: Path) -> Path | None:
    """A run's latest checkpoint, whole or not."""
    return next(reversed(all_checkpoints(run_dir)), None)


def read_meta(checkpoint: Path, files: Sequence[str] = (WEIGHTS, TRAIN_STATE)) -> dict[str, Any]:
    """What a checkpoint says about itself, once it and these of its files have the checksums that it states.

    Raises:
        CorruptCheckpoint: names the file that is missing, changed, or a link to somewhere else.
        UserError: a file may not be read.
    """

    def inside(name: str) -> Path:
        path = checkpoint / name
        if path.resolve().parent != checkpoint.resolve():
            raise ValueError(f"it is a link to {path.resolve()}, outside the checkpoint")
        return path

    try:
        meta = json.loads(inside(META).read_bytes())
        if not isinstance(meta, dict) or not {"step", "model", "tokenizer", "sha256"} <= meta.keys():
            raise ValueError("it lacks step, model, tokenizer or sha256")
        if meta["sha256"].get(META) != _meta_sha256(meta):
            raise ValueError("it was changed: its checksum is another")
    except (OSError, ValueError, AttributeError, TypeError) as failure:
        raise _damaged(checkpoint / META, failure) from None
    for name in files:
        try:
            if file_sha256(inside(name)) != meta["sha256"].get(name):
                raise ValueError(f"its checksum is not the one that {META} states")
        except (OSError, ValueError) as failure:
            raise _damaged(checkpoint / name, failure) from None
    return meta


def latest_valid_checkpoint(
    run_dir: Path, files: Sequence[str] = (WEIGHTS, TRAIN_STATE)
) -> tuple[Path | None, dict[str, Any], list[Path]]:
    """A run's newest checkpoint of which these files are whole, its meta, and the damaged ones after it, which are
    named on stderr.

    None for a run without checkpoints.

    Raises:
        CorruptCheckpoint: there are some, and none of them is whole.
    """
    damaged: list[Path] = []
    for checkpoint in reversed(all_checkpoints(run_dir)):
        try:
            return checkpoint, read_meta(checkpoint, files), damaged
        except CorruptCheckpoint as failure:
            print(f"warning: {failure}; taking the checkpoint before it", file=sys.stderr, flush=True)
            damaged.append(checkpoint)
    if damaged:
        raise CorruptCheckpoint(
            f"none of the {len(damaged)} checkpoints in {run_dir / 'checkpoints'} is whole (the warnings above): put "
            "one back from a copy, or remove them and begin anew"
        )
    return None, {}, []


@dataclass(frozen=True)
class ResumeState:
    """Where a run goes on, and with what besides the model's and the optimizer's state, which are loaded in place."""

    step: int = 0  # finished steps
    began: Began = field(default_factory=Began)  # where its present data begins
    grad_norms: tuple[float, ...] = ()  # the latest
    skipped: int = 0  # steps in a row before it whose loss or gradient was not finite
    changes: tuple[str, ...] = ()  # what is different now, and allowed
    damaged: tuple[Path, ...] = ()  # checkpoints that were passed over


def resume(
    run_dir: Path,
    model: GPT,
    optimizer: torch.optim.Optimizer,
    facts: dict[str, Any],
    allow_change: bool | None = None,
) -> ResumeState:
    """Load the run's newest whole checkpoint, if it has one, into a model and its optimizer, in place.

    Args:
        facts: what the run is now: `data`, `batches` and `tokenizer` must be what they were, unless `allow_change`,
            which begins a new epoch (None: a run of this kind cannot); `settings` (by their keys in the configuration)
            are taken as they are now; `init`, in fine-tuning, is the checksum of the model to begin with.

    Raises:
        UserError: every checkpoint is damaged, or the newest is of a model of another shape, or of other data, or
            of a run that began with another model.
    """
    checkpoint, meta, damaged = latest_valid_checkpoint(run_dir)
    if checkpoint is None:
        return ResumeState()
    meta = {"init": facts.get("init"), **meta}  # older checkpoints do not say
    if missing := {*facts, "began", "position", "grad_norms"} - meta.keys():
        lacking = ", ".join(sorted(missing))
        raise UserError(f"{checkpoint} lacks {lacking}: nobody trained it with this program; choose another --run.dir")
    if different := differences("init", meta["init"], facts.get("init")):
        raise UserError(
            f"{checkpoint} began with another model: {different[0]}; set --init back, or start another run "
            "with --run.dir"
        )
    if different := differences("model", meta["model"], shape_of(model)):
        raise UserError(
            f"{checkpoint} holds a model of another shape: {', '.join(different)}; "
            "set these keys back, or start another run with --run.dir"
        )
    other_data = [line for key in ("data", "batches", "tokenizer") for line in differences(key, meta[key], facts[key])]
    if other_data and not allow_change:
        raise UserError(
            f"{checkpoint} was trained on other data or batches: {', '.join(other_data)}; set them back, start another "
            "run with --run.dir"
            + (", or begin a new epoch on these with --data.allow_change true" if allow_change is not None else "")
        )
    began = Began(**meta["began"])
    if other_data:
        began = Began(meta["step"], meta["position"]["window"], meta["position"]["epoch"] + 1)
    model.load_state_dict(read_weights(checkpoint / WEIGHTS))
    try:
        state = torch.load(checkpoint / TRAIN_STATE, map_location="cpu", weights_only=True)
        load_moments(optimizer, state["optimizer"])
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
    changes = (*other_data, *differences("", meta["settings"], facts["settings"]))
    skipped = meta.get("skipped", 0)  # older checkpoints do not say
    return ResumeState(meta["step"], began, tuple(meta["grad_norms"]), skipped, changes, tuple(damaged))


def shape_of(model: GPT) -> dict[str, Any]:
    """What two models must have in common for one to take the other's weights."""
    return {key: value for key, value in asdict(model.config).items() if key != "dropout"}


def read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as failure:
        raise _damaged(path, failure) from None


def differences(name: str, saved: Any, now: Any) -> list[str]:
    """What was saved under a name and is otherwise now, in words."""
    if saved == now:
        return []
    if isinstance(saved, dict) and isinstance(now, dict) and "name" not in now:
        return [line for key in now for line in differences(f"{name}.{key}".lstrip("."), saved.get(key), now[key])]
    return [f"{name} {_brief(saved)} (now {_brief(now)})"]


def _brief(value: object) -> str:
    """A checksum's beginning, a vocabulary's name, other values as they are."""
    if isinstance(value, dict) and "name" in value:
        return str(value["name"])
    return value[:8] if isinstance(value, str) and len(value) == 64 else str(value)


def _damaged(path: Path, failure: Exception) -> UserError:
    reason = first_line(failure)
    if isinstance(failure, OSError) and failure.errno in (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE):
        return UserError(f"{path} cannot be read ({reason}): see to the file's permissions and its disk")
    return CorruptCheckpoint(f"{path} is damaged ({reason})")
