"""The house's rules, checked on the files themselves: commands and libraries, the order of imports, names, --help."""

import ast
import importlib.metadata
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT, one_line_error, run_command

STAGES = {  # each stage, and each of its folders, may import those before it
    "prepare": [{"common"}, {"sources", "tokens"}, {"pipeline", "finetuning"}],
    "train": [{"config"}, {"model"}, {"parallel"}, {"data"}, {"run"}, {"weights"}, {"trainer"}, {"sweeping"}],
    "eval": [{"common"}, {"generation"}, {"scoring"}, {"monitor", "views"}, {"serving"}],
}
ORDER = list(STAGES)
GUARD = re.compile(
    r"""^if __name__ == "__main__":  # .*
    sys\.path\[0\] = str\(Path\(__file__\)\.resolve\(\)\.parents\[1\]\)
    from prepare\.common\.cli import run_command

    run_command\(__file__(?:, unattended=True)?\)  # .*
""",
    re.MULTILINE,
)
FILES = [path for stage in STAGES for path in sorted((ROOT / stage).rglob("*.py")) if path.name != "__init__.py"]
COMMANDS = [path for path in FILES if path.parent.parent == ROOT]
LIBRARIES = [path for path in FILES if path.parent.parent != ROOT]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@cache
def imports(path: Path) -> set[str]:
    """Every module that a file may be importing, wherever in the file: for `from a.b import c` both a.b and a.b.c."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def floor(name: str) -> int:
    """The place of a library's folder in its stage's order."""
    stage, folder, _ = name.split(".")
    return next(i for i, folders in enumerate(STAGES[stage]) if folder in folders)


def test_a_file_in_a_stage_is_a_command_and_one_in_a_folder_a_library() -> None:
    assert {"prepare.fineweb", "train.train_gpt2", "eval.hellaswag"} <= {name_of(path) for path in COMMANDS}
    for path in COMMANDS:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
        before, *after = GUARD.split(path.read_text())
        assert len(after) == 1, f"{path} has no guard that runs it as a module of the repository"
        packages = set(re.findall(r"^(?:import|from) (\w+)", before, re.MULTILINE))
        assert packages <= sys.stdlib_module_names, f"{path} imports a package before the guard"
        assert "\ndef main(" in after[0]
    for path in LIBRARIES:
        assert "if __name__" not in path.read_text(), f"{path} is a library that can be run"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    """Along the stages, in a stage along its folders; nothing imports a command or a test."""
    libraries = {name_of(library) for library in LIBRARIES}
    assert not imports(path) & {name_of(command) for command in COMMANDS}
    stage = path.relative_to(ROOT).parts[0]
    for module in imports(path):
        top = module.split(".")[0]
        assert top != "tests"
        if not (path in COMMANDS and stage == "train" and top == "eval"):  # training evaluates
            assert top not in ORDER[ORDER.index(stage) + 1 :], f"{module} stands after {stage}"
        if path in LIBRARIES and top == stage and module in libraries:
            folder, other = name_of(path).rpartition(".")[0], module.rpartition(".")[0]
            assert folder == other or floor(module) < floor(name_of(path)), f"{module} stands after {folder}"


def test_no_folder_has_an_import_cycle() -> None:
    libraries = {name_of(path): path for path in LIBRARIES}
    TopologicalSorter({name: imports(path) & set(libraries) for name, path in libraries.items()}).prepare()


def test_no_test_is_imported() -> None:
    for path in TESTS:
        tests = {module for module in imports(path) if re.search(r"^tests\..*\b(test_\w+|conftest)$", module)}
        assert not tests, f"{path}: what tests share stands in tests/helpers"


IMPORT_ALL = """
import importlib, os, signal, sys, threading, warnings
import torch, lm_eval.models.huggingface, datasets  # which have side effects of their own
def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    precision = torch.get_default_dtype(), torch.get_num_threads(), torch.get_float32_matmul_precision()
    hooks = sys.excepthook, sys.displayhook, threading.excepthook, sys.path[:], os.getcwd()
    return handlers, precision, hooks, dict(os.environ), torch.random.initial_seed(), threading.active_count()
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
    assert state() == before, name
"""


def test_importing_a_library_has_no_side_effect(tmp_path: Path) -> None:
    names = [name_of(path) for path in LIBRARIES]
    result = run_command("python", "-c", IMPORT_ALL, *names, cwd=tmp_path, fresh=True, PYTHONPATH=str(ROOT))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_no_module_takes_the_name_of_the_standard_library_or_of_a_dependency() -> None:
    taken = sys.stdlib_module_names | set(importlib.metadata.packages_distributions())
    assert {"token", "datasets", "torch", "tiktoken"} <= taken
    own = {part for path in FILES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not own & taken


def test_every_package_that_is_imported_is_listed_in_the_requirements() -> None:
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {plain(match[0]) for line in lines if (match := re.match(r"[\w.-]+", line))}
    tops = {module.split(".")[0] for path in [*FILES, *TESTS] for module in imports(path)}
    owners = importlib.metadata.packages_distributions()
    missing = {top for top in tops & set(owners) - {*STAGES, "tests"} if listed.isdisjoint(map(plain, owners[top]))}
    assert {"yaml", "torch"} <= tops & set(owners)
    assert not missing


def test_a_python_without_the_packages_is_told_so_in_one_line(tmp_path: Path) -> None:
    for path in COMMANDS:
        result = run_command("python", "-I", "-S", path, "--tasks", "x", cwd=tmp_path, fresh=True)
        assert re.search(r" has no package \w+: .*requirements\.txt", one_line_error(result)), path


@pytest.mark.timeout(300)
def test_help_of_every_command_opens_with_a_sentence_and_a_command_from_any_folder(tmp_path: Path) -> None:
    def find_problems(path: Path) -> list[str]:
        result = run_command("python", path, "--help", cwd=tmp_path, OMP_NUM_THREADS="1")
        if result.returncode or result.stderr:
            return [f"exit {result.returncode}, stderr: {result.stderr[-500:]}"]
        sentence, blank, command, *_ = [*result.stdout.splitlines(), "", "", ""]
        script = path.relative_to(ROOT).as_posix()
        expected = rf"\s+(python|torchrun --standalone --nproc_per_node=\S+) {script}(\s.*)?"
        problems = []
        if not re.fullmatch(r"[A-Z].*[^.]\.", sentence):
            problems.append(f"opens with {sentence!r}, not with one sentence")
        if blank.strip() or not re.fullmatch(expected, command):
            problems.append(f"{command!r} is not a command that runs it")
        if "usage" not in result.stdout.lower():
            problems.append("shows no usage")
        return problems

    with ThreadPoolExecutor(2) as pool:
        results = zip(COMMANDS, pool.map(find_problems, COMMANDS), strict=True)
        assert not {name_of(path): found for path, found in results if found}
    assert not list(tmp_path.iterdir()), "--help creates files"


def test_commands_of_another_clone_import_their_own_modules(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for stage in STAGES:
        shutil.copytree(ROOT / stage, clone / stage, ignore=shutil.ignore_patterns("__pycache__"))
    module = clone / "prepare" / "common" / "cli.py"
    module.write_text("print('the other clone')\n" + module.read_text())
    for python_path in ("", str(ROOT)):
        result = run_command("python", clone / "prepare" / "verify.py", "--help", fresh=True, PYTHONPATH=python_path)
        assert result.stdout.startswith("the other clone"), result.stderr
    theirs = run_command("python", ROOT / "prepare" / "verify.py", "--help", fresh=True, cwd=clone)
    assert not theirs.stdout.startswith("the other clone")
