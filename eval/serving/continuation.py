"""The continuation of a prompt, token by token: what is generated, and what may be shown of it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from eval.generation.sampling import Generation, TextStream
from eval.serving.fields import GenerationFields
from train.weights.load_model import LoadedModel


@dataclass
class Piece:
    """One more token of one row."""

    row: int
    token: int | None  # None for the end-of-text token
    text: str  # what may be shown from now on; "" while a character or a stop string may be incomplete
    offset: int  # the number of characters before this token
    logprob: float = 0.0  # of the token, from the model's own logits: before temperature, top k and so on
    alternatives: list[tuple[int, float]] = field(default_factory=list)  # the most likely tokens with their logprobs
    finish: str | None = None  # why the row ends: stop or length


class Continuation:
    """The n continuations of a prompt, drawn by one random generator, as eval/generate.py's --num-samples."""

    def __init__(self, loaded: LoadedModel, fields: GenerationFields, prompt: list[int], first_row: int) -> None:
        """`first_row`: what a piece's row is counted from, when a request has several prompts."""
        self.first_row, self.alternatives, self.tokenizer = first_row, fields.alternatives, loaded.tokenizer
        generator = torch.Generator()
        generator.seed() if fields.seed is None else generator.manual_seed(fields.seed)
        self.generation = Generation(
            loaded.model,
            [prompt] * fields.n,
            fields.max_tokens,
            generator=generator,
            vocab_size=self.tokenizer.vocab_size,
            stop=self.tokenizer.eot,
            **fields.settings,
        )
        self.streams = [TextStream(self.tokenizer, fields.stop) for _ in range(fields.n)]
        self.lengths = [0] * fields.n  # characters so far

    @property
    def finished(self) -> bool:
        return self.generation.finished or all(stream.ended for stream in self.streams)

    def append(self, logits: Tensor) -> list[Piece]:
        """Choose each row's next token from its logits (n, V), and return those of the rows that had not ended.
        UserError if the model has diverged."""
        active = [row for row, stream in enumerate(self.streams) if not stream.ended]
        new = self.generation.append_choice(logits).tolist()
        pieces = []
        for row in active:
            stream, offset = self.streams[row], self.lengths[row] + len(self.streams[row].held)
            text, finish = stream.add(new[row]), "stop" if stream.ended else None
            if finish is None and self.generation.left == 0:
                text, finish = text + stream.end(), "length"
            self.lengths[row] += len(text)
            token = None if new[row] == self.tokenizer.eot else new[row]
            pieces.append(Piece(self.first_row + row, token, text, offset, finish=finish))
        if self.alternatives is not None:
            logprobs = logits[active].log_softmax(-1)  # (active rows, V)
            top = logprobs.topk(min(self.alternatives, logits.size(-1)))
            for piece, row, logprob, values, ids in zip(
                pieces, active, logprobs, *map(Tensor.tolist, top), strict=True
            ):
                piece.logprob = logprob[new[row]].item()
                piece.alternatives = list(zip(ids, values, strict=True))
        return pieces
