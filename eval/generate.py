"""Let a model continue a prompt."""

import sys
from pathlib import Path

if not __package__: sys.path[0] = str(Path(__file__).resolve().parents[1])  # noqa: E701  scripts run from anywhere

import argparse
from collections.abc import Iterator
from itertools import takewhile

import torch
from torch import Tensor

from eval.model_option import add_model_options, open_model
from eval.sampling import decode_stream, generate
from prepare.cli import ArgumentError, Parser, UserError, positive, run_script
from prepare.tokenizer import Tokenizer
from train.checkpoint import LoadedModel


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Let a model continue a prompt.",
        'python eval/generate.py --model gpt2 --prompt "Hello, I\'m a language model,"',
    )
    add_model_options(parser)
    parser.add_argument("--prompt", default="", metavar="P", help="what to continue; when empty, a new document begins")
    parser.add_argument("--max-new-tokens", type=positive, default=200, metavar="N", help="at most so many tokens")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0: always the likeliest token")
    parser.add_argument("--top-k", type=int, default=50, metavar="K", help="sample among the K likeliest; 0: all")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="the likeliest that make up P; 1: all")
    parser.add_argument("--num-samples", type=positive, default=1, metavar="N", help="continuations of each prompt")
    parser.add_argument("--seed", type=int, default=1337, metavar="S", help="of the random choices")
    parser.add_argument("--interactive", action="store_true", help="read prompts from standard input, a line each")
    parser.add_argument("--no-cache", action="store_true", help="compute every token anew: slow, for comparison")
    args = parser.parse_args(argv)
    if not args.temperature >= 0 or args.top_k < 0 or not 0 < args.top_p <= 1:
        raise ArgumentError(
            f"--temperature {args.temperature:g} --top-k {args.top_k} --top-p {args.top_p:g}: the first two cannot be "
            "below 0, and top-p lies above 0 and at most at 1"
        )

    loaded, _ = open_model(args.model, args.device)
    generator = torch.Generator().manual_seed(args.seed)
    print(f"{loaded.name}, seed {args.seed}", file=sys.stderr, flush=True)
    if not args.interactive:
        return answer(args.prompt, loaded, generator, args)
    while (prompt := read_prompt()) is not None:
        try:
            answer(prompt, loaded, generator, args)
        except UserError as mistake:  # a character that the model does not know: ask again
            print(f"error: {mistake}", file=sys.stderr, flush=True)


def read_prompt() -> str | None:
    """A line of standard input; None at its end."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


def answer(prompt: str, loaded: LoadedModel, generator: torch.Generator, args: argparse.Namespace) -> None:
    """Print a prompt's continuations: the first as it comes, the others, computed beside it, after it."""
    tokenizer, n = loaded.tokenizer, args.num_samples
    columns = generate(
        loaded.model,
        torch.tensor([prompt_tokens(prompt, tokenizer)] * n),
        args.max_new_tokens,
        args.temperature,
        args.top_k or None,
        args.top_p if args.top_p < 1 else None,
        generator,
        use_cache=not args.no_cache,
        vocab_size=tokenizer.vocab_size,
        stop=tokenizer.eot,
    )
    made: list[Tensor] = []  # each (n,)

    def first() -> Iterator[int]:
        for column in columns:
            made.append(column)
            yield int(column[0])

    for number in range(n):
        ids = (int(column[number]) for column in made) if number else first()
        if n > 1:
            print(f"--- sample {number + 1} of {n} ---")
        print(prompt, end="", flush=True)
        for text in decode_stream(tokenizer, takewhile(lambda token: token != tokenizer.eot, ids)):
            print(text, end="", flush=True)
        print(flush=True)
        made.extend(columns)  # what the others have beyond the end of the first


def prompt_tokens(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """The prompt's ids; an empty one is what stands before a text: the end-of-text token, or a new line."""
    if prompt or tokenizer.eot is None:
        return tokenizer.encode(prompt or "\n")
    return [tokenizer.eot]


if __name__ == "__main__":
    run_script(main)
