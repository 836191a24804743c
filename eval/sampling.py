"""Text out of a model, token by token."""

import codecs
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from eval.scoring import evaluating
from prepare.cli import UserError
from prepare.tokenizer import Tokenizer
from train.model import GPT, KVCache


def window_start(n: int, block_size: int) -> int:
    """The first of n tokens that the model sees when it predicts the next one.

    It sees all of them while they fit; then the window jumps, so that about half a block is left, and grows again.
    A function of n alone: the text is the same with the cache, which is filled anew after a jump, and without it.
    """
    hop = block_size - block_size // 2
    return max(0, -(-(n - block_size) // hop) * hop)


@torch.no_grad()
def generate(
    model: GPT,
    prompt: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    vocab_size: int | None = None,
    stop: int | None = None,
) -> Iterator[Tensor]:
    """Continue prompts of equal length, also beyond the block size.

    Args:
        prompt: (B, T) int64, T >= 1.
        temperature: 0 takes the likeliest token.
        top_k: sample among the k likeliest.
        top_p: sample among the likeliest that together have at least this probability.
        generator: the source of randomness, on the CPU.
        vocab_size: ids from here on are padding and never come; None: all of the model's may.
        stop: a row that has given this token gives nothing else; when all rows have, generation ends.

    Yields:
        the next token of each row, (B,) int64 on the CPU.
    """
    size, device = model.config.block_size, model.wte.weight.device
    B, n = prompt.shape  # n counts the tokens so far
    tokens = torch.empty(B, n + max_new_tokens, dtype=torch.int64, device=device)
    tokens[:, :n] = prompt
    cache = KVCache(model.config, B, min(size, n + max_new_tokens), device) if use_cache else None
    start = seen = 0  # the window's first token, and the first that the cache does not hold
    ended = torch.zeros(B, dtype=torch.bool)
    with evaluating(model):
        while n < tokens.size(1) and not ended.all():
            if cache is None or start != window_start(n, size):
                start = seen = window_start(n, size)
                if cache is not None:
                    cache.filled = 0
            hidden = model.hidden(tokens[:, seen:n], cache)[:, -1]  # (B, C)
            logits = model.logits(hidden)[:, :vocab_size].float().cpu()  # (B, V)
            if not logits.isfinite().all():
                raise UserError("the model's logits are not finite: it has diverged, or its weights are damaged")
            new = choose(logits, temperature, top_k, top_p, generator)
            if stop is not None:
                new[ended] = stop
                ended |= new == stop
            tokens[:, n] = new.to(device)
            seen, n = n, n + 1
            yield new


def choose(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The next tokens, (B,) int64, for float32 logits (B, V)."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = (logits - logits.max(-1, keepdim=True).values) / temperature  # no overflow, however cold
    probabilities = torch.softmax(restrict(logits, top_k, top_p), -1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


def restrict(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Logits (B, V) with -inf for what is outside the top k, and then outside the top p of what is left."""
    if top_k is not None:
        least = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p is not None:
        ordered, order = logits.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # what the likelier ones have together
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(outside, float("-inf"))
    return logits


def decode_stream(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Text as soon as it is whole: a character whose bytes lie in several tokens comes with the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in ids:
        if text := decoder.decode(tokenizer.decode_bytes([token])):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
