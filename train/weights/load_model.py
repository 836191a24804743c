"""Open what --model names everywhere: a run, a checkpoint, nanoGPT's too, a Hugging Face directory or a hub name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prepare.common.cli import RUNS, UserError
from prepare.finetuning.instructions import Template
from prepare.tokens.tokenizer import GPT2_VOCAB_SIZE, Tokenizer, load_tokenizer
from train.config.pretrain import ModelConfig
from train.model.build import build_classifier, build_model
from train.model.lora import merge_lora
from train.model.transformer import Transformer
from train.run.checkpoint import META, WEIGHTS, latest_checkpoint, latest_valid_checkpoint, read_meta, read_weights
from train.run.resume import differences, shape_of
from train.weights.huggingface import HUB_NAME, download_hf, hf_tokenizer, load_hf
from train.weights.nanogpt import load_nanogpt

NANOGPT = "ckpt.pt"  # in nanoGPT's out_dir


@dataclass
class LoadedModel:
    """A model for scoring and generation: in evaluation mode, float32."""

    model: Transformer
    known_tokenizer: Tokenizer | None  # None: its data had a small vocabulary and no manifest
    name: str  # for messages: the run and step, the folder, or the hub name
    step: int | None = None  # finished training steps; None for a Hugging Face model
    labels: tuple[str, ...] = ()  # of a classifier
    template: Template | None = None  # of an instruction follower
    multi_turn: bool = False  # fine-tuned on conversations of several turns
    checkpoint: Path | None = None  # the folder, absolute; None for other projects' models

    @property
    def run(self) -> Path | None:
        """The run directory of the checkpoint."""
        return self.checkpoint.parents[1] if self.checkpoint else None

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. UserError if it is not known."""
        if self.known_tokenizer is None:
            raise UserError(
                f"{self.name} has no tokenizer, since its data had no manifest.json: it can be resumed, exported and "
                "evaluated on shards; for text, prepare its data with prepare/ and train again (of nanoGPT: put "
                "meta.pkl next to ckpt.pt)"
            )
        return self.known_tokenizer


def load_model(
    spec: str | None, device: torch.device | str = "cpu", option: str = "--model", classifier: bool | None = False
) -> LoadedModel:
    """Open what `--model` names: a run directory, a checkpoint (nanoGPT's .pt too), a Hugging Face directory or
    a hub name.

    Args:
        spec: None takes the newest run under runs/.
        device: where the weights go.
        option: the option that `spec` was given with, for messages.
        classifier: whether a classifier is wanted, or a language model; None: either.

    Raises:
        UserError: there is no such model, or it is of the other kind.
    """
    path = newest_run() if spec is None else Path(spec)
    if (path / "checkpoints").is_dir():
        checkpoint, meta, _ = latest_valid_checkpoint(path, [WEIGHTS])
        if checkpoint is None:
            raise UserError(f"{path} has no checkpoint yet: wait for its first, or save one with a STOP file")
        loaded = load_checkpoint(checkpoint, meta)
    elif (path / META).is_file():
        loaded = load_checkpoint(path, read_meta(path, [WEIGHTS]))
    elif (path / "config.json").is_file():
        loaded = LoadedModel(load_hf(path), hf_tokenizer(path), path.resolve().name)
    elif path.suffix == ".pt" or (path / NANOGPT).is_file():
        file = path if path.suffix == ".pt" else path / NANOGPT
        model, tokenizer, step = load_nanogpt(file)
        loaded = LoadedModel(model, tokenizer, f"{file.resolve().parent.name}/{file.name}", step)
    elif path.exists():
        raise UserError(
            f"{option} {path}: neither a run (checkpoints/), nor a checkpoint (meta.json, or nanoGPT's .pt), "
            "nor a Hugging Face directory (config.json)"
        )
    elif HUB_NAME.fullmatch(str(spec)):
        folder = download_hf(str(spec), option)
        loaded = LoadedModel(load_hf(folder), hf_tokenizer(folder), str(spec))
    else:
        raise UserError(f"{option} {path}: there is no such folder")

    if loaded.known_tokenizer and loaded.model.config.vocab_size < loaded.tokenizer.vocab_size:
        raise UserError(
            f"{option} {path}: its vocabulary of {loaded.model.config.vocab_size} is smaller than its tokenizer's, "
            f"{loaded.tokenizer.name} with {loaded.tokenizer.vocab_size}: they do not belong together"
        )
    if classifier and not loaded.labels:
        raise UserError(f"{option} {path} is not a classifier: train/finetune_classify.py turns it into one")
    if loaded.labels and classifier is False:
        raise UserError(
            f"{option} {path} is a classifier ({', '.join(loaded.labels)}): eval/classify.py classifies with it, "
            "train/export_hf.py exports it; elsewhere name a language model"
        )
    loaded.model.to(device).eval()
    return loaded


def load_checkpoint(checkpoint: Path, meta: Mapping[str, Any]) -> LoadedModel:
    """The model of a checkpoint, with what its meta.json says about it."""
    config, labels = ModelConfig(**meta["model"]), tuple(meta.get("labels", ()))
    model = build_classifier(config, len(labels)) if labels else build_model(config)
    model.load_state_dict(merge_lora(read_weights(checkpoint / WEIGHTS)))
    checkpoint = checkpoint.resolve()
    return LoadedModel(
        model,
        model_tokenizer(meta["tokenizer"], config.vocab_size),
        name=f"{checkpoint.parents[1].name} at step {meta['step']}",
        step=meta["step"],
        labels=labels,
        template=Template(**meta["template"]) if "template" in meta else None,
        multi_turn=meta.get("converses", False),  # its name in meta.json
        checkpoint=checkpoint,
    )


def load_initial_weights(spec: str, model: Transformer, tokenizer: Mapping[str, Any] | None) -> str:
    """Copy another model's weights into a new run's model, and return the other's name.

    Args:
        spec: what --model names.
        tokenizer: of the new run's data, as its manifest describes it; None without a manifest.

    Raises:
        UserError: there is no such model, or it has another shape or vocabulary.
    """
    other = load_model(spec, option="--train.init_from")
    if tokenizer and tokenizer["sha256"] != other.tokenizer.describe()["sha256"]:
        raise UserError(
            f"train.init_from {spec} has the {other.tokenizer.name} vocabulary of {other.tokenizer.vocab_size} ids, "
            f"the data was made with another, {tokenizer['name']} with {tokenizer['vocab_size']}: "
            "prepare the data with that, or start from another model"
        )
    if different := differences("model", shape_of(other.model), shape_of(model)):
        raise UserError(
            f"train.init_from {spec} is a model of another shape: {', '.join(different)}; set these keys as there"
        )
    model.load_state_dict(other.model.state_dict())
    return other.name


def model_tokenizer(description: Mapping[str, Any] | None, vocab_size: int) -> Tokenizer | None:
    """The tokenizer that the manifest of a model's data describes.

    Without a manifest it is GPT-2's, or None (not known) if the model has fewer ids than GPT-2.
    """
    return None if description is None and vocab_size < GPT2_VOCAB_SIZE else load_tokenizer(description)


def newest_run() -> Path:
    """The run under runs/ with the most recently written checkpoint."""
    runs = [run for run in RUNS.glob("*") if latest_checkpoint(run)]
    if not runs:
        raise UserError(f"no run with a checkpoint under {RUNS}: train one (make quickstart), or name a --model")
    return max(runs, key=lambda run: latest_checkpoint(run).stat().st_mtime)
