"""Score a model on HellaSwag: which of four endings does it find likeliest?

plain    build-nanogpt's and llm.c's: the context, then " " + ending.
         acc: the highest log-likelihood; acc_norm: the highest mean per token.
lm-eval  the lm-evaluation-harness's: "activity: context" with WikiHow's [tags] cleaned away.
         acc: the highest log-likelihood; acc_norm: the highest mean per character.

Published for OpenAI's GPT-2 on the original file (10,042 tasks):

                plain acc   plain acc_norm   lm-eval acc   lm-eval acc_norm
    124M           0.2859           0.2955        0.2892             0.3114
    1558M          0.3842           0.4893        0.4004             0.5089

build-nanogpt's hellaswag.py states all of them. Its plain scores are of the original texts, tags and all: copies that
have been cleaned give slightly others. A copy without ctx_a and ctx_b is divided as eval/tasks.py says.
"""

import sys
from pathlib import Path

if not __package__: sys.path[0] = str(Path(__file__).resolve().parents[1])  # noqa: E701  scripts run from anywhere

from contextlib import nullcontext

from eval.model_option import add_model_options, open_model
from eval.scoring import BATCH_TOKENS, choice_counts, choices, gather, score_requests, standard_error
from eval.tasks import FORMATS, hellaswag_request, load_hellaswag, truncated
from prepare.cli import ArgumentError, Parser, Progress, positive, run_script
from prepare.known_files import HELLASWAG
from prepare.shards import write_json
from train import distributed


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Score a model on HellaSwag, as build-nanogpt and llm.c do (plain) or as the lm-evaluation-harness does.",
        "python eval/hellaswag.py --model gpt2",
    )
    add_model_options(parser)
    parser.add_argument("--data", type=Path, default=HELLASWAG.path, metavar="FILE", help="the tasks")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N tasks")
    parser.add_argument("--format", choices=FORMATS, default="plain", help="prompt and normalization")
    parser.add_argument("--output", type=Path, metavar="FILE", help="scores, and each task's log-likelihoods")
    parser.add_argument("--batch-tokens", type=positive, default=BATCH_TOKENS, metavar="N", help="in a forward pass")
    args = parser.parse_args(argv)
    if args.output and (args.output.is_dir() or not args.output.parent.is_dir()):
        raise ArgumentError(f"--output {args.output}: name a file, in a folder that is there")

    tasks = load_hellaswag(args.data, args.limit)
    try:
        loaded, world = open_model(args.model, args.device)
        requests = [hellaswag_request(task, loaded.tokenizer, args.format) for task in tasks]
        with Progress("HellaSwag", len(tasks) / world.size, "task") if world.is_main else nullcontext() as bar:
            poll = bar.update if bar else None
            share = score_requests(
                loaded.model, requests, world.device, None, args.batch_tokens, world.rank, world.size, poll
            )
        scores = gather(share, requests, world)
    finally:
        distributed.stop()
    if not world.is_main:
        return

    right, right_norm, n = choice_counts(requests, dict(enumerate(scores)))
    acc, acc_norm = right / n, right_norm / n
    cut = truncated(requests, loaded.model.config.block_size)
    print(
        f"model:    {loaded.name}\n"
        f"tasks:    {n:,} of {args.data}, {args.format} format\n"
        + (f"cut:      {cut:,} tasks longer than the block size lost tokens on the left\n" if cut else "")
        + f"acc:      {acc:.4f} +- {standard_error(acc, n):.4f}\n"
        f"acc_norm: {acc_norm:.4f} +- {standard_error(acc_norm, n):.4f}"
    )
    if args.output:
        examples = []
        for task, request, found in zip(tasks, requests, scores, strict=True):
            prediction, prediction_norm = choices(request, found)
            examples.append(
                {
                    "ind": task.ind,
                    "label": task.label,
                    "log_likelihoods": [score.loglik for score in found],
                    "lengths": request.lengths,
                    "prediction": prediction,
                    "prediction_norm": prediction_norm,
                }
            )
        result = {
            "model": loaded.name,
            "step": loaded.step,
            "data": str(args.data),
            "format": args.format,
            "tasks": n,
            "truncated": cut,
            "acc": acc,
            "acc_stderr": standard_error(acc, n),
            "acc_norm": acc_norm,
            "acc_norm_stderr": standard_error(acc_norm, n),
            "examples": examples,
        }
        write_json(args.output, result)
        print(f"written:  {args.output}")


if __name__ == "__main__":
    run_script(main)
