"""WikiText, de-tokenized: its file has spaces between words and punctuation, which GPT-2 never saw in web text.

The GPT-2 paper (section 3.1) removes such artifacts with "invertible de-tokenizers", which were never published. The
rules here are those that others use instead, of Megatron-LM (tasks/zeroshot_gpt/detokenizer.py) and of the
lm-evaluation-harness (lm_eval/tasks/wikitext/preprocess_wikitext.py), which are not quite invertible: " N " becomes
" 1 ", and some spaces around quotes are lost. Scores differ from the paper's by that.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from eval.scoring.tasks import check_fetched
from prepare.common.cli import UserError
from prepare.common.files import read_text

NUMBERS = {" @-@ ": "-", " @,@ ": ",", " @.@ ": "."}
MARKS = {f" {mark} ": f"{mark} " for mark in ":;.!?,"}
PAIRS = (r"\([^)]*\)", r"\[[^\]]*\]", r"{[^}]*}", r'"[^"]*"', "'[^']*'")
HEADINGS = {"= = = =": "====", "= = =": "===", "= =": "=="}
OTHERS = {" ° ": "°", " \n": "\n", "\n ": "\n", " N ": " 1 ", " 's": "'s"}


@dataclass(frozen=True)
class WikiText:
    """A test file of WikiText."""

    words: int  # as its authors count them: separated by whitespace, plus one for each line end
    detokenized: str


def load_wikitext(path: Path | str) -> WikiText:
    """Read wiki.test.tokens, of WikiText-2 or WikiText-103. UserError: no such file, or not a WikiText file."""
    text = read_text(check_fetched(path))
    if not re.match(r"\s*= [^=]+ = \n", text):
        raise UserError(f"{path} does not begin with an article's ' = Title = ': name a wiki.test.tokens of WikiText")
    return WikiText(len(text.split()) + text.count("\n"), detokenize(text))


def detokenize(text: str) -> str:
    """Undo WikiText's tokenization."""
    text = text.replace("s '", "s'")
    text = _replace_all(text, NUMBERS | MARKS)
    for pair in PAIRS:
        text = re.sub(pair, lambda found: f"{found[0][0]}{found[0][1:-1].strip()}{found[0][-1]}", text)
    return _replace_all(text, HEADINGS | OTHERS)


def _replace_all(text: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        text = text.replace(old, new)
    return text
