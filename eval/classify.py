"""Ask a classifier for the label of a text, or of each text of a file."""

import sys
from pathlib import Path

if not __package__:  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from eval.common.options import opened
from eval.scoring.classification import Tally, classify
from prepare.common.cli import ArgumentError, Parser, UserError, nonempty, nonempty_path, positive, run_script
from prepare.finetuning.labelled import read_texts


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Ask a classifier for the label of texts: a line of label, probability and text for each.",
        'python eval/classify.py --model runs/finetune_classify --text "You have won a prize, call now"',
    )
    parser.add_argument("--model", type=nonempty, metavar="X", required=True, help="a classifier's run or checkpoint")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", metavar="T", help="what to classify")
    source.add_argument(
        "--file", type=nonempty_path, help="texts: a line each, label<TAB>text, .csv, .jsonl or .parquet"
    )
    parser.add_argument("--text-column", default="text", help="of the file")
    parser.add_argument("--label-column", default="label", help="of the file; where it is there, the scores follow")
    parser.add_argument("--batch-size", type=positive, default=32, help="texts at a time")
    args = parser.parse_args(argv)
    if args.text is not None and not args.text.strip():
        raise ArgumentError("--text is empty: give the text to be classified")

    texts, truth = [args.text], None
    if args.file:
        texts, truth = read_texts(args.file, args.text_column, args.label_column)
    with opened(args.model, args.device, classifier=True) as (loaded, world):
        names = list(loaded.labels)
        if unknown := sorted(set(truth or ()) - set(names)):
            raise UserError(f"{args.file} has the label {unknown[0]!r}, but {loaded.name} knows {', '.join(names)}")
        probabilities, cut = classify(loaded.model, loaded.tokenizer, texts, world.device, args.batch_size)
    for text, row in zip(texts, probabilities, strict=True):
        print(f"{names[row.argmax()]}\t{row.max():.4f}\t{' '.join(text.split())}")
    if cut:
        size = loaded.model.config.block_size
        print(f"{cut} longer than the model's {size} tokens lost their end", file=sys.stderr, flush=True)
    if truth:
        tally = Tally(len(names))
        tally.add(probabilities, np.array([names.index(label) for label in truth]))
        words = ", ".join(f"{key} {value:.4f}" for key, value in tally.metrics().items())
        print(f"{loaded.name}, {len(texts)} texts: {words}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
