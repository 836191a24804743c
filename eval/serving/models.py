"""The models that can be served: the runs and their checkpoints, Hugging Face directories, and what --model names."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from prepare.common.cli import UserError
from prepare.common.files import is_locked
from train.run.checkpoint import META, all_checkpoints, latest_checkpoint, step_of
from train.run.metrics_log import METRICS, read_rows
from train.run.run_dir import DONE

PICTURE = "loss.png"


class Refused(Exception):
    """A request that is answered by an HTTP status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ModelFiles:
    """A model, and the files that it is loaded from. Files that were replaced make it another one; another name for the
    same files does not."""

    name: str = field(compare=False)
    spec: str  # what load_model opens
    fingerprint: str


class Catalog:
    """The models by name: NAME is the latest checkpoint of RUNS/NAME, or a Hugging Face directory; NAME@STEP is another
    checkpoint. Names are looked up in the list of what is there; no path is made from a request."""

    def __init__(self, runs: Path, named: str | None = None) -> None:
        """`named`: the value of --model, which is the default model; without it, the newest run is."""
        self.runs, self.named = runs.absolute(), named  # a path that cannot be taken for a name on the hub

    def find(self, name: str | None) -> ModelFiles:
        """The model of this name; None: the default. Refused if there is none."""
        models = list(self._models())
        try:
            if name is None:
                newest = max(models, key=lambda model: (model[2] is not None, modified(Path(model[1]))))
                name = self.named or newest[0]
            spec = next(spec for key, spec, _ in models if key == name)
            return ModelFiles(name, spec, fingerprint(Path(spec)))
        except (StopIteration, ValueError, OSError):
            raise Refused(
                404,
                f"there is no model {name!a} among the {len(models)} that GET /v1/models lists: a run or a checkpoint "
                "may have been deleted or renamed",
            ) from None

    def picture(self, name: str) -> bytes:
        """The loss curves of a model's run, a PNG. Refused if there are none."""
        try:
            return next((run / PICTURE).read_bytes() for key, _, run in self._models() if key == name and run)
        except (StopIteration, OSError):
            raise Refused(404, f"the model {name!a} has no {PICTURE}: it is drawn when a run ends") from None

    def describe(self) -> list[dict[str, Any]]:
        """Every model as OpenAI has it, with what its files say of it: that of --model, then the latest first."""
        models = []
        for name, spec, run in self._models():
            try:
                about = {"id": name, "object": "model", "created": int(modified(Path(spec))), "owned_by": "you"}
                about["fingerprint"] = fingerprint(Path(spec))
                models.append(about | (describe_checkpoint(Path(spec), run) if run else {}))
            except OSError:  # deleted meanwhile
                continue
        return sorted(models, key=lambda model: (model["id"] != self.named, -model["created"]))

    def _models(self) -> Iterator[tuple[str, str, Path | None]]:
        """The name, what load_model opens, and the run of each model."""
        folders = {self.named: Path(self.named)} if self.named else {}
        found = [*self.runs.glob("*/"), *self.runs.glob("*/*/")]  # a sweep's runs are in a folder of their own
        folders |= {folder.relative_to(self.runs).as_posix(): folder for folder in sorted(found)}
        for name, folder in folders.items():
            checkpoints = all_checkpoints(folder)
            if checkpoints:
                yield name, str(checkpoints[-1]), folder
            elif name == self.named or (folder / "config.json").is_file():
                yield name, str(folder), None
            for checkpoint in checkpoints:
                yield f"{name}@{step_of(checkpoint)}", str(checkpoint), folder


def describe_checkpoint(checkpoint: Path, run: Path) -> dict[str, Any]:
    """The state of the run, and the checkpoint's step, kind and last losses. OSError if it is deleted meanwhile."""
    about = read_about(checkpoint / META, modified(checkpoint / META))
    losses = read_losses(run / METRICS, modified(run / METRICS))
    for kind in ("train", "val"):
        steps = [step for step, other in losses if other == kind and step <= about["step"]]
        about = {**about, f"{kind}_loss": losses[max(steps), kind] if steps else None}
    state = "training" if is_locked(run / ".lock") else "finished" if (run / DONE).exists() else "stopped"
    latest = checkpoint == latest_checkpoint(run)
    return {**about, "run": run.name, "state": state, "latest": latest, "picture": (run / PICTURE).is_file()}


def modified(path: Path) -> float:
    """When a file or directory was written, in seconds since 1970; 0 for what is not there (a name on the hub)."""
    return path.stat().st_mtime if path.exists() else 0


def fingerprint(path: Path) -> str:
    """A digest of the names, sizes and times of a model's files, which changes when they are replaced."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    stats = [(file.name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()]]
    return "fp_" + hashlib.sha256(repr((path, stats)).encode()).hexdigest()[:16]


@lru_cache(1000)
def read_about(meta: Path, _modified: float) -> dict[str, Any]:
    """What a meta.json says of a model; {"step": 0} if it is corrupt. OSError if it is not there."""
    try:
        about = json.loads(meta.read_bytes())
        return {
            "step": about["step"],
            "kind": "classifier" if "labels" in about else "instructions" if "template" in about else "text",
            "labels": about.get("labels", []),
            "multi_turn": about.get("converses", False),
            "block_size": about["model"]["block_size"],
        }
    except (ValueError, LookupError, AttributeError, TypeError):
        return {"step": 0}


@lru_cache(64)  # a run that is being trained adds an entry for each change
def read_losses(metrics: Path, _modified: float) -> dict[tuple[int, str], float | None]:
    """The training and validation losses in a run's metrics, by step and kind; {} if they are missing or corrupt."""
    try:
        rows = read_rows(metrics)
    except (OSError, UserError):
        return {}
    return {(row["step"], row["kind"]): row.get("loss") for row in rows if row["kind"] in ("train", "val")}
