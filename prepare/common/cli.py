"""What every command shares: its parser, argument types, one-line errors, and the repository's root."""

import argparse
import atexit
import errno
import importlib
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data"
RUNS = ROOT / "runs"


def available_cores() -> int:
    """The number of CPU cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class UserError(Exception):
    """A mistake that the user can fix: the message says what is wrong, which value, and what to do, in one line."""


class ArgumentError(UserError):
    """A UserError about the command line or the configuration: exit status 2 instead of 1."""


def write_line(line: str) -> None:
    """Write a line to stderr in one call; print makes two, and another process's line may come between them."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def warn(message: str) -> None:
    """Write a line `warning: ...` to stderr; of torchrun's processes, rank 0 alone does."""
    if os.environ.get("RANK", "0") == "0":
        write_line(f"warning: {message}")


def first_line(failure: BaseException) -> str:
    """The first line of an exception's message, or its type if it has none."""
    return (str(failure).splitlines() or [type(failure).__name__])[0]


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates (from JSON's escapes) by U+FFFD, as tiktoken does: UTF-8 cannot encode them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Show the default of an option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, "") else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose help opens with one sentence and one command that runs."""

    def __init__(self, sentence: str, example: str) -> None:
        super().__init__(formatter_class=_Defaults)
        self.opening = f"{sentence}\n\n    {example}\n\n"

    def format_help(self) -> str:
        return self.opening + super().format_help()

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message} (see {self.prog} --help)")


def positive(text: str) -> int:
    """argparse type: an integer above zero."""
    if not text.replace("_", "").isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer above zero")
    return int(text)


def nonempty(text: str) -> str:
    """argparse type: a name, which an unset shell variable would leave empty."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: give a name, or leave the option out")
    return text


def nonempty_path(text: str) -> Path:
    """argparse type: a file or folder. An empty one would be the current folder."""
    return Path(nonempty(text))


def run_command(file: str, unattended: bool = False) -> NoReturn:
    """Import the command in `file` as a module of the repository, and run its main as run_script does."""
    module = ".".join(Path(file).resolve().relative_to(ROOT).with_suffix("").parts)
    run_script(lambda: importlib.import_module(module).main(), unattended)


def run_script(main: Callable[[], None], unattended: bool = False) -> NoReturn:
    """Run a command's main; a UserError, or a missing package, becomes one line `error: ...` and exit status 1 (2:
    arguments).

    Args:
        unattended: whether to continue when standard output cannot be written (a full disk, a closed pipe), as
            training does, whose results are files. A closed terminal or a broken standard error never ends a command.
    """
    _prepare_console(unattended)
    try:
        main()
        sys.stdout.flush()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _leave()
    except UserError as mistake:
        _fail(str(mistake), 2 if isinstance(mistake, ArgumentError) else 1)
    except ModuleNotFoundError as missing:
        if not missing.name or (ROOT / missing.name.split(".")[0]).exists():  # a bug of ours
            raise
        remedy = f"run {ROOT}/.venv/bin/python, which `make quickstart` creates, or pip install -r requirements.txt"
        _fail(f"{sys.executable} has no package {missing.name}: {remedy}", 1)
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            sys.stderr.write("\n")  # after ^C, and perhaps a progress bar
        _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of the output (head, less) has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as failure:
        full, closed = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), (errno.EACCES, errno.EPERM, errno.EROFS)
        if failure.errno not in (*full, *closed, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP):
            raise
        where = f" ({failure.filename})" if failure.filename else ""
        _fail(f"{failure.strerror}{where}: free space or choose another folder, then run the same command again", 1)
    raise SystemExit(0)


class _Console:
    """A text stream that loses what cannot be written, except for the errors `raised`."""

    def __init__(self, stream: Any, raised: tuple[int, ...] = ()) -> None:
        self.stream, self.raised = stream, raised

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return self._attempt(self.stream.write, text) or len(text)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def _attempt(self, work: Callable, *arguments: str) -> Any:
        try:
            return work(*arguments)
        except OSError as failure:
            if failure.errno in self.raised:
                raise


def _prepare_console(unattended: bool) -> None:
    """Make each print safe: a character that the console's encoding lacks is escaped, and a stream may break."""
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    if sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__:  # not in a test that captures them
        sys.stderr = _Console(sys.stderr)
        sys.stdout = _Console(sys.stdout, () if unattended else (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def _leave() -> NoReturn:
    """Exit one of torchrun's processes with status 0, without Python's finalization: during it, a thread of the process
    group that takes the GIL to free a tensor is terminated inside C++, which aborts the process."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def _fail(message: str, status: int) -> NoReturn:
    with suppress(OSError):  # perhaps a full disk
        sys.stdout.flush()
    rank = os.environ.get("RANK", "0")  # under torchrun every process may fail; rank 0's is the line to read
    who = "error" if rank == "0" else f"rank {rank}"
    write_line(f"{who}: {' '.join(message.split())}")
    raise SystemExit(status)
