"""The grid of a sweep: its runs, their names and their configurations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from prepare.common.cli import ArgumentError, UserError
from train.config.parsing import plain_config
from train.config.pretrain import Config, load_config
from train.run.run_dir import CONFIG

SAFE = "+,=@:[]"  # characters of a value that a folder's name keeps, besides letters, digits and _.-~
# Sections and keys that no loss depends on
IGNORED = {"run", "log", "checkpoint", "data.micro_batch_size"}
IGNORED |= {f"train.{key}" for key in ("recompute", "shard_optimizer", "timeout_seconds")}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep: a setting of the grid with a seed."""

    setting: str  # such as max_lr=0.002,n_layer=4
    seed: int
    values: dict[str, Any]  # of the grid's keys
    config: Config
    words: list[str]  # the options of train_gpt2.py

    @property
    def path(self) -> Path:
        return Path(self.config.run.dir)  # ty: ignore[invalid-argument-type]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def stop_file(self) -> Path:
        """Where train/run/stop_request.py looks for a request to stop."""
        return self.path / "STOP"


def plan_runs(file: Path, grid: Sequence[str], seeds: int, out: Path) -> list[PlannedRun]:
    """The runs of a sweep, each setting of the grid with the first seed, then with the next.

    Args:
        file: the configuration that the grid changes.
        grid: KEY=A,B,..., or KEY+KEY=A+B,C+D,... for keys that change together.
        out: the folder of the run directories.

    Raises:
        ArgumentError: an unknown key, a value that no run can use, or a run without validation.
    """
    settings: dict[str, tuple[dict[str, Any], Config, list[str]]] = {}  # equal values, 2e-3 and 0.002, are one setting
    for parts in product(*map(parse_axis, grid)):
        pairs = list(chain(*parts))
        words = [f"--{key}={text}" for key, text in pairs]
        config = load_config(["--config", str(file), *words], "")
        if not config.eval.every:
            raise ArgumentError("eval.every is 0: a sweep compares validation losses, so give an interval")
        plain = plain_config(config)
        values = {key: plain[key.split(".")[0]][key.split(".")[1]] for key, _ in pairs}
        setting = ",".join(f"{short_key(key)}={format_value(value)}" for key, value in values.items())
        settings.setdefault(setting, (values, config, words))
    runs = []
    for seed, (setting, (values, config, words)) in product(range(1, seeds + 1), settings.items()):
        run_dir = str(out / f"{setting},seed={seed}")
        words = ["--config", str(file), "--run.dir", run_dir, *words, f"--train.seed={seed}"]
        train, run = replace(config.train, seed=seed), replace(config.run, dir=run_dir)
        runs.append(PlannedRun(setting, seed, values, replace(config, train=train, run=run), words))
    return runs


def parse_axis(text: str) -> list[tuple[tuple[str, str], ...]]:
    """The values of one part of --grid: for each, pairs of key and text. ArgumentError if it is not of that form."""
    keys, _, values = text.partition("=")
    names = keys.split("+")
    if not all("." in name for name in names) or not values:
        raise ArgumentError(f"--grid {text} is not KEY=A,B: give keys and values, such as optim.max_lr=1e-3,2e-3")
    for name in names:
        if name.startswith("run.") or name == "train.seed":
            raise ArgumentError(f"--grid {name}: the sweep sets it itself (--out, --seeds), so leave it out")
    axis = []
    for value in split_outside_brackets(values):
        texts = value.split("+") if len(names) > 1 else [value]
        if len(texts) != len(names):
            raise ArgumentError(f"--grid {keys}: {value} has {len(texts)} values, joined by +, for {len(names)} keys")
        axis.append(tuple(zip(names, texts, strict=True)))
    return axis


def split_outside_brackets(text: str) -> list[str]:
    """Split at the commas that stand in no brackets or braces: `[],[a,b]` is two values."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def short_key(key: str) -> str:
    """The last part of a key; all of it where several sections have such a key, as `every`."""
    name = key.partition(".")[2]
    sections = [section for section in plain_config(Config()).values() if name in section]
    return name if len(sections) == 1 else key


def format_value(value: Any) -> str:
    """A value in canonical form, the same for 2e-3 and 0.002, and safe in a folder's name."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(format_value, value)) + "]"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return quote(str(value), safe=SAFE)


def check_existing(runs: Sequence[PlannedRun]) -> None:
    """UserError if a run directory holds a run with another configuration."""
    for run in runs:
        file = run.path / CONFIG
        if not file.exists():
            continue
        for section, theirs in read_plain_config(file).items():
            ours = plain_config(run.config)[section]
            for key in ours:
                ignored = IGNORED & {section, f"{section}.{key}"}
                open_vocabulary = f"{section}.{key}" == "model.vocab_size" and not ours[key]  # 0: that of the data
                if not (ignored or open_vocabulary or _same(ours[key], theirs[key])):
                    raise UserError(
                        f"{run.path} holds a run with {section}.{key} {theirs[key]}, not {ours[key]}: choose another "
                        "--out, or remove that run"
                    )


def read_plain_config(file: Path) -> dict[str, dict[str, Any]]:
    """The keys of a run's config.yaml by section; those that it lacks, as an older run does, have their defaults."""
    stored = yaml.safe_load(file.read_text())
    return {section: {**keys, **stored.get(section, {})} for section, keys in plain_config(Config()).items()}


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal, or spell the same path, one of them relative."""
    if isinstance(one, str) and isinstance(other, str):
        return one == other or one.endswith(f"/{other}") or other.endswith(f"/{one}")
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other
