"""What README.md says can be typed in: its scripts, options, files and numbers are those of the repository."""

import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.helpers.commands import ROOT, run_command
from train.config.parsing import CONFIGS
from train.config.pretrain import load_config, with_vocab_size
from train.model.build import build_model

README = (ROOT / "README.md").read_text()
COMMAND = re.compile(r"(?:python|torchrun|sbatch) [^`\n]*?(?:prepare|train|eval|slurm)/\w+\.(?:py|sbatch)[^`\n|]*")
COMMANDS = sorted({match[0].split("#")[0].split(" -> ")[0].strip() for match in COMMAND.finditer(README)})
CONFIGURATION = re.compile(r"\| `(\w+\.yaml)` \| ([^|]+) \| ([\d,]+) \| [^|]+ \| ([\d,]+) x ([\d,]+) \|")


@cache
def help_of(script: str) -> str:
    return run_command("python", ROOT / script, "--help").stdout


def script_of(words: list[str]) -> int:
    return next(i for i, word in enumerate(words) if re.fullmatch(r"(prepare|train|eval|slurm)/\w+\.(py|sbatch)", word))


def test_there_are_commands_and_their_scripts_exist() -> None:
    assert len(COMMANDS) > 20
    for command in COMMANDS:
        words = shlex.split(command)
        assert (ROOT / words[script_of(words)]).is_file(), command


def test_every_option_of_every_command_is_one_of_its_scripts() -> None:
    scripts = {words[script_of(words)] for words in map(shlex.split, COMMANDS)}
    with ThreadPoolExecutor(2) as pool:  # --help of each takes seconds of imports
        list(pool.map(help_of, sorted(script for script in scripts if script.endswith(".py"))))
    for command in COMMANDS:
        words = shlex.split(command)
        script = words[script_of(words)].replace("slurm/train.sbatch", "train/train_gpt2.py")
        if script.endswith(".sbatch"):
            continue
        for option in (word for word in words[script_of(words) + 1 :] if word.startswith("--")):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_of(script)), f"{option} in {command}"


def test_the_files_and_links_it_names_exist() -> None:
    names = re.findall(r"`((?:prepare|train|eval|configs|slurm|tests|docs)/[\w./]*)`", README)
    names += re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(names) > 15
    for name in names:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("row", CONFIGURATION.findall(README), ids=lambda row: row[0])
def test_the_table_of_configurations(row: tuple[str, ...]) -> None:
    name, shape, parameters, steps, tokens = row
    config = load_config(["--config", str(CONFIGS / name)], "")
    with torch.device("meta"):
        tokenizer = {"vocab_size": 4096} if name in ("quickstart.yaml", "recipes.yaml") else None  # what the data has
        assert f"{build_model(with_vocab_size(config, tokenizer).model).num_parameters():,}" == parameters
    assert (f"{config.train.max_steps:,}", f"{config.data.batch_tokens:,}") == (steps, tokens)
    assert shape.startswith(f"{config.model.n_layer} layers, {config.model.n_embd} wide")


def test_every_shipped_configuration_is_in_the_table() -> None:
    for file in Path(CONFIGS).glob("*.yaml"):
        assert f"`{file.name}`" in README
