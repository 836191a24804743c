"""Completions and chats: generated token by token, and sent in OpenAI's format, complete or as server-sent events."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eval.generation.sampling import Generation, TextStream
from eval.serving.batching import Job
from eval.serving.fields import ChatFields, CompletionFields
from eval.serving.models import ModelFiles, Refused
from eval.serving.security import error_response
from train.weights.load_model import LoadedModel

TOKENS = 2**13  # of all choices together: what waits for a slow reader is bounded


class Piece(NamedTuple):
    """One more token of one row."""

    row: int
    token: int | None  # None for the end-of-text token
    text: str  # what may be shown from now on; "" while a character or a stop string may be incomplete
    finish: str | None  # why the row ends: stop or length
    logprobs: list[tuple[int, float]]  # of the most likely tokens and then of this one, by the model's own logits


class Answer(Job):
    """The job and the answer of one request. Its first event, None, tells that the generation has started."""

    def __init__(self, files: ModelFiles, fields: CompletionFields | ChatFields) -> None:
        if fields.n * fields.max_tokens > TOKENS:
            raise Refused(400, f"n {fields.n} with max_tokens {fields.max_tokens}: at most {TOKENS:,} tokens together")
        super().__init__(files)
        self.fields, self.rows = fields, fields.n  # drawn by one random generator, as eval/generate.py's --num-samples
        self.chat, self.generated = isinstance(fields, ChatFields), 0
        self.head = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": "text_completion" if not self.chat else f"chat.completion{'.chunk' * fields.stream}",
            "created": int(time.time()),
            "model": files.name,
            "system_fingerprint": files.fingerprint,
        }

    def start(self, loaded: LoadedModel) -> None:
        """Encode the prompt and start its generation. UserError if the model cannot continue it."""
        fields, self.tokenizer, generator = self.fields, loaded.tokenizer, torch.Generator()
        generator.seed() if fields.seed is None else generator.manual_seed(fields.seed)
        self.prompt = fields.encode(loaded)
        self.streams = [TextStream(self.tokenizer, fields.stop) for _ in range(self.rows)]
        self.generation = Generation(
            loaded.model,
            [self.prompt] * self.rows,
            fields.max_tokens,
            temperature=fields.temperature if fields.temperature > 1e-6 else 0.0,  # below, a division by it overflows
            top_k=fields.top_k or None,
            top_p=fields.top_p if fields.top_p < 1 else None,
            min_p=fields.min_p or None,
            repetition_penalty=fields.repetition_penalty,
            generator=generator,
            vocab_size=self.tokenizer.vocab_size,
            stop=self.tokenizer.eot,
        )

    def append(self, logits: Tensor) -> list[Piece | None]:
        """Choose each row's next token from its logits (rows, V), and return those of the rows that had not ended; None
        follows the last. UserError if the model has diverged."""
        active = [(row, stream) for row, stream in enumerate(self.streams) if not stream.ended]
        new = self.generation.append_choice(logits).tolist()
        events: list[Piece | None] = []
        for row, stream in active:
            text, finish = stream.add(new[row]), "stop" if stream.ended else None
            if finish is None and self.generation.left == 0:
                text, finish = text + stream.end(), "length"
            logprobs = []
            if self.fields.alternatives is not None:
                values = logits[row].log_softmax(-1)  # (V,)
                top = values.topk(min(self.fields.alternatives, len(values))).indices.tolist()
                logprobs = [(token, values[token].item()) for token in [*top, new[row]]]
            events.append(Piece(row, None if new[row] == self.tokenizer.eot else new[row], text, finish, logprobs))
        self.ended |= all(stream.ended for stream in self.streams)
        return [*events, *([None] if self.ended else [])]

    async def complete(self) -> dict[str, Any]:
        """The complete answer."""
        rows: list[list[Piece]] = [[] for _ in range(self.rows)]
        while piece := await self.next_event():
            rows[piece.row].append(piece)
        choices = [self.choice(row) for row in rows]
        return self.head | {"choices": choices, "usage": count_tokens(len(self.prompt), self.generated)}

    async def stream(self) -> AsyncIterator[str]:
        """A server-sent event for each piece, and for the usage if the client wants it. An error is an event too."""
        started: set[int] = set()
        try:
            while piece := await self.next_event():
                yield event(self.head | {"choices": [self.choice([piece], piece.row not in started)]})
                started.add(piece.row)
        except Refused as refusal:
            yield f"data: {error_response(refusal.status, str(refusal)).body.decode()}\n\n"
            return
        if self.fields.stream_options.get("include_usage"):
            yield event(self.head | {"choices": [], "usage": count_tokens(len(self.prompt), self.generated)})
        yield "data: [DONE]\n\n"

    def choice(self, pieces: Sequence[Piece], first: bool = True) -> dict[str, Any]:
        """One row's pieces: all of them, or the next one. `first`: none was sent before."""
        row, text = pieces[0].row, "".join(piece.text for piece in pieces)
        tokens = [piece for piece in pieces if piece.token is not None]
        self.generated += len(tokens)
        choice: dict[str, Any] = {"index": row, "text": text, "finish_reason": pieces[-1].finish, "logprobs": None}
        if self.chat:
            role = {"role": "assistant"} if first else {}
            choice["delta" if self.fields.stream else "message"] = role | {"content": choice.pop("text")}
        if self.fields.alternatives is not None:
            choice["logprobs"] = self.logprobs([[self.token(*each) for each in piece.logprobs] for piece in tokens])
        if self.fields.return_token_ids:
            choice["token_ids"] = [piece.token for piece in tokens]
            if first:
                choice["prompt_token_ids"] = self.prompt
        return choice

    def logprobs(self, tokens: Sequence[list[dict[str, Any]]]) -> dict[str, Any]:
        """The log-probabilities of each place's most likely tokens and its own, which is the last."""
        if self.chat:
            return {"content": [{**token, "top_logprobs": top} for *top, token in tokens]}
        ranked = [{each["token"]: each for each in place} for place in tokens]  # the token itself counts as one of them
        return {
            "tokens": [place[-1]["token"] for place in tokens],
            "token_logprobs": [place[-1]["logprob"] for place in tokens],
            "top_logprobs": [{text: each["logprob"] for text, each in top.items()} for top in ranked],
            "top_token_ids": [[each["token_id"] for each in top.values()] for top in ranked],  # not OpenAI's
        }

    def token(self, token: int, logprob: float) -> dict[str, Any]:
        """A token as a chat's log-probabilities have it. One that is a part of a character has its bytes as text."""
        content = self.tokenizer.decode_bytes([token])
        try:
            text = content.decode()
        except UnicodeDecodeError:
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
        return {"token": text, "token_id": token, "logprob": logprob, "bytes": list(content)}  # token_id: not OpenAI's


def count_tokens(prompt: int, generated: int) -> dict[str, int]:
    """The `usage` of an answer."""
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def event(content: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content)}\n\n"
