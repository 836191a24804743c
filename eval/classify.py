"""Classify a text, or each text of a file."""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

import numpy as np

from eval.common.open_model import open_model
from eval.common.options import add_model_options
from eval.scoring.classification import Tally, classify
from prepare.common.cli import Parser, UserError, nonempty, nonempty_path
from prepare.finetuning.labelled import read_texts


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Classify texts: print label, probability and text, a line each.",
        'python eval/classify.py --model runs/finetune_classify --text "You have won a prize, call now"',
    )
    add_model_options(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", type=nonempty, metavar="T", help="the text to classify")
    source.add_argument(
        "--file", type=nonempty_path, help="texts: one a line, label<TAB>text, .csv, .jsonl or .parquet"
    )
    parser.add_argument("--text-column", default="text", help="of the file")
    parser.add_argument("--label-column", default="label", help="of the file; if it has one, scores are printed")
    parser.add_argument("--encoding", type=nonempty, metavar="NAME", help="of the file (default: utf-8)")
    args = parser.parse_args(argv)

    texts, truth = [args.text], None
    if args.file:
        texts, truth = read_texts(args.file, args.text_column, args.label_column, args.encoding)
    with open_model(args.model, args.device, classifier=True) as (loaded, world):
        names = list(loaded.labels)
        if unknown := sorted(set(truth or ()) - set(names)):
            raise UserError(
                f"{args.file} has the label {unknown[0]!r}; the labels of {loaded.name}: {', '.join(names)}"
            )
        probabilities, lengths = classify(loaded.model, loaded.tokenizer, texts, world.device)  # ty: ignore[invalid-argument-type]
    for text, row in zip(texts, probabilities, strict=True):
        print(f"{names[row.argmax()]}\t{row.max():.4f}\t{' '.join(text.split())}")
    block_size = loaded.model.config.block_size
    if truncated := sum(length > block_size for length in lengths):
        print(f"{truncated} truncated to the block size {block_size}", file=sys.stderr)
    if truth:
        tally = Tally(len(names))
        tally.add(probabilities, np.array([names.index(label) for label in truth]))
        scores = ", ".join(f"{key} {value:.4f}" for key, value in tally.metrics().items())
        print(f"{loaded.name}, {len(texts)} texts: {scores}", file=sys.stderr)
