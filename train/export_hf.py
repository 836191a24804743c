"""Export a model as a Hugging Face directory, for transformers' AutoTokenizer and AutoModelForCausalLM (a classifier:
AutoModelForSequenceClassification)."""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

import shutil

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from safetensors.torch import save_file

from prepare.common.cli import Parser, UserError, first_line, nonempty, nonempty_path
from prepare.common.files import atomic_write_json
from prepare.tokens.tokenizer import BPETokenizer
from prepare.tokens.vocabulary import write_tokenizer
from train.weights.huggingface import hf_config, to_hf
from train.weights.load_model import load_model


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Export a run or checkpoint as a Hugging Face directory.",
        "python train/export_hf.py --model runs/quickstart --output quickstart_hf",
    )
    parser.add_argument("--model", type=nonempty, metavar="X", help="as everywhere; when not given, the newest run")
    parser.add_argument("--output", metavar="DIR", type=nonempty_path, required=True, help="a new folder")
    parser.add_argument("--push", metavar="REPO", help="upload it to this model repository: me/my-gpt2")
    arguments = parser.parse_args(argv)

    output: Path = arguments.output
    if output.exists():
        raise UserError(f"--output {output} exists already: choose another folder, or remove it")
    loaded = load_model(arguments.model, classifier=None)

    config, tokenizer = loaded.model.config, loaded.known_tokenizer
    is_bpe, eot = isinstance(tokenizer, BPETokenizer), tokenizer.eot if tokenizer else None
    hf = hf_config(config, loaded.labels, eot)

    # under a temporary name first, so that a folder with the final name is complete
    unfinished = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_file(to_hf(loaded.model), unfinished / "model.safetensors", {"format": "pt"})
    atomic_write_json(unfinished / "config.json", hf)
    if not loaded.labels:
        atomic_write_json(unfinished / "generation_config.json", {"bos_token_id": eot, "eos_token_id": eot})
    if is_bpe:
        write_tokenizer(unfinished, tokenizer.merges, {"model_max_length": config.block_size})
    unfinished.rename(output)

    note = "" if is_bpe else " (its vocabulary has no Hugging Face tokenizer)"
    print(f"{loaded.name} -> {output}{note}", flush=True)
    if arguments.push:
        print(f"{output} -> {push(output, arguments.push)}")


def push(folder: Path, repo: str) -> str:
    """Upload a folder to a model repository of the hub, as HF_TOKEN's owner; return its address.

    Raises:
        UserError: the hub refuses it or cannot be reached; the folder stays.
    """
    try:
        name = HfApi().create_repo(repo, exist_ok=True).repo_id
        return str(HfApi().upload_folder(folder_path=folder, repo_id=name, commit_message="Upload weights").repo_url)
    except (HTTPError, HFValidationError, OSError) as failure:
        raise UserError(
            f"--push {repo}: the hub did not take it ({first_line(failure)}); log in (`hf auth login`, or HF_TOKEN "
            f"with write access), then: hf upload {repo} {folder}"
        ) from None
