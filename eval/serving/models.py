"""The models that can be served: the runs and their checkpoints, Hugging Face directories, and what --model names."""

import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from prepare.common.cli import UserError
from prepare.common.files import find_paths, is_locked
from train.run.checkpoint import META, all_checkpoints, read_meta, step_of
from train.run.metrics_log import METRICS, read_rows
from train.run.run_dir import DONE

PICTURE = "loss.png"


class Refused(UserError):
    """A request that is answered by an HTTP status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ModelFiles:
    """A model, and the files that it is loaded from. Two are equal if the files are, whatever the name."""

    name: str = field(compare=False)
    path: Path = field(compare=False)  # what load_model opens; may be a name on the hub
    run: Path | None = field(compare=False)  # of a checkpoint
    fingerprint: str
    modified: float = field(compare=False)  # when it was written, in seconds since 1970; 0 for a name on the hub


class Catalog:
    """The models by name: NAME is the latest checkpoint of RUNS/NAME, or a Hugging Face directory; NAME@STEP is another
    checkpoint. Names are looked up in the list of what is there; no path is made from a request."""

    def __init__(self, runs: Path, named: str | None = None) -> None:
        """`named`: the value of --model, which is the default model; without it, the newest run is."""
        self.runs, self.named = runs.absolute(), named  # a path that cannot be taken for a name on the hub

    def models(self) -> list[ModelFiles]:
        """Every model: that of --model first, then the runs, the newest first, then the others."""
        found = [*find_paths(self.runs / "*"), *find_paths(self.runs / "*/*")]  # a sweep's runs are in its folder
        names = sorted(str(path.relative_to(self.runs)) for path in found)
        folders = {self.named: Path(self.named)} if self.named else {}
        folders |= {name: self.runs / name for name in names if name.isprintable()}
        models = []
        for name, folder in folders.items():
            with suppress(OSError):  # deleted meanwhile, or not readable
                paths, run = {name: folder}, None
                if checkpoints := all_checkpoints(folder):
                    paths, run = {name: checkpoints[-1]}, folder
                    paths |= {f"{name}@{step_of(checkpoint)}": checkpoint for checkpoint in checkpoints}
                elif (folder / META).is_file():
                    run = folder.absolute().parent.parent
                elif name != self.named and not (folder / "config.json").is_file():
                    continue
                models += [ModelFiles(key, path, run, *fingerprint(path)) for key, path in paths.items()]
        return sorted(models, key=lambda model: (model.name != self.named, model.run is None, -model.modified))

    def find(self, name: str | None) -> ModelFiles:
        """The model of this name; None: the first. Refused if there is none."""
        for model in self.models():
            if name in (None, model.name):
                return model
        if name is None:
            raise Refused(404, f"there is no model in {self.runs}: train one, or start the server with --model")
        raise Refused(404, f"there is no model {name!a} in GET /v1/models: it may have been deleted or renamed")


def fingerprint(path: Path) -> tuple[str, float]:
    """A digest of the names, sizes and times of a model's files, which changes when they are replaced or deleted, and
    when the newest was written."""
    stats, modified = [], 0.0
    with suppress(OSError):  # deleted meanwhile, or a name on the hub
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            stat = file.stat()
            stats.append((file.name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
            modified = max(modified, stat.st_mtime)
    return "fp_" + hashlib.sha256(repr((path, stats)).encode()).hexdigest()[:16], modified


def describe(model: ModelFiles) -> dict[str, Any]:
    """A model as OpenAI's list has it, with what its files tell about it, and the state of its run."""
    about: dict[str, Any] = {"id": model.name, "object": "model", "created": int(model.modified), "owned_by": "you"}
    about["fingerprint"] = model.fingerprint
    if run := model.run:
        metrics = run / METRICS
        about |= read_about(model, metrics, fingerprint(metrics))
        about["state"] = "training" if is_locked(run / ".lock") else "finished" if (run / DONE).exists() else "stopped"
        about["picture"] = (run / PICTURE).is_file()
    return about


@lru_cache(1000)  # a run that is being trained adds entries whenever the list is asked for
def read_about(model: ModelFiles, metrics: Path, files: tuple[str, float]) -> dict[str, Any]:
    """A checkpoint's step, kind and last losses (not that before training); without those whose files are corrupt or
    missing."""
    about: dict[str, Any] = {"train_loss": None, "val_loss": None}
    with suppress(OSError, UserError):
        meta = read_meta(model.path, [])
        about["kind"] = "classifier" if "labels" in meta else "instructions" if "template" in meta else "text"
        about |= {"labels": meta.get("labels", []), "multi_turn": meta.get("converses", False)}
        about |= {"step": meta["step"], "block_size": meta["model"]["block_size"]}
        for row in read_metrics_once(metrics, files):
            if 0 < row["step"] <= meta["step"] and (key := f"{row['kind']}_loss") in about:
                about[key] = row.get("loss")
    return about


@lru_cache(8)  # the checkpoints of a run share them
def read_metrics_once(metrics: Path, _files: tuple[str, float]) -> list[dict[str, Any]]:
    return read_rows(metrics)
