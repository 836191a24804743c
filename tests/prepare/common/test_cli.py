"""What every command shares: one-line errors with their exit status, help that opens with a command."""

import io
import signal
import sys
from pathlib import Path

import pytest

from prepare.common.cli import ArgumentError, Parser, UserError, run_script
from tests.helpers.commands import ROOT, one_line_error, run_command

FAIL = "import sys\nfrom prepare.common.cli import *\ndef main(): {}\nrun_script(main)"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("raise UserError('a file is\\n  missing: make it')", 1, "error: a file is missing: make it"),
        ("raise ArgumentError('--n is 0: give more')", 2, "error: --n is 0: give more"),
        ("raise OSError(28, 'No space left on device', '/x')", 1, "error: No space left on device (/x): free space"),
        ("raise PermissionError(13, 'Permission denied', 'f')", 1, "error: Permission denied (f)"),
        ("raise KeyboardInterrupt", 130, "error: interrupted"),
    ],
)
def test_mistakes_are_one_line_with_their_status(body: str, status: int, message: str) -> None:
    result = run_command("python", "-c", FAIL.format(body))
    assert one_line_error(result, status).startswith(message)


def test_an_error_is_printed_though_standard_output_is_full() -> None:
    script = FAIL.format("print('x'); raise UserError('no')")
    result = run_command("sh", "-c", '"$0" -c "$1" > /dev/full', sys.executable, script, PYTHONUNBUFFERED="")
    assert result.stderr.startswith("error: no\n")


def test_a_bug_keeps_its_traceback() -> None:
    result = run_command("python", "-c", FAIL.format("raise ValueError('a bug')"))
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_under_torchrun_only_rank_0_says_error() -> None:
    result = run_command("python", "-c", FAIL.format("raise UserError('no')"), RANK="3")
    assert (result.returncode, result.stderr) == (1, "rank 3: no\n")


def test_a_mistake_is_one_write_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    for failure, printed in ((UserError("no"), ["error: no\n"]), (KeyboardInterrupt(), ["\n", "error: interrupted\n"])):
        writes: list[str] = []

        def fail(failure: BaseException = failure) -> None:
            raise failure

        monkeypatch.setattr(sys, "stderr", Terminal())
        with pytest.raises(SystemExit):
            run_script(fail)
        assert writes == printed


def test_a_console_without_a_character_prints_its_escape() -> None:
    script = FAIL.format(r"print('caf\xe9 \u2603', input()); print('\u2603', file=sys.stderr)")
    result = run_command(
        "sh", "-c", 'printf "\\377\\n" | "$0" -c "$1"', sys.executable, script, PYTHONIOENCODING="ascii"
    )
    assert (result.returncode, result.stderr) == (0, "\\u2603\n")
    assert result.stdout.startswith("caf\\xe9 \\u2603 ")


@pytest.mark.parametrize(
    ("unattended", "streams", "status"),
    [(True, "> /dev/full 2> /dev/full", 0), (False, "2> /dev/full", 0), (False, "> /dev/full", 1)],
)
def test_what_cannot_be_printed_ends_no_training(tmp_path: Path, unattended: bool, streams: str, status: int) -> None:
    body = "[print(i, flush=True, file=file) for i in range(9) for file in (sys.stderr, sys.stdout)]; open('end', 'w')"
    script = FAIL.format(body).replace("(main)", f"(main, unattended={unattended})")
    command = f'cd {tmp_path} && PYTHONPATH={ROOT} "$0" -c "$1" {streams}'
    result = run_command("sh", "-c", command, sys.executable, script)
    assert (result.returncode, (tmp_path / "end").exists()) == (status, status == 0), result


def test_output_into_a_closed_pipe_is_no_traceback() -> None:
    script = FAIL.format("[print(i, flush=True) for i in range(100_000)]")
    result = run_command("bash", "-c", f'{sys.executable} -c "{script}" | head -n 1')
    assert result.stdout == "0\n"
    assert result.stderr == ""


def test_help_opens_with_a_sentence_and_a_command(capsys: pytest.CaptureFixture) -> None:
    parser = Parser("Count things.", "python prepare/count.py --n 3")
    parser.add_argument("--n", type=int, default=5, help="how many")
    parser.add_argument("--out", help="where to")
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("Count things.\n\n    python prepare/count.py --n 3\n")
    assert "how many (default: 5)" in out
    assert "None" not in out
    with pytest.raises(ArgumentError, match=r"invalid int value: 'x' \(see .* --help\)"):
        parser.parse_args(["--n", "x"])


def test_one_of_several_processes_ends_without_python_s_finalization() -> None:
    code = """import atexit, os, sys
from prepare.common.cli import run_script
class Aborts:
    def __del__(self, abort=os.abort): abort()
def main():
    sys.kept = Aborts()  # until the very end
    atexit.register(lambda: print("exit function"))
    print("worked")
run_script(main)"""
    result = run_command("python", "-c", code, fresh=True, WORLD_SIZE="2")
    assert (result.returncode, result.stdout) == (0, "worked\nexit function\n")
    assert run_command("python", "-c", code, fresh=True, WORLD_SIZE="1").returncode == -signal.SIGABRT
