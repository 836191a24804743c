"""Score a model on LAMBADA: how well does it predict the last word of a passage?

As the lm-evaluation-harness's lambada_openai does: accuracy counts the words whose every token is the model's first
choice, and perplexity is exp(-mean log-likelihood of the words). Published for OpenAI's GPT-2 124M by the harness:
accuracy 0.3256, perplexity 40.06.
"""

import sys
from pathlib import Path

if not __package__: sys.path[0] = str(Path(__file__).resolve().parents[1])  # noqa: E701  scripts run from anywhere

import math
import statistics
from contextlib import nullcontext

from eval.model_option import add_model_options, open_model
from eval.scoring import BATCH_TOKENS, gather, score_requests, standard_error
from eval.tasks import lambada_request, load_lambada, truncated
from prepare.cli import Parser, Progress, positive, run_script
from prepare.known_files import LAMBADA
from train import distributed


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Score a model on LAMBADA: accuracy and perplexity of each passage's last word.",
        "python eval/lambada.py --model gpt2",
    )
    add_model_options(parser)
    parser.add_argument("--data", type=Path, default=LAMBADA.path, metavar="FILE", help="the passages")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N passages")
    parser.add_argument("--batch-tokens", type=positive, default=BATCH_TOKENS, metavar="N", help="in a forward pass")
    args = parser.parse_args(argv)

    passages = load_lambada(args.data, args.limit)
    try:
        loaded, world = open_model(args.model, args.device)
        requests = [lambada_request(passage, loaded.tokenizer) for passage in passages]
        with Progress("LAMBADA", len(passages) / world.size, "passage") if world.is_main else nullcontext() as bar:
            poll = bar.update if bar else None
            share = score_requests(
                loaded.model, requests, world.device, None, args.batch_tokens, world.rank, world.size, poll
            )
        words = [word for (word,) in gather(share, requests, world)]
    finally:
        distributed.stop()
    if not world.is_main:
        return

    n = len(words)
    accuracy = sum(word.greedy for word in words) / n
    logliks = [word.loglik for word in words]
    perplexity = math.exp(-statistics.fmean(logliks))
    deviation = statistics.stdev(logliks) / math.sqrt(n) if n > 1 else 0.0  # of the mean log-likelihood
    cut = truncated(requests, loaded.model.config.block_size)
    print(
        f"model:      {loaded.name}\n"
        f"passages:   {n:,} of {args.data}\n"
        + (f"cut:        {cut:,} passages longer than the block size lost tokens on the left\n" if cut else "")
        + f"accuracy:   {accuracy:.4f} +- {standard_error(accuracy, n):.4f}\n"
        f"perplexity: {perplexity:.2f} +- {perplexity * deviation:.2f}"
    )


if __name__ == "__main__":
    run_script(main)
