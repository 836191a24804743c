"""The answers to completions and chats, complete or as server-sent events, in the format of OpenAI's clients."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from eval.serving.batching import Piece, Request
from eval.serving.fields import ChatFields, GenerationFields
from eval.serving.models import ModelFiles, Refused
from eval.serving.security import describe_error


class Answer:
    """The answer to one HTTP request, made of the events that its requests share a queue for."""

    def __init__(
        self, fields: GenerationFields, files: ModelFiles, requests: Sequence[Request], with_logprobs: bool
    ) -> None:
        self.fields, self.requests, self.queue = fields, requests, requests[0].events
        self.chat, self.with_logprobs = isinstance(fields, ChatFields), with_logprobs
        self.head = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": "text_completion" if not self.chat else f"chat.completion{'.chunk' if fields.stream else ''}",
            "created": int(time.time()),
            "model": files.name,
            "system_fingerprint": files.fingerprint,
        }
        self.generated = 0

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces of all rows as they come. Refused if there are no more because of an error."""
        running = len(self.requests)
        while running:
            event = await self.queue.get()
            if isinstance(event, Refused):
                raise event
            if isinstance(event, Piece):
                self.generated += event.token is not None
                yield event
            else:
                running -= 1

    async def complete(self) -> dict[str, Any]:
        """The complete answer."""
        rows: dict[int, list[Piece]] = {}
        async for piece in self.pieces():
            rows.setdefault(piece.row, []).append(piece)
        choices = [self.choice(pieces, "message") for _, pieces in sorted(rows.items())]
        return {**self.head, "choices": choices, "usage": self.usage()}

    async def stream(self) -> AsyncIterator[str]:
        """A server-sent event for each piece, and for the usage if the client wants it. An error before the first
        piece is raised; a later one is an event."""
        started: set[int] = set()
        try:
            async for piece in self.pieces():
                choice = self.choice([piece], "delta", first=piece.row not in started)
                started.add(piece.row)
                yield self.event({**self.head, "choices": [choice]})
        except Refused as refusal:
            if not started:
                raise
            yield self.event({"error": describe_error(refusal.status, str(refusal))})
            return
        if self.fields.stream_options and self.fields.stream_options.include_usage:
            yield self.event({**self.head, "choices": [], "usage": self.usage()})
        yield "data: [DONE]\n\n"

    @staticmethod
    def event(content: dict[str, Any]) -> str:
        return f"data: {json.dumps(content)}\n\n"

    def usage(self) -> dict[str, int]:
        prompts = sum(len(request.prompt) for request in self.requests)
        return {
            "prompt_tokens": prompts,
            "completion_tokens": self.generated,
            "total_tokens": prompts + self.generated,
        }

    def choice(self, pieces: Sequence[Piece], key: str, first: bool = True) -> dict[str, Any]:
        """One row's pieces, all of them or the next. `key`: of a chat's text, message or delta."""
        text, row = "".join(piece.text for piece in pieces), pieces[0].row
        shown = [piece for piece in pieces if piece.token is not None]
        choice: dict[str, Any] = {"index": row, "finish_reason": pieces[-1].finish, "logprobs": None}
        if self.chat:
            choice[key] = {"role": "assistant", "content": text} if first else {"content": text}
        else:
            choice["text"] = text
        if self.with_logprobs:
            tokens = [self.token(piece.token, piece.logprob) for piece in shown]  # ty: ignore[invalid-argument-type]
            tops = [[self.token(*each) for each in piece.alternatives] for piece in shown]
            if self.chat:
                content = [token | {"top_logprobs": top} for token, top in zip(tokens, tops, strict=True)]
                choice["logprobs"] = {"content": content}
            else:  # the token itself counts as one of the top
                choice["logprobs"] = {
                    "tokens": [token["token"] for token in tokens],
                    "token_logprobs": [token["logprob"] for token in tokens],
                    "top_logprobs": [
                        {each["token"]: each["logprob"] for each in [*top, token]}
                        for token, top in zip(tokens, tops, strict=True)
                    ],
                    "text_offset": [piece.offset for piece in shown],
                }
                if self.fields.return_token_ids:
                    choice["logprobs"]["top_token_ids"] = [
                        list(dict.fromkeys([*(other for other, _ in piece.alternatives), piece.token]))
                        for piece in shown
                    ]
        if self.fields.return_token_ids:
            choice["token_ids"] = [piece.token for piece in shown]
            if first:
                choice["prompt_token_ids"] = self.requests[row // (self.fields.n or 1)].prompt
        return choice

    def token(self, token: int, logprob: float) -> dict[str, Any]:
        """A token as a chat's log-probabilities have it. One that is a part of a character has its bytes as text."""
        content = self.requests[0].tokenizer.decode_bytes([token])
        try:
            text = content.decode()
        except UnicodeDecodeError:
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
        entry = {"token": text, "logprob": logprob, "bytes": list(content)}
        return entry | ({"token_id": token} if self.fields.return_token_ids else {})
