"""Resume a run from its latest valid checkpoint: refuse what does not match it, and load the rest in place."""

from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from prepare.common.cli import UserError
from train.config.pretrain import ModelConfig
from train.model.transformer import Transformer
from train.run.checkpoint import TRAIN_STATE, WEIGHTS, corruption_error, latest_valid_checkpoint, read_weights


@dataclass(frozen=True)
class ResumeState:
    """Where a run resumes; the model and the optimizer are loaded in place."""

    step: int = 0  # finished steps
    changes: tuple[str, ...] = ()  # settings that differ from the checkpoint's, which is allowed
    corrupt: tuple[Path, ...] = ()  # checkpoints that were skipped


def resume(
    run_dir: Path, model: Transformer, optimizer: torch.optim.Optimizer, identity: dict[str, Any]
) -> ResumeState:
    """Load the run's latest valid checkpoint, if it has one, into a model and its optimizer, in place.

    Args:
        identity: of the run as it is now: `data`, `batches`, `tokenizer`, `optim.optimizer`, and in fine-tuning `init`
            (the checksum of the pretrained model) must be those of the checkpoint; `settings` (by their keys in the
            configuration) may differ.

    Raises:
        UserError: every checkpoint is corrupt, or the latest differs in the model's shape, the data, the optimizer, or
            the model that the run started from.
    """
    checkpoint, meta, corrupt = latest_valid_checkpoint(run_dir)
    if checkpoint is None:
        return ResumeState()
    meta.setdefault("init", identity.get("init"))  # added later
    meta.setdefault("optim.optimizer", "adamw")  # added later
    meta["model"] = asdict(ModelConfig(**meta["model"]))  # keys that were added later have their defaults
    now = {**identity, "model": shape_of(model)}
    keys = ("init", "model", "data", "batches", "tokenizer", "optim.optimizer")
    if different := [line for key in keys for line in differences(key, meta[key], now.get(key))]:
        raise UserError(
            f"{checkpoint} is of another run: {', '.join(different)}; set them back, or start another run with "
            "--run.dir (pretraining: from these weights with --train.init_from)"
        )
    model.load_state_dict(read_weights(checkpoint / WEIGHTS))
    try:
        state = torch.load(checkpoint / TRAIN_STATE, map_location="cpu", weights_only=True)
        load_moments(optimizer, state["optimizer"])
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, UnpicklingError) as failure:
        raise corruption_error(checkpoint / TRAIN_STATE, failure) from None
    changes = differences("", {**identity["settings"], **meta["settings"]}, identity["settings"])
    return ResumeState(meta["step"], tuple(changes), tuple(corrupt))


def shape_of(model: Transformer) -> dict[str, Any]:
    """The shape that two models must share for one to load the other's weights."""
    return {key: value for key, value in asdict(model.config).items() if key != "dropout"}


def differences(name: str, saved: Any, now: Any) -> list[str]:
    """One line for each value that differs from the saved one: "key saved (now value)"."""
    if saved == now:
        return []
    if isinstance(saved, dict) and isinstance(now, dict) and "name" not in now:
        return [line for key in now for line in differences(f"{name}.{key}".lstrip("."), saved.get(key), now[key])]
    return [f"{name} {_brief(saved)} (now {_brief(now)})"]


def _brief(value: object) -> str:
    """The first digits of a checksum, a tokenizer's name, `present` for a data source, other values as they are."""
    if isinstance(value, dict):
        return str(value.get("name", "present"))
    return value[:8] if isinstance(value, str) and len(value) == 64 else str(value)


def gather_moments(optimizer: Any) -> None:
    """Gather a sharded optimizer's moments on rank 0, whose state_dict() is then complete. A collective."""
    if hasattr(optimizer, "consolidate_state_dict"):
        optimizer.consolidate_state_dict(to=0)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()  # the last of its copies may still be in flight


def load_moments(optimizer: Any, moments: dict[int, dict[str, Tensor]]) -> None:
    """Load the moments, a state_dict()["state"]; the saved optimizer and this one may each be sharded or not."""
    groups = torch.optim.Optimizer.state_dict(optimizer)["param_groups"]
    optimizer.load_state_dict({"param_groups": groups, "state": moments})
    if hasattr(optimizer, "consolidate_state_dict"):
        optimizer.state.clear()  # ZeroRedundancyOptimizer keeps them in `optim`, and a copy here
        for parameter, state in optimizer.optim.state.items():
            if "step" in state:  # not in Muon's
                state["step"] = state["step"].to(parameter.device)  # where fused AdamW wants it
