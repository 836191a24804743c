"""Read a configuration: dataclasses of sections, filled from a YAML file and then from the command line."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse
import yaml

from prepare.common.cli import ROOT, RUNS, ArgumentError
from prepare.common.files import atomic_write_text

CONFIGS = ROOT / "configs"
AnyConfig = TypeVar("AnyConfig", bound=Any)


class ConfigParser(jsonargparse.ArgumentParser):
    """A jsonargparse parser with this project's help and one-line errors."""

    opening = ""
    file = ""  # the configuration file being read, for messages

    def format_help(self) -> str:
        return self.opening + super().format_help()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        hint = "quote globs, so that the shell leaves them alone" if ".bin" in message else "see --help for every key"
        raise ArgumentError(f"{self.file}{message} ({hint})") from ex


def read_config(
    argv: list[str] | None, opening: str, kind: type[AnyConfig], default: str, check: Callable[[AnyConfig], None]
) -> AnyConfig:
    """Read `--config FILE`, then the command line's `--section.key value`, and check the values.

    Args:
        argv: the command line, without the program's name; None takes the process's.
        opening: what --help prints first.
        kind: a dataclass of sections, `run` among them.
        default: the file in configs/ that is read without --config.
        check: raises ArgumentError at a value that no run can use.

    Raises:
        ArgumentError: an unknown key, a value of the wrong type, or values that do not fit together.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path, default=CONFIGS / default)
    chosen, words = first.parse_known_args(argv)  # the file is read first, wherever --config is on the command line
    parser = ConfigParser(allow_abbrev=False)
    parser.opening = opening
    parser.add_argument("--config", action="config", help=f"a YAML file (default: configs/{default})")
    sections = kind.__dataclass_fields__
    for name, section in sections.items():
        parser.add_argument(f"--{name}", type=section.type, default=section.default_factory(), **section.metadata)
    try:
        if chosen.config.is_file():  # first on its own, so that errors in it name the file
            parser.file = f"{chosen.config}: "
            parser.parse_path(chosen.config)
            parser.file = ""
        values = parser.instantiate(parser.parse_args(["--config", str(chosen.config), *words]))
        config = kind(**{name: values[name] for name in sections})
        if config.run.dir is None:
            config = replace(config, run=replace(config.run, dir=str(RUNS / chosen.config.stem)))
        check(config)
    except TypeError as failure:
        raise ArgumentError(f"an empty section or value (null) in {chosen.config} ({failure}): fill it") from None
    return config


def check_positive(config: Any, keys: Iterable[str]) -> None:
    """ArgumentError unless each of these keys is a number above 0, or `auto`."""
    for key, value in _values(config, keys):
        if value != "auto" and value <= 0:
            raise ArgumentError(f"{key} is {value}: give a number above 0")


def check_not_negative(config: Any, keys: Iterable[str]) -> None:
    """ArgumentError unless each of these keys is a number of 0 or more."""
    for key, value in _values(config, keys):
        if value < 0:
            raise ArgumentError(f"{key} is {value}: give a number 0 or more")


def check_probability(config: Any, *keys: str) -> None:
    """ArgumentError unless each of these keys lies in [0, 1)."""
    for key, value in _values(config, keys):
        if not 0 <= value < 1:
            raise ArgumentError(f"{key} is {value}: give a probability from 0 to below 1")


def _values(config: Any, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for key in keys:
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if value is None:
            raise ArgumentError(f"{key} has no value: give one, or take the key out of the file")
        yield key, value


def nearest_multiples(value: int, unit: int) -> str:
    """The multiples of `unit` just below and above a value, as text: "3 or 6"; without 0."""
    below = value // unit * unit
    return " or ".join(str(multiple) for multiple in (below, below + unit) if multiple)


def save_config(config: Any, path: Path) -> None:
    """Write the configuration as YAML that `--config` reads, atomically."""
    atomic_write_text(path, yaml.safe_dump(plain_config(config), sort_keys=False))


def plain_config(config: Any) -> dict[str, dict[str, Any]]:
    """The values of a configuration by section and key, as YAML and JSON hold them."""
    plain = asdict(config)
    plain["optim"]["betas"] = list(config.optim.betas)
    return plain


def values_by_key(plain: dict[str, Any]) -> dict[str, Any]:
    """The values of a plain configuration by their full keys, such as optim.max_lr, or init of fine-tuning."""
    sections = {name: values if isinstance(values, dict) else {"": values} for name, values in plain.items()}
    return {f"{name}.{key}".rstrip("."): value for name, values in sections.items() for key, value in values.items()}
