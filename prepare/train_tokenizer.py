"""Train a vocabulary of your own: byte-level BPE, cut into words as GPT-2's, with <|endoftext|> as the last id.

    python prepare/train_tokenizer.py --source plays --vocab-size 4096 --out data/plays_4096     # no network
    python prepare/train_tokenizer.py --input 'corpus/*.parquet' --vocab-size 32768 --out data/corpus_32k
    python prepare/fineweb.py --input 'corpus/*.parquet' --tokenizer data/corpus_32k --out data/corpus

The same text gives the same files, whatever the number of threads. A vocabulary of 4,096 suits models of a few million
parameters, whose embedding and head would else be most of the model.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

import argparse
import json
from collections.abc import Iterator, Sequence

from prepare.common.cli import ArgumentError, Parser, UserError, nonempty_path, write_line
from prepare.common.progress import Progress
from prepare.pipeline.options import add_input_options
from prepare.sources.inputs import LocalFile
from prepare.sources.plays import HELD_OUT, PLAYS, read_play
from prepare.sources.splits import find_files
from prepare.tokens.tokenizer import BPETokenizer, GPT2Tokenizer
from prepare.tokens.vocabulary import TOKENIZER, read_merges, write_tokenizer

SIZES = range(257, 65536 + 1)  # 256 bytes and <|endoftext|>, to what uint16 shards can hold
SAMPLE_BYTES = 500_000_000  # of text to train on, at most
PIECE = 1 << 16  # characters: longer documents are cut
HELD_OUT_EVERY = 20  # one of 20 pieces is held out


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    if options.input:
        texts, held_out = sample_files(options)
    else:
        texts, held_out = ([read_play(name).encode() for name in names] for names in (PLAYS, HELD_OUT))
    merges = train(texts, options.vocab_size)
    if (options.out / TOKENIZER).exists() and read_merges(options.out) != merges:
        raise UserError(f"--out {options.out} holds another vocabulary: choose another folder, or delete it")
    options.out.mkdir(parents=True, exist_ok=True)
    write_tokenizer(options.out, merges)
    size = sum(map(len, held_out))
    ours, gpt2 = (
        size / max(1, sum(len(tokenizer.encode(text.decode())) for text in held_out))
        for tokenizer in (BPETokenizer(merges), GPT2Tokenizer())
    )
    print(
        f"{options.out}: {options.vocab_size:,} tokens, trained on {sum(map(len, texts)) / 1e6:,.2f} MB of text; "
        f"{ours:.2f} bytes per token on {size / 1e6:,.2f} MB that it did not see (GPT-2's vocabulary: {gpt2:.2f})"
    )


def sample_files(options: argparse.Namespace) -> tuple[list[bytes], list[bytes]]:
    """The text of --input, without the files that validate or test by their names, to train on and held out.

    Both are pieces in UTF-8: documents, or parts of those longer than PIECE. Of more than SAMPLE_BYTES only every Nth
    piece is taken, N the smallest power of 2 that suffices.
    """
    files = find_files(options.input, "auto", options.column, options.separator, options.encoding)
    files = [file for file in files if file.split != "val"]
    pieces: list[bytes] = []
    size, every, number = 0, 1, -1
    for number, piece in enumerate(read_pieces(files)):
        if number % every == 0:
            pieces.append(piece)
            size += len(piece)
        if size > SAMPLE_BYTES:
            pieces, every = pieces[::2], 2 * every
            size = sum(map(len, pieces))
    if every > 1:
        write_line(f"{size / 1e6:,.1f} MB of the text are taken, one of {every} of its {number + 1:,} documents")
    if len(pieces) < HELD_OUT_EVERY:  # little text: hold out its end
        text = b"".join(pieces).decode()
        cut = len(text) - len(text) // HELD_OUT_EVERY
        return [text[:cut].encode()], [text[cut:].encode()]
    held_out = pieces[::HELD_OUT_EVERY]
    del pieces[::HELD_OUT_EVERY]
    return pieces, held_out


def read_pieces(files: Sequence[LocalFile]) -> Iterator[bytes]:
    with Progress("reading", None, "B") as progress:
        for file in files:
            for batch in file.batches():
                for text in batch.texts.to_pylist():
                    yield from (text[start : start + PIECE].encode() for start in range(0, len(text), PIECE))
                progress.update(batch.size)


def train(texts: Sequence[bytes], vocab_size: int) -> str:
    """The merges of a vocabulary (see prepare/tokens/vocabulary.py), from text in UTF-8.

    Hugging Face's trainer merges the most frequent pair of tokens again and again, of equally frequent ones the pair of
    lowest ids: the merges depend neither on the order of the text nor on threads.

    Raises:
        UserError: the text has too few pairs that occur twice.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    def read() -> Iterator[str]:
        with Progress("counting words", sum(map(len, texts)), "B") as progress:
            for text in texts:
                yield text.decode()
                progress.update(len(text))
        write_line("merging the most frequent pairs")

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, min_frequency=2, show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(read(), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    if len(merges) < vocab_size - SIZES[0]:
        raise UserError(
            f"--vocab-size {vocab_size:,} is too large for this text, whose repeated pairs give "
            f"{SIZES[0] + len(merges):,} tokens: give at most that, or more text"
        )
    return "\n".join(map(" ".join, merges))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        "Train a byte-pair vocabulary on your text; --tokenizer in the other commands of prepare/ takes it.",
        "python prepare/train_tokenizer.py --source plays --vocab-size 4096 --out data/plays_4096",
    )
    add_input_options(parser)
    parser.add_argument("--source", choices=["plays"], help="Shakespeare's plays that train (no network), not --input")
    parser.add_argument("--vocab-size", type=vocabulary_size, required=True, metavar="N", help="tokens, 257 to 65536")
    parser.add_argument("--out", type=nonempty_path, required=True, metavar="DIR", help="folder of the tokenizer")
    options = parser.parse_args(argv)
    if bool(options.input) == bool(options.source):
        raise ArgumentError("the text to train on is missing or named twice: give --input FILE ..., or --source plays")
    return options


def vocabulary_size(text: str) -> int:
    """argparse type: the number of tokens."""
    if not text.isdecimal() or int(text) not in SIZES:
        raise argparse.ArgumentTypeError(f"{text!r}: out of range: give {SIZES[0]} to {SIZES[-1]}")
    return int(text)
