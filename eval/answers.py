"""What an instruction follower answers, and how well it predicts the answers that were wanted."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn import functional as F

from eval.sampling import generate
from eval.scoring import POSITIONS_AT_A_TIME, evaluating
from prepare.tokenizer import Tokenizer
from train.examples import Examples
from train.model import GPT, IGNORED


@torch.no_grad()
def answer_loss(
    model: GPT,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
    autocast: AbstractContextManager | None = None,
) -> tuple[float, int]:
    """The loss over the targets that count, in nats, summed in float64 from float32 logits, and their number.

    Args:
        batches: inputs and targets, int64 (b, T) each.
        autocast: the precision of the model up to its logits.
    """
    nll, tokens = 0.0, 0
    with evaluating(model):
        for x, y in batches:
            with autocast or nullcontext():
                hidden = model.hidden(x.to(device))  # (b, T, C)
            wanted = y[y != IGNORED].to(device)  # (n,)
            states = hidden[(y != IGNORED).to(device)].float()  # (n, C)
            for part, targets in zip(states.split(POSITIONS_AT_A_TIME), wanted.split(POSITIONS_AT_A_TIME), strict=True):
                nll += F.cross_entropy(model.logits(part), targets, reduction="none").double().sum().item()
            tokens += len(wanted)
    return nll, tokens


def first_question(examples: Examples, number: int) -> tuple[list[int], list[int]]:
    """The tokens of an example up to its first answer, and those of that answer, with its end-of-text."""
    tokens, targets = examples.row(number)
    counts = (targets != IGNORED).tolist()
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
