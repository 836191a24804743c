"""Generate text: let a model continue a prompt, or answer an instruction."""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

import argparse
from collections.abc import Iterator
from contextlib import suppress

import torch

from eval.common.open_model import open_model
from eval.common.options import add_model_options
from eval.generation.sampling import TextStream, encode_prompt, generate, stream_texts
from prepare.common.cli import ArgumentError, Parser, UserError, positive
from prepare.finetuning.instructions import Message, question
from train.weights.load_model import LoadedModel


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Let a model continue a prompt, or answer an instruction if it was trained to follow them.",
        'python eval/generate.py --model runs/quickstart --prompt "ROMEO:"',
    )
    add_model_options(parser)
    parser.add_argument("--prompt", default="", metavar="P", help="text to continue; default: begin a new text")
    parser.add_argument("--instruction", metavar="I", help="for a model of train/finetune_instruct.py")
    parser.add_argument("--input", default="", metavar="TEXT", help="the text that the instruction refers to")
    parser.add_argument("--max-new-tokens", type=positive, default=200, metavar="N", help="generate at most N tokens")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0: always the most likely token")
    parser.add_argument("--top-k", type=int, default=50, metavar="K", help="the K most likely tokens; 0: all")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus sampling; 1: off")
    parser.add_argument("--min-p", type=float, default=0.0, metavar="P", help="drop tokens below P x the top one's")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="on repeats (CTRL); 1: off")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--num-samples", type=positive, default=1, metavar="N", help="continuations of the prompt")
    parser.add_argument("--seed", type=int, default=1337, metavar="S", help="of the random generator")
    parser.add_argument("--interactive", action="store_true", help="a conversation: --prompt, then a line at a time")
    args = parser.parse_args(argv)
    check_arguments(args)

    with open_model(args.model, args.device) as (loaded, _):
        generator = torch.Generator().manual_seed(args.seed)
        print(f"{loaded.name}, seed {args.seed}", file=sys.stderr, flush=True)
        if args.interactive:
            (chat if loaded.template else converse)(loaded, generator, args)
        elif args.instruction is None:
            print_texts(args.prompt, encode_prompt(args.prompt, loaded.tokenizer), loaded, generator, args)
        elif loaded.template is None:
            raise UserError(f"{loaded.name} does not follow instructions: fine-tune it with train/finetune_instruct.py")
        else:
            messages = question(args.instruction, args.input)
            print_texts("", loaded.template.prompt(messages, loaded.tokenizer), loaded, generator, args)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ArgumentError for options that are out of range or exclude each other."""
    if args.temperature < 0:
        raise ArgumentError(f"--temperature {args.temperature:g}: out of range: give 0 or more")
    if args.top_k < 0:
        raise ArgumentError(f"--top-k {args.top_k}: out of range: give 0 or more")
    if not 0 < args.top_p <= 1:
        raise ArgumentError(f"--top-p {args.top_p:g}: out of range: give a number above 0 and at most 1")
    if not 0 <= args.min_p <= 1:
        raise ArgumentError(f"--min-p {args.min_p:g}: out of range: give 0 to 1")
    if args.repetition_penalty <= 0:
        raise ArgumentError(f"--repetition-penalty {args.repetition_penalty:g}: out of range: give a number above 0")
    if args.instruction is not None and (args.prompt or args.interactive):
        raise ArgumentError("--instruction excludes --prompt, and --interactive, which reads instructions from input")
    if args.input and args.instruction is None:
        raise ArgumentError("--input is the text that an --instruction refers to: give one")


def converse(loaded: LoadedModel, generator: torch.Generator, args: argparse.Namespace) -> None:
    """Continue each line, with everything before it as context; an empty line starts over."""
    history = ""
    for line in read_lines(args.prompt):
        if not line:
            history = ""
            continue
        prompt = f"{history}\n{line}" if history else line
        try:
            tokens = encode_prompt(prompt, loaded.tokenizer)
            history = prompt + print_texts(line, tokens, loaded, generator, args)
        except UserError as mistake:  # a character outside the vocabulary: ask again
            print(f"error: {mistake}", file=sys.stderr, flush=True)


def chat(loaded: LoadedModel, generator: torch.Generator, args: argparse.Namespace) -> None:
    """Answer each line as an instruction. A model trained on conversations sees the earlier turns; an empty line starts
    over."""
    messages: list[Message] = []
    for line in read_lines(args.prompt):
        if not line:
            messages = []
            continue
        messages = [*(messages if loaded.multi_turn else []), *question(line)]
        prompt = loaded.template.prompt(messages, loaded.tokenizer)
        messages.append(("assistant", print_texts("", prompt, loaded, generator, args)))


def read_lines(first: str) -> Iterator[str]:
    """Yield the prompt of the command line, if there is one, then the lines of standard input."""
    if sys.stdin.isatty():
        print("An empty line starts over; Ctrl-D ends.", file=sys.stderr)
        with suppress(ImportError):  # not on Windows
            import readline  # noqa: F401  gives input() cursor keys and a history
    if first:
        yield first
    with suppress(EOFError):
        while True:
            yield input("> " if sys.stdin.isatty() else "")


def print_texts(
    shown: str, tokens: list[int], loaded: LoadedModel, generator: torch.Generator, args: argparse.Namespace
) -> str:
    """Print continuations of a prompt: the first as it is generated, the others, of the same batch, after it.

    Args:
        shown: the text to print before each continuation.
        tokens: the prompt.

    Returns:
        the first continuation.
    """
    samples, tokenizer = args.num_samples, loaded.tokenizer
    columns = generate(
        loaded.model,
        [tokens] * samples,
        args.max_new_tokens,
        args.temperature,
        args.top_k or None,
        args.top_p if args.top_p < 1 else None,
        args.min_p or None,
        args.repetition_penalty,
        generator,
        vocab_size=tokenizer.vocab_size,
        stop=tokenizer.eot,
    )
    texts = [""] * samples
    title = f"--- sample {{}} of {samples} ---\n" if samples > 1 else ""
    print(title.format(1) + shown, end="", flush=True)
    for row, text in stream_texts(columns, [TextStream(tokenizer, args.stop) for _ in texts]):
        texts[row] += text
        if row == 0:
            print(text, end="", flush=True)
    print(flush=True)
    for number, text in enumerate(texts[1:], 2):
        print(title.format(number) + shown + text, flush=True)
    return texts[0]
