"""Let a model continue a prompt, or answer an instruction."""

import sys
from pathlib import Path

if not __package__:  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import functools
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch

from eval.common.options import add_model_options, opened
from eval.generation.compiled import CompiledStep
from eval.generation.sampling import TextStream, generate, stream_texts
from prepare.common.cli import ArgumentError, Parser, UserError, positive, run_script
from prepare.finetuning.instructions import Message, question
from prepare.tokens.tokenizer import Tokenizer
from train.model.gpt import GPT
from train.weights.load_model import LoadedModel

LEAST_PENALTY = 1e-3  # below, logits divided by it leave float32


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Let a model continue a prompt, or answer an instruction if it has learnt to.",
        'python eval/generate.py --model runs/quickstart --prompt "ROMEO:"',
    )
    add_model_options(parser)
    several = "what to continue; may be given several times; when not given, or empty, a text begins"
    parser.add_argument("--prompt", action="append", metavar="P", help=several)
    parser.add_argument("--instruction", metavar="I", help="what to do, of a model of train/finetune_instruct.py")
    parser.add_argument("--input", default="", metavar="TEXT", help="what the instruction is about")
    parser.add_argument("--max-new-tokens", type=positive, default=200, metavar="N", help="at most so many tokens")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0: always the likeliest token")
    parser.add_argument("--top-k", type=int, default=50, metavar="K", help="sample among the K likeliest; 0: all")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="the likeliest that make up P; 1: all")
    parser.add_argument("--min-p", type=float, default=0.0, metavar="P", help="at least P times the likeliest; 0: all")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="of earlier tokens; 1: none")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--num-samples", type=positive, default=1, metavar="N", help="continuations of each prompt")
    parser.add_argument("--seed", type=int, default=1337, metavar="S", help="of the random choices")
    parser.add_argument("--interactive", action="store_true", help="a conversation: --prompt, then a line at a time")
    parser.add_argument("--compile", action="store_true", help="compile the step, which takes a while: meant for a GPU")
    parser.add_argument("--no-cache", action="store_true", help="compute every token anew: slow, for comparison")
    args = parser.parse_args(argv)
    if not args.temperature >= 0 or args.top_k < 0 or not 0 < args.top_p <= 1 or not 0 <= args.min_p <= 1:
        raise ArgumentError(
            f"--temperature {args.temperature:g} --top-k {args.top_k} --top-p {args.top_p:g} --min-p {args.min_p:g}: "
            "none can be below 0, top-p lies above 0, and top-p and min-p at most at 1"
        )
    if not args.repetition_penalty >= LEAST_PENALTY or "" in args.stop:
        raise ArgumentError(
            f"--repetition-penalty {args.repetition_penalty:g} --stop {args.stop}: at least {LEAST_PENALTY:g}, and "
            "stop texts not empty"
        )
    if not 0 <= args.seed < 2**63:
        raise ArgumentError(f"--seed {args.seed}: give a number from 0 to 2^63 - 1")
    if args.prompt and args.instruction is not None:
        raise ArgumentError("--prompt is for a text to go on with, --instruction for one to follow: give one of them")
    if args.interactive and args.instruction is not None:
        raise ArgumentError("--interactive reads instructions from its input: leave out --instruction")
    if args.input and args.instruction is None:
        raise ArgumentError("--input is what an --instruction is about: give one")
    if args.compile and args.no_cache:
        raise ArgumentError("--compile is for the step with the cache: leave out --no-cache, or --compile")

    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # bytes that are no UTF-8, in what is typed or in a prompt

    with opened(args.model, args.device) as (loaded, _):
        generator = torch.Generator().manual_seed(args.seed)
        print(f"{loaded.name}, seed {args.seed}", file=sys.stderr, flush=True)
        if args.interactive:
            (chat if loaded.template else converse)(loaded, generator, args)
        elif args.instruction is None:
            prompts = [(prompt, prompt_tokens(prompt, loaded.tokenizer)) for prompt in args.prompt or [""]]
            answer(prompts, loaded, generator, args)
        elif loaded.template is None:
            raise UserError(f"{loaded.name} follows no instructions: train/finetune_instruct.py teaches it")
        else:
            asked = question(args.instruction, args.input)
            answer([("", loaded.template.prompt(asked, loaded.tokenizer))], loaded, generator, args)


def converse(loaded: LoadedModel, generator: torch.Generator, args: argparse.Namespace) -> None:
    """Answer each line; what was said before stands before it. An empty line begins anew."""
    history = ""
    if sys.stdin.isatty():
        print("Each line goes on from all before it; an empty line begins anew; Ctrl-D ends.", file=sys.stderr)
    for line in lines(args.prompt or ()):
        if not line:
            history = ""
            continue
        prompt = f"{history}\n{line}" if history else line
        try:
            tokens = prompt_tokens(prompt, loaded.tokenizer)
            history = prompt + answer([(line, tokens)], loaded, generator, args)
        except UserError as mistake:  # a character that the model does not know: ask again
            print(f"error: {mistake}", file=sys.stderr, flush=True)


def chat(loaded: LoadedModel, generator: torch.Generator, args: argparse.Namespace) -> None:
    """Answer each line as an instruction, up to the end-of-text. A model that has learnt conversations is shown what
    was said before; an empty line begins anew."""
    messages: list[Message] = []
    if sys.stdin.isatty():
        print("Each line is an instruction; an empty line begins anew; Ctrl-D ends.", file=sys.stderr)
    for line in lines(args.prompt or ()):
        if not line:
            messages = []
            continue
        asked = [*(messages if loaded.multi_turn else []), *question(line)]
        given = answer([("", loaded.template.prompt(asked, loaded.tokenizer))], loaded, generator, args)
        messages = [*asked, ("assistant", given)]


def lines(first: Sequence[str]) -> Iterator[str]:
    """What is to be answered: what the command line gave, then what is typed."""
    if sys.stdin.isatty():
        with suppress(ImportError):  # not everywhere
            import readline  # noqa: F401  gives input() the cursor keys, and what was typed before
    yield from first
    while (line := read_line()) is not None:
        yield line


def read_line() -> str | None:
    """A line of standard input; None at its end."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


def answer(
    prompts: Sequence[tuple[str, list[int]]], loaded: LoadedModel, generator: torch.Generator, args: argparse.Namespace
) -> str:
    """Print continuations: the first as it comes, the others, computed beside it, after it. Returns the first.

    Args:
        prompts: of each, what is shown of it, and the tokens of the whole.
    """
    tokenizer = loaded.tokenizer
    rows = [prompt for prompt in prompts for _ in range(args.num_samples)]
    columns = generate(
        loaded.model,
        [tokens for _, tokens in rows],
        args.max_new_tokens,
        args.temperature,
        args.top_k or None,
        args.top_p if args.top_p < 1 else None,
        args.min_p or None,
        args.repetition_penalty,
        generator,
        use_cache=not args.no_cache,
        compiled=compiled_step(loaded.model, len(rows)) if args.compile else None,
        vocab_size=tokenizer.vocab_size,
        stop=tokenizer.eot,
    )
    texts = [""] * len(rows)
    title = f"--- sample {{}} of {len(rows)} ---\n" if len(rows) > 1 else ""
    print(title.format(1) + rows[0][0], end="", flush=True)
    for row, text in stream_texts(columns, [TextStream(tokenizer, args.stop) for _ in rows]):
        texts[row] += text
        if row == 0:
            print(text, end="", flush=True)
    print(flush=True)
    for number in range(1, len(rows)):
        print(title.format(number + 1) + rows[number][0] + texts[number], flush=True)
    return texts[0]


@functools.cache
def compiled_step(model: GPT, batch_size: int) -> CompiledStep:
    """One for all turns of a conversation."""
    return CompiledStep(model, batch_size)


def prompt_tokens(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """The prompt's ids; an empty one is what stands before a text: the end-of-text token, or a new line."""
    if prompt or tokenizer.eot is None:
        return tokenizer.encode(prompt or "\n")
    return [tokenizer.eot]


if __name__ == "__main__":
    run_script(main)
