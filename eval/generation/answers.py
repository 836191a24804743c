"""What an instruction follower is asked, and what it answers."""

from collections.abc import Sequence
from itertools import takewhile

import torch

from eval.generation.sampling import generate
from prepare.tokens.tokenizer import Tokenizer
from train.data.examples import Examples
from train.model.gpt import GPT, IGNORE_INDEX


def first_question(examples: Examples, number: int) -> tuple[list[int], list[int]]:
    """The tokens of an example up to its first answer, and those of that answer, with its end-of-text."""
    tokens, targets = examples.row(number)
    counts = (targets != IGNORE_INDEX).tolist()
    start = counts.index(True)
    end = counts.index(False, start) if False in counts[start:] else len(counts)
    return tokens[: start + 1].tolist(), targets[start:end].tolist()


def greedy_answers(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[str]:
    """The likeliest continuation of each prompt, token by token, up to its end-of-text.

    Raises:
        UserError: the model has diverged.
    """
    eot = tokenizer.eot
    columns = generate(model, prompts, max_new_tokens, temperature=0, vocab_size=tokenizer.vocab_size, stop=eot)
    rows = torch.stack(list(columns), dim=1).tolist()  # (len(prompts), at most max_new_tokens)
    return [tokenizer.decode(list(takewhile(lambda token: token != eot, row))) for row in rows]
