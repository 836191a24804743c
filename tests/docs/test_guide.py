"""The guide: its snippets print what stands below them, its links lead somewhere, its chapters open as notebooks.

After a change, `pytest tests/docs --update-examples` formats the snippets and writes what they print.
"""

import ast
import re
import sys
from importlib import import_module
from pathlib import Path

import jupytext
import pytest
from pytest_examples import EvalExample, find_examples

from tests.helpers.commands import ROOT

GUIDE = ROOT / "docs" / "guide"
CHAPTERS = sorted(GUIDE.glob("[0-9]*.md"))
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:)([^)#\s]+)")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_the_snippets_print_what_stands_below_them(
    chapter: Path, eval_example: EvalExample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a chapter continue each other, as the cells of a notebook do."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # which each snippet replaces
    eval_example.set_config(line_length=120, target_version="py311", ruff_ignore=["F821"])
    update, names = eval_example.update_examples, {}
    for example in find_examples(chapter):
        (eval_example.format if update else eval_example.lint)(example)
        lines = [line for line in example.source.splitlines() if not line.lstrip().startswith("#> ")]
        assert len(lines) <= 30, f"{example}: {len(lines)} lines, and a snippet has at most thirty"
        run = eval_example.run_print_update if update else eval_example.run_print_check
        try:
            names |= run(example, module_globals=names, rewrite_assertions=False)
        except Exception as error:
            raise AssertionError(f"{example}: {error!r}") from None  # pytest 9 fails to show its traceback
    assert names


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_its_parts_and_opens_as_a_notebook(chapter: Path) -> None:
    text, picture = chapter.read_text(), chapter.with_suffix(".png")
    assert 80 <= text.count("\n") <= 160
    assert f"]({picture.name})" in text
    assert picture.stat().st_size < 150_000
    assert callable(import_module(f"docs.guide.pictures.{chapter.stem}").draw)
    assert text.count("<details>") == text.count("</details>") == 3, "three exercises with answers"
    assert "https://arxiv.org/abs/" in text or "https://cdn.openai.com/" in text, "no link to a paper"
    snippets = [example.source.strip() for example in find_examples(chapter)]
    cells = jupytext.read(chapter).cells
    assert [cell.source.strip() for cell in cells if cell.cell_type == "code"] == snippets


def defined_names(path: Path) -> set[str]:
    """The functions, classes and methods (Class.method) of a Python file, and its constants."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    return names


@pytest.mark.parametrize("page", sorted(GUIDE.glob("*.md")), ids=lambda path: path.stem)
def test_the_links_lead_to_files_and_to_functions_in_them(page: Path) -> None:
    """A link to a Python file is named after the file, or after one of its functions, classes or constants."""
    links = LINK.findall(page.read_text())
    assert links
    for name, target in links:
        path = (page.parent / target).resolve()
        assert path.exists(), target
        if path.suffix == ".py":
            known = {path.name, str(path.relative_to(ROOT)), *defined_names(path)}
            assert name.strip("`").removesuffix("()") in known, f"[{name}]({target})"


def test_the_table_of_contents_has_all_chapters_in_order() -> None:
    links = [target for _, target in LINK.findall((GUIDE / "README.md").read_text())]
    names = [path.name for path in CHAPTERS]
    assert [target for target in links if target in names] == names
