"""The house's rules, checked on the files themselves: import layers, names, and what every script promises."""

import ast
import importlib.metadata
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT, run_command

LAYERS = ("prepare", "train", "eval")  # each may import itself and those before it
MODULES = sorted(path for room in LAYERS for path in (ROOT / room).rglob("*.py"))
GUARD = "    sys.path[0] = str(Path(__file__).resolve().parents[1])"
ENDING = """\
if __name__ == "__main__":
    run_script(main)
"""


def _is_root(path: Path) -> bool:
    return "__main__" in path.read_text()


ROOTS = [path for path in MODULES if _is_root(path)]
LIBRARIES = [path for path in MODULES if not _is_root(path)]


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _imports(path: Path) -> set[str]:
    """Every module that a file may be importing, wherever in the file: for `from a.b import c` both a.b and a.b.c."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _installed_names() -> set[str]:
    """The top-level module names of everything that is installed."""
    return set(importlib.metadata.packages_distributions()) | {"torch", "numpy", "datasets", "transformers"}


def test_the_house_has_roots_and_libraries():
    assert {"prepare.fineweb", "train.train_gpt2", "eval.hellaswag"} <= {_name(path) for path in ROOTS}
    libraries = {_name(path) for path in LIBRARIES}
    assert {"prepare.tokens.shards", "train.model.gpt", "eval.scoring.log_likelihood"} <= libraries


@pytest.mark.parametrize("path", LIBRARIES, ids=_name)
def test_library_imports_go_one_way_and_never_to_a_root(path):
    room = path.relative_to(ROOT).parts[0]
    above = LAYERS[LAYERS.index(room) + 1 :]
    forbidden = {_name(root) for root in ROOTS} | {"tests"}
    for module in _imports(path):
        assert module.split(".")[0] not in (*above, "tests"), f"{_name(path)} imports {module}, which stands after it"
        assert module not in forbidden, f"{_name(path)} imports the script {module}"


@pytest.mark.parametrize("path", ROOTS, ids=_name)
def test_script_imports_no_other_script(path):
    assert not _imports(path) & {_name(root) for root in ROOTS}
    assert not {module for module in _imports(path) if module.split(".")[0] == "tests"}


@pytest.mark.parametrize("path", ROOTS, ids=_name)
def test_script_begins_with_the_guard_and_ends_with_run_script(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no docstring"
    assert text.splitlines().count(GUARD) == 1, "no guarded line, or another wording"
    ours = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in LAYERS
    ]
    assert min(ours) > text.splitlines().index(GUARD), "imports of the house before the guarded line"
    assert text.endswith("\n\n" + ENDING)


def test_no_module_takes_the_name_of_the_standard_library_or_of_a_dependency():
    taken = sys.stdlib_module_names | _installed_names()
    assert {"token", "datasets", "torch", "tiktoken"} <= taken
    own = {part for path in MODULES for part in path.relative_to(ROOT).with_suffix("").parts} - {"__init__"}
    # The rooms themselves are packages of ours, found first because the repository's root is first on sys.path.
    assert not own & taken


def test_every_package_that_is_imported_is_listed_in_the_requirements():
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {plain(match[0]) for line in lines if (match := re.match(r"[\w.-]+", line))}
    files = [*MODULES, *(ROOT / "tests").rglob("*.py")]
    tops = {module.split(".")[0] for path in files for module in _imports(path)}
    owners = importlib.metadata.packages_distributions()
    missing = {top for top in tops & set(owners) - {*LAYERS, "tests"} if listed.isdisjoint(map(plain, owners[top]))}
    assert {"yaml", "torch"} <= tops & set(owners)
    assert not missing


@pytest.mark.timeout(300)
def test_help_of_every_script_opens_with_a_sentence_and_a_command_from_any_folder(tmp_path):
    def ask(path: Path) -> list[str]:
        result = run_command("python", path, "--help", fresh=True, cwd=tmp_path, OMP_NUM_THREADS="1")
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
        problems = {_name(path): found for path, found in zip(ROOTS, pool.map(ask, ROOTS), strict=True) if found}
    assert not problems
    assert not list(tmp_path.iterdir()), "--help leaves files behind"


def test_scripts_of_another_clone_import_their_own_modules(tmp_path):
    clone = tmp_path / "clone"
    for room in LAYERS:
        shutil.copytree(ROOT / room, clone / room, ignore=shutil.ignore_patterns("__pycache__"))
    module = clone / "prepare" / "common" / "cli.py"
    text = module.read_text()
    assert text.count("return self.opening + super().format_help()") == 1
    module.write_text(text.replace("return self.opening +", "return 'from the other clone' +"))
    for python_path in ("", str(ROOT)):
        result = run_command(
            "python", clone / "prepare" / "verify.py", "--help", fresh=True, cwd=ROOT, PYTHONPATH=python_path
        )
        assert result.stdout.startswith("from the other clone"), result.stderr
    theirs = run_command("python", ROOT / "prepare" / "verify.py", "--help", fresh=True, cwd=clone)
    assert not theirs.stdout.startswith("from the other clone")
