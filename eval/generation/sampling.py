"""Text out of a model, token by token."""

import codecs
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from eval.generation.compiled import CompiledStep
from eval.scoring.log_likelihood import DIVERGED, evaluating
from prepare.common.cli import UserError
from prepare.tokens.tokenizer import Tokenizer
from train.model.gpt import GPT
from train.model.kv_cache import KVCache

COLDEST = 1e-30  # temperatures below are 0 in float32


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
    prompts: Tensor | Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    compiled: CompiledStep | None = None,
    vocab_size: int | None = None,
    stop: int | None = None,
) -> Iterator[Tensor]:
    """Continue prompts, also of different lengths, also beyond the block size. What is likely in a row does not depend
    on the others; what is drawn does, since all draw from one generator.

    The prompts end in the same column, and shorter ones begin behind columns that nothing sees:

        tokens      _ _ a a a     rows of `prompts`, then a column for each new token
                    b b b b b

    Args:
        prompts: B rows of at least one token id each.
        temperature, top_k, top_p, min_p, repetition_penalty: as in `choose`; the penalty is for every earlier token
            of the row.
        generator: the source of randomness, on the CPU.
        use_cache: compute each position once.
        compiled: the model's step for B rows, and its cache, where one new token at a time is to be computed by it.
        vocab_size: ids from here on are padding and never come; None: all of the model's may.
        stop: a row that has given this token gives nothing else; when all rows have, generation ends.

    Yields:
        the next token of each row, (B,) int64 on the CPU.
    """
    size, device = model.config.block_size, model.wte.weight.device
    rows = [torch.as_tensor(prompt) for prompt in prompts]
    B, n = len(rows), max(map(len, rows))  # n counts the columns so far
    end = n + max_new_tokens
    tokens = torch.zeros(B, n, dtype=torch.int64, device=device)  # the latest columns, up to n
    begins = [n - len(row) for row in rows]  # the column in which each row begins
    for number, row in enumerate(rows):
        tokens[number, begins[number] : n] = row
    used = torch.zeros(B, model.config.vocab_size, dtype=torch.bool)  # which ids a row has
    for number, row in enumerate(rows):
        used[number, row] = True
    cache = compiled.cache if compiled else None
    if use_cache and not compiled:
        cache = KVCache(model.config, B, min(size, end), device)
    starts: list[int] = []  # the column in which each row's window begins
    ended = torch.zeros(B, dtype=torch.bool)
    with evaluating(model):
        while n < end and not ended.all():
            moved = [begin + window_start(n - begin, size) for begin in begins]
            if cache is None or moved != starts:
                starts, seen = moved, min(moved)  # seen: the first column that the cache does not hold
                if cache is not None:
                    cache.filled = 0
            if compiled and n - seen == 1:
                places = alignment(starts, seen, n, device, min(starts) + size)
                logits = compiled(tokens[:, seen - n :], seen - min(starts), **places)
            else:
                places = alignment(starts, seen, n, device) if max(starts) > min(starts) else {}
                logits = model.logits(model.hidden(tokens[:, seen - n :], cache, **places)[:, -1])
            logits = logits[:, :vocab_size].float().cpu()  # (B, V)
            if not logits.isfinite().all():
                raise UserError(DIVERGED)
            logits = penalize(logits, used[:, :vocab_size], repetition_penalty)
            new = choose(logits, temperature, top_k, top_p, min_p, generator)
            if stop is not None:
                new[ended] = stop
                ended |= new == stop
            tokens = torch.cat((tokens[:, -size:], new.to(device)[:, None]), 1)  # no window reaches further back
            used[torch.arange(B), new] = True
            seen, n = n, n + 1
            yield new


def alignment(
    starts: Sequence[int], seen: int, n: int, device: torch.device, end: int | None = None
) -> dict[str, Tensor]:
    """Positions (B, T) and mask (B, 1, T, S) of the columns seen..n, for windows that begin in different columns.

    A column before a row's window sees itself alone, and no later one sees it. S columns, up to n or further to `end`.
    """
    begin = torch.tensor(starts, device=device)[:, None]  # (B, 1)
    keys = torch.arange(min(starts), end or n, device=device)  # (S,)
    queries = torch.arange(seen, n, device=device)  # (T,)
    inside = (keys >= begin)[:, None] & (keys <= queries[:, None])  # (B, 1, S) and (T, S) to (B, T, S)
    visible = inside | (keys == queries[:, None])
    mask = torch.zeros(visible.shape, device=device).masked_fill(~visible, float("-inf"))
    return {"positions": (queries - begin).clamp(min=0), "mask": mask[:, None]}


def penalize(logits: Tensor, used: Tensor, penalty: float) -> Tensor:
    """Logits (B, V) with those of used ids, bool (B, V), made less likely: divided by the penalty, or times it below 0.

    Source: Keskar et al. 2019, "CTRL", section 4.1, with transformers' treatment of negative logits.
    """
    if penalty == 1:
        return logits
    return torch.where(used, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def choose(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The next tokens, (B,) int64, for float32 logits (B, V).

    Args:
        temperature: 0 takes the likeliest token.
        top_k: sample among the k likeliest.
        top_p: of these, sample among the likeliest that together have at least this probability.
        min_p: of these, sample among those that have at least this part of the likeliest one's probability.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = (logits - logits.max(-1, keepdim=True).values) / max(temperature, COLDEST)  # no overflow
    probabilities = torch.softmax(restrict(logits, top_k, top_p, min_p), -1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


def restrict(
    logits: Tensor, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None
) -> Tensor:
    """Logits (B, V) with -inf for what is outside the top k, then the top p of what is left, then min p."""
    if top_k is not None:
        least = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p is not None:
        ordered, order = logits.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # what the likelier ones have together
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, (before >= top_p) & (before > 0))
        logits = logits.masked_fill(outside, float("-inf"))
    if min_p is not None:
        probabilities = logits.softmax(-1)
        logits = logits.masked_fill(probabilities < min_p * probabilities.amax(-1, keepdim=True), float("-inf"))
    return logits


class TextStream:
    """One row's tokens as text, as soon as it is whole: a character whose bytes lie in several tokens comes with the
    last of them, and what may be the beginning of a stop string waits for what follows it.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.held, self.ended = "", False

    def add(self, token: int) -> str:
        """The text that this token completes; the end-of-text token and a stop string end the stream."""
        if self.ended:
            return ""
        if token == self.tokenizer.eot:
            return self.end()
        return self._release(self.decoder.decode(self.tokenizer.decode_bytes([token])))

    def end(self) -> str:
        """What still waits."""
        text = self._release(self.decoder.decode(b"", final=True))
        text, self.held, self.ended = text + self.held, "", True
        return text

    def _release(self, text: str) -> str:
        text = self.held + text
        found = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if found:
            self.held, self.ended = "", True
            return text[: min(found)]
        most = min(max(map(len, self.stops), default=1) - 1, len(text))
        waiting = next((k for k in range(most, 0, -1) if any(stop.startswith(text[-k:]) for stop in self.stops)), 0)
        self.held = text[len(text) - waiting :]
        return text[: len(text) - waiting]


def stream_texts(columns: Iterable[Tensor], streams: Sequence[TextStream]) -> Iterator[tuple[int, str]]:
    """Columns of new tokens, (B,) each, as pieces of text with their rows; ends when every stream has."""
    for column in columns:
        for row, (stream, token) in enumerate(zip(streams, column.tolist(), strict=True)):
            if text := stream.add(token):
                yield row, text
        if all(stream.ended for stream in streams):
            return
    for row, stream in enumerate(streams):
        if text := "" if stream.ended else stream.end():
            yield row, text
