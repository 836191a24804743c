"""Completions and chats: their jobs, and the answers in OpenAI's format, complete or as server-sent events."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from eval.serving.batching import Job
from eval.serving.continuation import Continuation, Piece
from eval.serving.fields import ChatFields, GenerationFields
from eval.serving.models import ModelFiles, Refused
from eval.serving.security import describe_error
from train.weights.load_model import LoadedModel


class Generating(Job):
    """The job of a completion or a chat. Its first event is the list of prompts, token ids each."""

    def __init__(self, files: ModelFiles, fields: GenerationFields) -> None:
        super().__init__(files, self.start, fields.rows)
        self.fields = fields

    def start(self, loaded: LoadedModel) -> list[list[int]]:
        """Encode the prompts and start their continuations."""
        self.tokenizer, prompts = loaded.tokenizer, self.fields.encode(loaded)
        self.continuations = [
            Continuation(loaded, self.fields, prompt, number * self.fields.n) for number, prompt in enumerate(prompts)
        ]
        return prompts


class Answer:
    """The answer to one HTTP request."""

    def __init__(self, job: Generating, prompts: Sequence[list[int]]) -> None:
        self.job, self.fields, self.prompts = job, job.fields, prompts
        self.chat = isinstance(self.fields, ChatFields)
        self.head = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": "text_completion" if not self.chat else f"chat.completion{'.chunk' * self.fields.stream}",
            "created": int(time.time()),
            "model": job.files.name,
            "system_fingerprint": job.files.fingerprint,
        }
        self.generated = 0

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces of all rows as they come. Refused if there are no more because of an error."""
        while piece := await self.job.next_event():
            self.generated += piece.token is not None
            yield piece

    async def complete(self) -> dict[str, Any]:
        """The complete answer."""
        rows: dict[int, list[Piece]] = {row: [] for row in range(self.fields.rows)}
        async for piece in self.pieces():
            rows[piece.row].append(piece)
        return {**self.head, "choices": [self.choice(row) for row in rows.values()], "usage": self.usage()}

    async def stream(self) -> AsyncIterator[str]:
        """A server-sent event for each piece, and for the usage if the client wants it. An error is an event too."""
        started: set[int] = set()
        try:
            async for piece in self.pieces():
                yield event({**self.head, "choices": [self.choice([piece], piece.row not in started)]})
                started.add(piece.row)
        except Refused as refusal:
            yield event({"error": describe_error(refusal.status, str(refusal))})
            return
        if self.fields.stream_options.include_usage:
            yield event({**self.head, "choices": [], "usage": self.usage()})
        yield "data: [DONE]\n\n"

    def usage(self) -> dict[str, int]:
        """The numbers of tokens."""
        prompts = sum(map(len, self.prompts))
        return {
            "prompt_tokens": prompts,
            "completion_tokens": self.generated,
            "total_tokens": prompts + self.generated,
        }

    def choice(self, pieces: Sequence[Piece], first: bool = True) -> dict[str, Any]:
        """One row's pieces: all of them, or the next one. `first`: none was sent before."""
        text, row = "".join(piece.text for piece in pieces), pieces[0].row
        tokens = [piece for piece in pieces if piece.token is not None]
        choice = {"index": row, "finish_reason": pieces[-1].finish, "logprobs": self.logprobs(tokens)}
        if self.chat:
            role = {"role": "assistant"} if first else {}
            choice["delta" if self.fields.stream else "message"] = role | {"content": text}
        else:
            choice["text"] = text
        if self.fields.return_token_ids:
            choice["token_ids"] = [piece.token for piece in tokens]
            if first:
                choice["prompt_token_ids"] = self.prompts[row // self.fields.n]
        return choice

    def logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        """The log-probabilities of these tokens and their alternatives; None if the client does not want them."""
        if self.fields.alternatives is None:
            return None
        tokens = [self.token(piece.token, piece.logprob) for piece in pieces]  # ty: ignore[invalid-argument-type]
        tops = [[self.token(*each) for each in piece.alternatives] for piece in pieces]
        if self.chat:
            return {"content": [token | {"top_logprobs": top} for token, top in zip(tokens, tops, strict=True)]}
        ranked = [  # by text; the token itself counts as one of the top
            {each["token"]: each for each in [*top, token]} for token, top in zip(tokens, tops, strict=True)
        ]
        logprobs = {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": [{text: each["logprob"] for text, each in top.items()} for top in ranked],
            "text_offset": [piece.offset for piece in pieces],
        }
        if self.fields.return_token_ids:
            logprobs["top_token_ids"] = [[each["token_id"] for each in top.values()] for top in ranked]
        return logprobs

    def token(self, token: int, logprob: float) -> dict[str, Any]:
        """A token as a chat's log-probabilities have it. One that is a part of a character has its bytes as text."""
        content = self.job.tokenizer.decode_bytes([token])
        try:
            text = content.decode()
        except UnicodeDecodeError:
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
        described = {"token": text, "logprob": logprob, "bytes": list(content)}
        return described | ({"token_id": token} if self.fields.return_token_ids else {})


def event(content: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content)}\n\n"
