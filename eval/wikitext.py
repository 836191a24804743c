"""Score a model on WikiText-2 or WikiText-103: perplexity per word, by sliding windows.

The text is de-tokenized as eval/scoring/detokenize.py says, and read in windows of the block size that move by half a
window; each predicts the tokens that the previous one did not. The loss of all tokens is divided by the words of the
original file (line ends count as words), as in the GPT-2 paper:

             WikiText-2   WikiText-103      the paper's, zero-shot; its stride is not stated and its
    124M          29.41          37.50      de-tokenizers are not published, so ours need not be equal
    1558M         18.34          17.48
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

from eval.common.open_model import open_model
from eval.common.options import add_model_options, output_file, report_scores
from eval.scoring.detokenize import load_wikitext
from eval.scoring.evaluation import evaluate_wikitext
from prepare.common.cli import Parser, nonempty_path
from prepare.sources.published import WIKITEXT103


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Score a model on WikiText: perplexity per word of the original file, and bits per byte.",
        "python eval/wikitext.py --model gpt2",
    )
    add_model_options(parser)
    parser.add_argument("--data", type=nonempty_path, default=WIKITEXT103.path, metavar="FILE", help="wiki.test.tokens")
    parser.add_argument("--output", type=output_file, metavar="FILE", help="write the scores as JSON")
    args = parser.parse_args(argv)

    text = load_wikitext(args.data)
    with open_model(args.model, args.device) as (loaded, world):
        scores = evaluate_wikitext(loaded, world, text)
    if world.is_main:
        lines = {
            "data": f"{scores['words']:,} words, {scores['tokens']:,} tokens of {args.data}",
            "windows": f"{scores['window']:,} tokens, stride {scores['stride']:,}",
            "perplexity": f"{scores['perplexity']:,.2f} per word",
            "bits": f"{scores['bits_per_byte']:.4f} per byte of text",
        }
        report_scores(loaded, lines, args.output, args.data, **scores)
