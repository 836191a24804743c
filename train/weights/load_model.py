"""What --model means everywhere: a run, a checkpoint, a Hugging Face directory or a hub name, opened."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prepare.common.cli import RUNS, UserError
from prepare.finetuning.instructions import Template
from prepare.tokens.tokenizer import GPT2_VOCAB_SIZE, Tokenizer, load_tokenizer
from train.config.pretrain import ModelConfig
from train.model.classifier import Classifier
from train.model.gpt import GPT
from train.model.lora import merge_lora
from train.run.checkpoint import (
    META,
    WEIGHTS,
    differences,
    latest,
    latest_valid_checkpoint,
    read_meta,
    read_weights,
    shape_of,
)
from train.weights.huggingface import HUB_NAME, download_hf, is_hf_folder, load_hf


@dataclass
class LoadedModel:
    """A model ready to be scored or to talk: in evaluation mode, float32."""

    model: GPT
    known_tokenizer: Tokenizer | None  # None: of data with a small vocabulary and no manifest
    name: str  # what to call it: the run and step, the folder, or the hub's name
    step: int | None  # finished training steps; None for a model that is not ours
    labels: tuple[str, ...] = ()  # of a classifier
    template: Template | None = None  # of an instruction follower
    converses: bool = False  # it has learnt conversations of several turns
    run: Path | None = None  # the run that it is a checkpoint of
    precision: str = "fp32"  # of its matrix products, while it is measured

    @property
    def tokenizer(self) -> Tokenizer:
        """Between its ids and text. UserError where nobody knows it."""
        if self.known_tokenizer is None:
            raise UserError(
                f"{self.name} has no tokenizer, since its data had no manifest.json: it can be continued, exported and "
                "measured on shards; for text, prepare its data with prepare/ and train again"
            )
        return self.known_tokenizer


def load_model(
    spec: str | None, device: torch.device | str = "cpu", option: str = "--model", classifier: bool | None = False
) -> LoadedModel:
    """Open what `--model` names: a run directory, a checkpoint, a Hugging Face directory or a hub name.

    Args:
        spec: None takes the newest run under runs/.
        device: where the weights go.
        option: what the user named it with.
        classifier: whether a classifier is wanted, or a language model; None: either.

    Raises:
        UserError: nothing there can be opened, or it is of the other kind.
    """
    path = newest_run() if spec is None else Path(spec)
    if (path / "checkpoints").is_dir():
        found, meta, _ = latest_valid_checkpoint(path, [WEIGHTS])
        if found is None:
            raise UserError(
                f"{path} has no finished checkpoint yet: let the run reach one, or save one with a STOP file"
            )
        path = found
    elif (path / META).is_file():
        meta = read_meta(path, [WEIGHTS])
    else:
        meta = None
    if meta is not None:
        shape, labels = ModelConfig(**meta["model"]), tuple(meta.get("labels", ()))
        model = Classifier(shape, len(labels)) if labels else GPT(shape)
        model.load_state_dict(merge_lora(read_weights(path / WEIGHTS)))
        run = path.resolve().parent.parent
        name = f"{run.name} at step {meta['step']}"
        template = Template(**meta["template"]) if "template" in meta else None
        tokenizer, converses = model_tokenizer(meta["tokenizer"], shape.vocab_size), meta.get("converses", False)
        loaded = LoadedModel(model, tokenizer, name, meta["step"], labels, template, converses, run)
    elif is_hf_folder(path):
        loaded = LoadedModel(load_hf(path), load_tokenizer(None), path.resolve().name, None)
    elif path.exists():
        raise UserError(
            f"{option} {path}: neither a run (checkpoints/), nor a checkpoint (meta.json), nor a Hugging Face "
            "directory (config.json)"
        )
    elif HUB_NAME.fullmatch(str(spec)):
        loaded = LoadedModel(load_hf(download_hf(str(spec), option)), load_tokenizer(None), str(spec), None)
    else:
        raise UserError(f"{option} {path}: there is no such folder")
    if loaded.known_tokenizer and loaded.model.config.vocab_size < loaded.tokenizer.vocab_size:
        raise UserError(
            f"{option} {path}: its vocabulary of {loaded.model.config.vocab_size} is smaller than its tokenizer's, "
            f"{loaded.tokenizer.name} with {loaded.tokenizer.vocab_size}: they do not belong together"
        )
    if classifier and not loaded.labels:
        raise UserError(f"{option} {path} is no classifier: train/finetune_classify.py makes one of it")
    if loaded.labels and classifier is False:
        raise UserError(
            f"{option} {path} is a classifier ({', '.join(loaded.labels)}): eval/classify.py asks it, "
            "train/export_hf.py exports it; elsewhere name a language model"
        )
    loaded.model.to(device).eval()
    return loaded


def load_initial_weights(spec: str, model: GPT, tokenizer: Mapping[str, Any] | None) -> str:
    """Give a new run's model the weights of another, in place, and say which.

    Args:
        spec: what --model names.
        tokenizer: the description of the new run's data; None where nobody described it.

    Raises:
        UserError: there is no such model, or it is of another shape or vocabulary.
    """
    other = load_model(spec, option="--train.init_from")
    if different := differences("model", shape_of(other.model), shape_of(model)):
        raise UserError(
            f"train.init_from {spec} is a model of another shape: {', '.join(different)}; set these keys as there"
        )
    if tokenizer and tokenizer["sha256"] != other.tokenizer.describe()["sha256"]:
        raise UserError(
            f"train.init_from {spec} has the {other.tokenizer.name} vocabulary of {other.tokenizer.vocab_size} ids, "
            f"the data was made with {tokenizer['name']}: prepare the data with that, or begin from another model"
        )
    model.load_state_dict(other.model.state_dict())
    return other.name


def model_tokenizer(description: Mapping[str, Any] | None, vocab_size: int) -> Tokenizer | None:
    """The tokenizer that the manifest of a model's data describes. Without a manifest it is GPT-2's, or None if the model
    has fewer ids than GPT-2, whose meaning nobody knows."""
    return None if description is None and vocab_size < GPT2_VOCAB_SIZE else load_tokenizer(description)


def newest_run() -> Path:
    """The run under runs/ with the most recently written checkpoint."""
    runs = [run for run in RUNS.glob("*") if latest(run)]
    if not runs:
        raise UserError(f"no run with a checkpoint under {RUNS}: train one (make quickstart), or name a --model")
    return max(runs, key=lambda run: latest(run).stat().st_mtime)
