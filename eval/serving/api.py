"""The HTTP endpoints: models, completions and chats as OpenAI's clients speak, health, and metrics for Prometheus."""

import asyncio
import resource
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from eval.generation.sampling import encode_prompt
from eval.serving.answers import Answer
from eval.serving.batching import Batcher, Request
from eval.serving.fields import MAX_ROWS_A_REQUEST, ChatFields, CompletionFields, GenerationFields
from eval.serving.models import Catalog, Refused
from eval.serving.security import Guard, Json, error_response
from prepare.common.cli import ROOT, UserError
from train.weights.load_model import LoadedModel

WEB = ROOT / "eval" / "web"
BODY_BYTES = 2**20
PROMPT_TOKENS = 2**15
GENERATED_TOKENS = 2**13  # of all choices together: what waits for a slow reader is bounded
CHAT_TOKENS = 512  # at most, of an answer whose max_tokens is not given
Checked = TypeVar("Checked", bound=GenerationFields)


class API:
    """The endpoints, on one batcher."""

    def __init__(self, catalog: Catalog, batcher: Batcher) -> None:
        self.catalog, self.batcher = catalog, batcher
        self.web = StaticFiles(directory=WEB)

    def app(self, host: str, token: str | None) -> Guard:
        """The ASGI application; see Guard."""
        routes = [
            Route("/", self.page),
            Mount("/web", self.web),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}/loss.png", self.picture),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        handlers = dict.fromkeys((Refused, HTTPException, ClientDisconnect, Exception), refuse)
        self.guard = Guard(Starlette(routes=routes, exception_handlers=handlers), host, token)
        return self.guard

    async def page(self, request: HTTPRequest) -> Response:
        """The page on which one talks to the models."""
        return await self.web.get_response("talk.html", request.scope)

    def health(self, _request: HTTPRequest) -> Response:
        """200 while requests are answered, 503 once the thread that computes has ended."""
        alive = not self.batcher.closed
        return Json({"status": "ok" if alive else "the thread that computes has ended"}, 200 if alive else 503)

    def metrics(self, _request: HTTPRequest) -> Response:
        """Counters and gauges in Prometheus's text format."""
        batcher, memory = self.batcher, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        lines = []
        for name, value in batcher.totals.items():
            lines += [f"# TYPE gpt2_{name}_total counter", f"gpt2_{name}_total {value}"]
        for name, value in (("running", len(batcher.running)), ("waiting", len(batcher.waiting))):
            lines += [f"# TYPE gpt2_requests_{name} gauge", f"gpt2_requests_{name} {value}"]
        lines += ["# TYPE gpt2_peak_memory_bytes gauge", f"gpt2_peak_memory_bytes {memory}"]
        lines += ["# TYPE gpt2_responses_total counter"]
        lines += [f'gpt2_responses_total{{status="{key}"}} {n}' for key, n in sorted(self.guard.responses.items())]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    def models(self, _request: HTTPRequest) -> Response:
        """Every model, the default one first."""
        return Json({"object": "list", "data": self.catalog.describe()})

    def picture(self, request: HTTPRequest) -> Response:
        """The loss curves of a model's run."""
        return Response(self.catalog.picture(request.path_params["name"]), media_type="image/png")

    async def completions(self, request: HTTPRequest) -> Response:
        """Continue one or several prompts."""
        fields = await read_fields(request, CompletionFields)
        encoders = [partial(encode_text, prompt) for prompt in fields.prompts]
        return await self._answer(request, fields, encoders, fields.max_tokens or 16, fields.logprobs)

    async def chat(self, request: HTTPRequest) -> Response:
        """Answer a conversation."""
        fields = await read_fields(request, ChatFields)
        alternatives = (fields.top_logprobs or 0) if fields.logprobs else None
        if fields.top_logprobs and alternatives is None:
            raise Refused(400, "top_logprobs is for logprobs true: set that too")
        limit = fields.max_completion_tokens or fields.max_tokens or CHAT_TOKENS
        return await self._answer(request, fields, [partial(encode_chat, fields)], limit, alternatives)

    async def _answer(
        self,
        http: HTTPRequest,
        fields: GenerationFields,
        encoders: Sequence[Callable[[LoadedModel], list[int]]],
        max_tokens: int,
        alternatives: int | None,
    ) -> Response:
        """Generate, and stream what is generated or send it when it is complete."""
        n = fields.n or 1
        rows = n * len(encoders)
        if rows > MAX_ROWS_A_REQUEST or rows * max_tokens > GENERATED_TOKENS:
            raise Refused(
                400,
                f"{len(encoders)} prompts with n {n} and max_tokens {max_tokens}: give at most {MAX_ROWS_A_REQUEST} "
                f"choices and {GENERATED_TOKENS:,} tokens a request",
            )
        files = await run_in_threadpool(self.catalog.find, fields.model)
        temperature = 1.0 if fields.temperature is None else fields.temperature
        settings = {
            "temperature": temperature if temperature > 1e-6 else 0.0,  # below, a division by it overflows
            "top_k": fields.top_k or None,
            "top_p": fields.top_p if fields.top_p != 1 else None,
            "min_p": fields.min_p or None,
            "repetition_penalty": fields.repetition_penalty or 1.0,
        }
        stops = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
        seed = secrets.randbits(62) if fields.seed is None else fields.seed
        queue: asyncio.Queue = asyncio.Queue()
        requests = [
            Request(files, encode, n, max_tokens, seed, stops, settings, alternatives, queue, number * n)
            for number, encode in enumerate(encoders)
        ]
        answer = Answer(fields, files, requests, alternatives is not None)
        self.batcher.submit(requests)
        streaming = False
        try:
            if not fields.stream:
                return Json(await while_connected(http, answer.complete()))
            events = answer.stream()
            first = await while_connected(http, anext(events))  # a refusal comes before the first token
            streaming = True
            return EventStream(first, events, lambda: self.batcher.cancel(requests))
        finally:
            if not streaming:
                self.batcher.cancel(requests)


class EventStream(StreamingResponse):
    """Server-sent events; `at_end` is called when the stream is complete, and when the client has gone away."""

    def __init__(self, first: str, events: AsyncIterator[str], at_end: Callable[[], None]) -> None:
        async def chain() -> AsyncIterator[str]:
            yield first
            async for event in events:
                yield event

        super().__init__(chain(), media_type="text/event-stream")
        self.at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.at_end()


async def while_connected(http: HTTPRequest, work: Awaitable[Any]) -> Any:
    """Wait for `work`; ClientDisconnect if the client goes away before it is done."""

    async def disconnect() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(disconnect())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


async def read_fields(http: HTTPRequest, kind: type[Checked]) -> Checked:
    """The checked fields of a request's body."""
    body = b""
    async for chunk in http.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise Refused(413, f"the body has more than {BODY_BYTES:,} bytes: shorten the prompt")
    try:
        return kind.model_validate_json(body)
    except ValidationError as failure:
        error = failure.errors(include_url=False)[0]
        name = ".".join(map(str, error["loc"])) or "the body"
        problem = "is not supported" if error["type"] == "extra_forbidden" else error["msg"]
        raise Refused(400, f"{name}: {problem} (given: {ascii(error['input'])[:60]})") from None


def encode_text(prompt: str | list[int], loaded: LoadedModel) -> list[int]:
    """The tokens of a completion's prompt."""
    if loaded.labels:
        raise Refused(400, f"{loaded.name} is a classifier ({', '.join(loaded.labels)}): it generates no text")
    size = loaded.tokenizer.vocab_size
    if isinstance(prompt, list):
        if outside := [token for token in prompt if not 0 <= token < size]:
            raise Refused(400, f"prompt: token {outside[0]} is outside the vocabulary: give ids from 0 to {size - 1}")
        return check_length(prompt)
    try:
        return check_length(encode_prompt(prompt, loaded.tokenizer))
    except UserError as mistake:  # a character that the vocabulary lacks
        raise Refused(400, f"prompt: {mistake}") from None


def encode_chat(fields: ChatFields, loaded: LoadedModel) -> list[int]:
    """The tokens of a conversation, by the template that the model was fine-tuned with."""
    messages = [(message.role, message.text) for message in fields.messages]
    if loaded.template is None:
        raise Refused(400, f"{loaded.name} has no chat template: POST /v1/completions continues a text with it")
    if messages[-1][0] != "user":
        raise Refused(400, "messages: the last one must be the user's")
    if not loaded.multi_turn and any(role == "assistant" for role, _ in messages):
        raise Refused(400, f"{loaded.name} was fine-tuned on single instructions: send the last question alone")
    return check_length(loaded.template.prompt(messages, loaded.tokenizer))


def check_length(tokens: list[int]) -> list[int]:
    if len(tokens) > PROMPT_TOKENS:
        raise Refused(400, f"the prompt has {len(tokens):,} tokens: give at most {PROMPT_TOKENS:,}")
    return tokens


def refuse(_request: HTTPRequest, failure: Exception) -> Response:
    """The response to a request that ends with an exception."""
    if isinstance(failure, HTTPException):
        return error_response(failure.status_code, f"{failure.detail}: see docs/serve.md", failure.headers)
    if isinstance(failure, Refused):
        return error_response(failure.status, str(failure), {"retry-after": "1"} if failure.status == 429 else None)
    if isinstance(failure, ClientDisconnect):
        return error_response(499, "the client has gone away")  # nginx's status, for the metrics
    return error_response(500, "the server has a bug: its terminal shows where")
