"""Write a model as a Hugging Face directory: AutoModelForCausalLM and AutoTokenizer open it, without a network."""

import sys
from pathlib import Path

if not __package__: sys.path[0] = str(Path(__file__).resolve().parents[1])  # noqa: E701  scripts run from anywhere

import shutil

from safetensors.torch import save_file

from prepare.cli import Parser, UserError, run_script
from prepare.shards import write_json
from prepare.tokenizer import EOT, GPT2Tokenizer, gpt2_vocabulary_files
from train.checkpoint import load_model
from train.hf_weights import hf_config, to_hf


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Write a run or checkpoint as a Hugging Face directory.",
        "python train/export_hf.py --model runs/gpt2_124m --output gpt2_124m_hf",
    )
    parser.add_argument("--model", metavar="X", help="a run or a checkpoint; when not given, the newest run")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="a folder that does not exist yet")
    arguments = parser.parse_args(argv)

    output: Path = arguments.output
    if output.exists():
        raise UserError(f"--output {output} exists already: choose another folder, or remove it")
    loaded = load_model(arguments.model)
    if not loaded.model.config.bias:
        raise UserError(f"{loaded.name} has no biases (model.bias false), and Hugging Face's GPT-2 always has them")

    # Everything under another name first, then one rename.
    unfinished = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    is_gpt2 = isinstance(loaded.tokenizer, GPT2Tokenizer)
    special = {"bos_token_id": EOT, "eos_token_id": EOT} if is_gpt2 else {"bos_token_id": None, "eos_token_id": None}
    save_file(to_hf(loaded.model), unfinished / "model.safetensors", {"format": "pt"})
    write_json(unfinished / "config.json", hf_config(loaded.model.config) | special)
    write_json(unfinished / "generation_config.json", special)
    if is_gpt2:
        for source, name in zip(gpt2_vocabulary_files(), ("vocab.json", "merges.txt"), strict=True):
            shutil.copyfile(source, unfinished / name)
        tokens = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
        settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": loaded.model.config.block_size, **tokens}
        write_json(unfinished / "tokenizer_config.json", settings)
    unfinished.rename(output)
    note = "" if is_gpt2 else " (its character vocabulary has no Hugging Face tokenizer)"
    print(f"{loaded.name} -> {output}{note}")


if __name__ == "__main__":
    run_script(main)
