"""Sample text from a model, token by token."""

import codecs
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from eval.common.open_model import DIVERGED, evaluating
from prepare.common.cli import UserError
from prepare.tokens.tokenizer import Tokenizer
from train.model.kv_cache import JoinedCache, KVCache
from train.model.transformer import Transformer


class Generation:
    """B sequences of the same length, generated together, also beyond the block size, with their own KV cache, settings
    and random generator.

    Args:
        prompts: token ids (B, n), n >= 1.
        temperature, top_k, top_p, min_p: see `choose_tokens`.
        repetition_penalty: see `penalize_repetition`; 1 turns it off.
        generator: the random generator, on the CPU.
        vocab_size: ids from here on are padding and are never sampled; None: all of the model's are sampled.
        stop: a row repeats this token once it has produced it; generation ends when all rows have.
    """

    def __init__(
        self,
        model: Transformer,
        prompts: Tensor | Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        generator: torch.Generator | None = None,
        vocab_size: int | None = None,
        stop: int | None = None,
    ) -> None:
        self.block_size, self.device = model.config.block_size, model.wte.weight.device
        self.tokens = torch.as_tensor(prompts, dtype=torch.int64, device=self.device)  # (B, n)
        rows, n = self.tokens.shape
        self.cache = KVCache(model.config, rows, min(self.block_size, n + max_new_tokens), self.device)
        self.start = 0  # the column where the window begins
        self.left = max_new_tokens
        self.settings = (temperature, top_k, top_p, min_p, generator)
        self.repetition_penalty, self.vocab_size, self.stop = repetition_penalty, vocab_size, stop
        self.ended = torch.zeros(rows, dtype=torch.bool)

    @property
    def finished(self) -> bool:
        """Whether all tokens are generated."""
        return self.left == 0 or bool(self.ended.all())

    def inputs(self) -> Tensor:
        """The tokens that the model must see before it predicts the next ones: (B, T), those that are not cached."""
        start = window_start(self.tokens.size(1), self.block_size)
        if start != self.start:  # the window has jumped: fill the cache again
            self.start, self.cache.filled = start, 0
        return self.tokens[:, start + self.cache.filled :]

    def append_choice(self, logits: Tensor) -> Tensor:
        """Choose each row's next token from its logits (B, V), append them, and return them, (B,) int64 on the CPU.
        UserError if the logits are not finite."""
        if not logits.isfinite().all():
            raise UserError(DIVERGED)
        if self.repetition_penalty != 1:
            logits = penalize_repetition(logits, self.tokens.cpu(), self.repetition_penalty)
        new = choose_tokens(logits, *self.settings)
        if self.stop is not None:
            new[self.ended] = self.stop
            self.ended |= new == self.stop
        self.tokens = torch.cat((self.tokens, new.to(self.device)[:, None]), 1)
        self.left -= 1
        return new


@torch.no_grad()
def next_logits(model: Transformer, generations: Sequence[Generation]) -> list[Tensor]:
    """The float32 logits of each generation's next tokens, (B, V) on the CPU, from a model in evaluation mode.

    Rows with one new token are one batch in the layers; a prompt, or a window that has jumped, is computed alone.
    Logits differ in their last bits by the number of rows in the batch.
    """
    inputs = [generation.inputs() for generation in generations]
    states: list[Tensor] = [torch.empty(0)] * len(inputs)  # (B, C) each
    single = [i for i, tokens in enumerate(inputs) if tokens.size(1) == 1]
    if len(single) > 1:
        hidden = model.hidden(
            torch.cat([inputs[i] for i in single]), JoinedCache([generations[i].cache for i in single])
        )
        for i, part in zip(single, hidden[:, -1].split([len(inputs[i]) for i in single]), strict=True):
            states[i] = part
    for i, tokens in enumerate(inputs):
        if not len(states[i]):
            states[i] = model.hidden(tokens, generations[i].cache)[:, -1]
    logits = model.logits(torch.cat(states)).float().cpu().split([len(each) for each in states])
    return [part[:, : each.vocab_size] for part, each in zip(logits, generations, strict=True)]


def generate(
    model: Transformer, prompts: Tensor | Sequence[Sequence[int]], max_new_tokens: int, *settings: Any, **named: Any
) -> Iterator[Tensor]:
    """Continue B prompts of the same length; the arguments are Generation's.

    Yields:
        the next token of each row, (B,) int64 on the CPU.

    Raises:
        UserError: the logits are not finite.
    """
    generation = Generation(model, prompts, max_new_tokens, *settings, **named)
    with evaluating(model):
        while not generation.finished:
            [logits] = next_logits(model, [generation])
            yield generation.append_choice(logits)


def window_start(n: int, block_size: int) -> int:
    """The first of n tokens that the model sees when it predicts the next one.

    It sees all of them while they fit; then the window jumps, so that about half a block is left, and grows again: a
    window that moves by one token at a time would have to be recomputed for each token.
    """
    hop = block_size - block_size // 2
    return max(0, -(-(n - block_size) // hop) * hop)


def penalize_repetition(logits: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """Lower the logits (B, V) of the tokens (B, n) that a row has already: divided by the penalty if they are above 0,
    and multiplied if below (CTRL, Keskar et al. 2019)."""
    repeated = logits.gather(1, tokens)  # (B, n)
    return logits.scatter(1, tokens, torch.where(repeated < 0, repeated * penalty, repeated / penalty))


def choose_tokens(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample the next tokens, (B,) int64, from float32 logits (B, V).

    Args:
        temperature: 0 takes the most likely token.
        top_k: sample from the k most likely tokens.
        top_p: of these, sample from the most likely ones whose probabilities add up to at least p.
        min_p: of these, sample from the tokens at least p times as likely as the most likely one.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = (logits - logits.max(-1, keepdim=True).values) / temperature
    probabilities = restrict_logits(logits, top_k, top_p, min_p).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


def restrict_logits(
    logits: Tensor, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None
) -> Tensor:
    """Set logits (B, V) outside the top k, of what is left outside the top p, and then those below min p, to -inf."""
    if top_k is not None:
        lowest = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < lowest, float("-inf"))
    if top_p is not None:
        ordered, order = logits.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # of all more likely tokens together
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, (before >= top_p) & (before > 0))
        logits = logits.masked_fill(outside, float("-inf"))
    if min_p is not None:
        lowest = logits.amax(-1, keepdim=True) + math.log(min_p)  # (B, 1)
        logits = logits.masked_fill(logits < lowest, float("-inf"))
    return logits


def encode_prompt(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """Encode a prompt; for an empty one, take what precedes a text: the end-of-text token, or a line end."""
    if prompt or tokenizer.eot is None:
        return tokenizer.encode(prompt or "\n")
    return [tokenizer.eot]


def greedy_answer(model: Transformer, tokenizer: Tokenizer, prompt: Sequence[int], max_new_tokens: int) -> str:
    """Continue a prompt with the most likely tokens, up to the end-of-text token. UserError if the logits are not
    finite."""
    eot = tokenizer.eot
    new = generate(model, [prompt], max_new_tokens, temperature=0, vocab_size=tokenizer.vocab_size, stop=eot)
    return tokenizer.decode([token for token in map(int, new) if token != eot])


class TextStream:
    """Decode one row's tokens as they are generated. A character that spans several tokens is held back until it is
    complete, and so is text that may be the beginning of a stop string."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.held, self.ended = "", False

    def add(self, token: int) -> str:
        """Return the text that this token completes; the end-of-text token and a stop string end the stream."""
        if self.ended:
            return ""
        if token == self.tokenizer.eot:
            return self.end()
        return self._release(self.decoder.decode(self.tokenizer.decode_bytes([token])))

    def end(self) -> str:
        """End the stream and return what was held back."""
        text = self._release(self.decoder.decode(b"", final=True))
        text, self.held, self.ended = text + self.held, "", True
        return text

    def _release(self, text: str) -> str:
        text = self.held + text
        found = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if found:
            self.held, self.ended = "", True
            return text[: min(found)]
        longest = min(max(map(len, self.stops), default=1) - 1, len(text))
        held = next((k for k in range(longest, 0, -1) if any(stop.startswith(text[-k:]) for stop in self.stops)), 0)
        self.held = text[len(text) - held :]
        return text[: len(text) - held]


def stream_texts(columns: Iterable[Tensor], streams: Sequence[TextStream]) -> Iterator[tuple[int, str]]:
    """Yield (row, text) for the columns of new tokens, (B,) each, as they come; end when every stream has ended."""
    for column in columns:
        for row, (stream, token) in enumerate(zip(streams, column.tolist(), strict=True)):
            if text := stream.add(token):
                yield row, text
        if all(stream.ended for stream in streams):
            return
    for row, stream in enumerate(streams):
        if text := "" if stream.ended else stream.end():
            yield row, text
