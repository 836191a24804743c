"""The models that can be served: the runs and their checkpoints, Hugging Face directories, and what --model names."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from prepare.common.cli import RUNS, UserError
from prepare.common.files import is_locked
from train.run.checkpoint import META, all_checkpoints, latest_checkpoint, step_of
from train.run.metrics_log import METRICS, read_rows
from train.run.run_dir import DONE

PICTURE = "loss.png"


class UnknownModel(UserError):
    """No model has this name: it never had, or its files were deleted."""


@dataclass(frozen=True)
class ModelFiles:
    """A model and the files that it is loaded from. Files that were replaced make it another one."""

    name: str
    spec: str  # what load_model opens
    fingerprint: str


class Catalog:
    """The models by name: NAME is the latest checkpoint of RUNS/NAME, NAME@STEP another one, or a directory with a
    Hugging Face model. Names are looked up in the list of what is there; no path is made from a request."""

    def __init__(self, runs: Path = RUNS, named: str | None = None) -> None:
        """`named`: the value of --model, which is the default model; without it, the newest run is."""
        self.runs, self.named = runs, named

    def find(self, name: str | None) -> ModelFiles:
        """The model of this name; None: the default. UnknownModel if there is none."""
        models = list(self._models())
        if name is None and models:
            newest = max(models, key=lambda model: (model[2] is not None, modified(model[1])))
            name = self.named or newest[0]
        try:
            spec = next(spec for key, spec, _ in models if key == name)
            return ModelFiles(str(name), spec, fingerprint(spec))
        except (StopIteration, OSError):
            raise UnknownModel(
                f"there is no model {name!a} among the {len(models)} that GET /v1/models lists: a run or a checkpoint "
                "may have been deleted or renamed"
            ) from None

    def picture(self, name: str) -> Path:
        """The loss curves of a model's run. UnknownModel if there are none."""
        found = next((run / PICTURE for key, _, run in self._models() if key == name and run), None)
        if not found or not found.is_file():
            raise UnknownModel(f"the model {name!a} has no {PICTURE}: it is drawn when a run ends")
        return found

    def describe(self) -> list[dict[str, Any]]:
        """Every model as OpenAI's list has it, with what is known of it, the default one first."""
        first, models = self.find(None).name if any(self._models()) else None, []
        for name, spec, run in self._models():
            try:
                models.append(describe(name, spec, run))
            except OSError:  # deleted or replaced meanwhile
                continue
        return sorted(models, key=lambda model: (model["id"] != first, -model["created"]))

    def _models(self) -> Iterator[tuple[str, str, Path | None]]:
        """The name, what load_model opens, and the run of each model."""
        if self.named:
            yield self.named, self.named, None
        folders = [*self.runs.glob("*/"), *self.runs.glob("*/*/")]  # a sweep's runs are in a folder of their own
        for folder in sorted(folders):
            name = folder.relative_to(self.runs).as_posix()
            checkpoints = all_checkpoints(folder)
            if checkpoints:
                yield name, str(checkpoints[-1]), folder
            elif (folder / "config.json").is_file():
                yield name, str(folder), None
            for checkpoint in checkpoints:
                yield f"{name}@{step_of(checkpoint)}", str(checkpoint), folder


def describe(name: str, spec: str, run: Path | None) -> dict[str, Any]:
    """What is known of a model, by its files alone. OSError if they are deleted meanwhile."""
    about = {"id": name, "object": "model", "created": int(modified(spec)), "owned_by": "you"}
    about["fingerprint"] = fingerprint(spec)
    if run is None:
        return about
    about |= read_about(Path(spec) / META, modified(str(Path(spec) / META)))
    done = (run / DONE).exists()
    state = "training" if is_locked(run / ".lock") else "finished" if done else "stopped"
    metrics = run / METRICS
    losses = read_losses(metrics, modified(str(metrics))) if metrics.exists() else {}
    earlier = [(step, kind) for step, kind in losses if step <= about["step"]]
    for kind in ("train", "val"):
        last = max((step for step, other in earlier if other == kind), default=None)
        about[f"{kind}_loss"] = None if last is None else losses[last, kind]
    return about | {
        "run": run.name,
        "state": state,
        "latest": Path(spec) == latest_checkpoint(run),
        "picture": (run / PICTURE).is_file(),
    }


def modified(spec: str) -> float:
    """When a file or directory was written, in seconds since 1970; 0 for a name on the hub."""
    path = Path(spec)
    return path.stat().st_mtime if path.exists() else 0


def fingerprint(spec: str) -> str:
    """A digest of the names, sizes and times of a model's files, which changes when they are replaced."""
    path = Path(spec)
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    stats = [(file.name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()]]
    return "fp_" + hashlib.sha256(repr((spec, stats)).encode()).hexdigest()[:16]


@lru_cache(1000)
def read_about(meta: Path, _modified: float) -> dict[str, Any]:
    """The step, the shape and the kind of a checkpoint's model. OSError if the file is not there or not valid."""
    try:
        about = json.loads(meta.read_bytes())
        kind = "classifier" if "labels" in about else "instructions" if "template" in about else "text"
        return {
            "step": about["step"],
            "kind": kind,
            "labels": about.get("labels", []),
            "multi_turn": about.get("converses", False),
            "architecture": about["model"].get("architecture", "gpt2"),
            "block_size": about["model"]["block_size"],
        }
    except (ValueError, LookupError, AttributeError, TypeError):
        raise OSError(f"{meta} is corrupt") from None


@lru_cache(64)  # a run being trained adds an entry for each change
def read_losses(metrics: Path, _modified: float) -> dict[tuple[int, str], float]:
    """The training and validation losses in a run's metrics, by step and kind; {} if the file is corrupt."""
    try:
        rows = read_rows(metrics)
    except UserError:
        return {}
    return {(row["step"], row["kind"]): row["loss"] for row in rows if row["kind"] in ("train", "val")}
