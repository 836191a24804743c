"""The HTTP endpoints: those that OpenAI's clients speak, classification, the explain page, health, and metrics."""

import asyncio
import resource
import secrets
from collections import deque
from collections.abc import Awaitable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from eval.scoring.classification import classify
from eval.serving.answers import Answer, count_tokens
from eval.serving.batching import Batcher, Call, Job
from eval.serving.fields import ChatFields, ClassifyFields, CompletionFields, ExplainFields, check_language_model
from eval.serving.models import PICTURE, Catalog, ModelFiles, Refused, describe
from eval.serving.security import EXPLAIN, Guard, error_response
from eval.views.page import WEB, describe_page, encode_prompt, render_page
from eval.views.subject import Subject
from prepare.common.cli import UserError
from train.weights.load_model import LoadedModel

BODY_BYTES = 2**20
EXPLAIN_PAGES = 4  # kept in memory, of 1 to 20 MB each
Checked = TypeVar("Checked", CompletionFields, ChatFields, ClassifyFields, ExplainFields)


class API:
    """The endpoints, on one batcher."""

    def __init__(self, catalog: Catalog, batcher: Batcher, host: str, token: str | None) -> None:
        """`host`, `token`: of the Guard. The ASGI application is self.app."""
        self.catalog, self.batcher = catalog, batcher
        self.pages: deque[tuple[str, str]] = deque(maxlen=EXPLAIN_PAGES)  # path and HTML
        routes = [
            Route("/", lambda _request: FileResponse(WEB / "talk.html")),
            Mount("/web", StaticFiles(directory=WEB)),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}/loss.png", self.picture),
            Route("/v1/completions", partial(self.generate, CompletionFields), methods=["POST"]),
            Route("/v1/chat/completions", partial(self.generate, ChatFields), methods=["POST"]),
            Route("/v1/classify", self.classify, methods=["POST"]),
            Route("/v1/explain", self.explain, methods=["POST"]),
            Route(EXPLAIN + "{id}", self.explained),
        ]
        handlers = dict.fromkeys((Refused, ClientDisconnect, HTTPException, Exception), refuse)
        self.app = Guard(Starlette(routes=routes, exception_handlers=handlers), host, token)

    def health(self, _request: HTTPRequest) -> Response:
        """200 while requests are answered, 503 once the thread that computes has ended."""
        closed = self.batcher.closed
        return JSONResponse({"status": "closed" if closed else "ok"}, 503 if closed else 200)

    def metrics(self, _request: HTTPRequest) -> Response:
        """Counters and gauges in Prometheus's text format."""
        batcher = self.batcher
        values = {f"{name}_total": value for name, value in batcher.totals.items()}
        values |= {f'responses_total{{status="{key}"}}': n for key, n in sorted(self.app.responses.items())}
        values["requests_running"] = len(batcher.running)
        values["requests_waiting"] = batcher.incoming.qsize() + len(batcher.waiting)
        values["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        text = "".join(f"gpt2_{name} {value}\n" for name, value in values.items())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    def models(self, _request: HTTPRequest) -> Response:
        """Every model, the default one first."""
        return JSONResponse({"object": "list", "data": [describe(model) for model in self.catalog.models()]})

    def picture(self, request: HTTPRequest) -> Response:
        """The loss curves of a model's run."""
        files = self.catalog.find(request.path_params["name"])
        with suppress(OSError):
            return Response(((files.run or files.path) / PICTURE).read_bytes(), media_type="image/png")
        raise Refused(404, f"the model {files.name!a} has no {PICTURE}: it is drawn when a run ends")

    async def generate(self, kind: type[CompletionFields] | type[ChatFields], http: HTTPRequest) -> Response:
        """Continue a prompt, or answer a conversation: complete, or as a stream."""
        answer = Answer(*await self._read(http, kind))  # ty: ignore[invalid-argument-type]
        await self._start(http, answer)
        self.batcher.totals["prompt_tokens"] += len(answer.prompt)
        if answer.fields.stream:
            return StreamingResponse(answer.stream(), media_type="text/event-stream")
        return JSONResponse(await while_connected(http, answer.complete()))

    async def classify(self, http: HTTPRequest) -> Response:
        """The probabilities of a classifier's labels for each text, in vLLM's format."""
        files, fields = await self._read(http, ClassifyFields)

        def compute(loaded: LoadedModel) -> dict[str, Any]:
            labels = loaded.labels
            if not labels:
                raise UserError(f"{loaded.name} is not a classifier: POST /v1/completions continues a text with it")
            rows, lengths = classify(loaded.model, loaded.tokenizer, fields.input, self.batcher.device)  # ty: ignore[invalid-argument-type]
            data = [
                {"index": index, "label": labels[row.argmax()], "probs": row.tolist(), "num_classes": len(row)}
                for index, row in enumerate(rows)
            ]
            usage = count_tokens(sum(min(length, loaded.model.config.block_size) for length in lengths), 0)
            return {"object": "list", "model": files.name, "labels": labels, "data": data, "usage": usage}

        return JSONResponse(await self._start(http, Call(files, compute)))

    async def explain(self, http: HTTPRequest) -> Response:
        """Make eval/explain.py's page for this checkpoint and the prompt, and say where it is."""
        files, fields = await self._read(http, ExplainFields)

        def compute(loaded: LoadedModel) -> str:
            check_language_model(loaded)
            return render_page(describe_page(fields.prompt, [Subject(loaded, encode_prompt(fields.prompt, loaded))]))

        html = await self._start(http, Call(files, compute))
        url = EXPLAIN + secrets.token_hex(16)
        self.pages.append((url, html))
        return JSONResponse({"url": url}, 201)

    def explained(self, request: HTTPRequest) -> Response:
        """A page that was made."""
        html = dict(self.pages).get(request.url.path)
        if html is None:
            raise Refused(404, f"the last {EXPLAIN_PAGES} pages are kept, and this is none of them: explain it again")
        return HTMLResponse(html)

    async def _read(self, http: HTTPRequest, kind: type[Checked]) -> tuple[ModelFiles, Checked]:
        """The model that a request names, and the checked fields of its body."""
        body = b""
        async for chunk in http.stream():
            body += chunk
            if len(body) > BODY_BYTES:
                raise Refused(413, f"the body has more than {BODY_BYTES:,} bytes: shorten the prompt")
        try:
            fields = kind.model_validate_json(body)
        except ValidationError as failure:
            error = failure.errors(include_url=False)[-1]
            name = ".".join(map(str, error["loc"])) or "the body"
            problem = "is not supported" if error["type"] == "extra_forbidden" else error["msg"]
            raise Refused(400, f"{name}: {problem} (given: {ascii(error['input'])[:60]})") from None
        return await run_in_threadpool(self.catalog.find, fields.model), fields

    async def _start(self, http: HTTPRequest, job: Job) -> Any:
        """Queue a job, which lasts until its HTTP response is complete, and return its first event."""
        http.scope["exit_stack"].enter_context(self.batcher.submitted(job))
        return await while_connected(http, job.next_event())


async def while_connected(http: HTTPRequest, work: Awaitable[Any]) -> Any:
    """Wait for `work`; ClientDisconnect if the client goes away before it is done."""
    task = asyncio.ensure_future(work)
    while not (await asyncio.wait([task], timeout=0.5))[0]:
        if await http.is_disconnected():
            task.cancel()
            raise ClientDisconnect
    return task.result()


def refuse(_request: HTTPRequest, failure: Exception) -> Response:
    """The response to a request that ends with an exception."""
    if isinstance(failure, ClientDisconnect):
        return error_response(499, "the client has gone away")  # nginx's status, for the metrics
    if isinstance(failure, HTTPException):
        return error_response(failure.status_code, f"{failure.detail}: see docs/serve.md", failure.headers)
    if isinstance(failure, Refused):
        return error_response(failure.status, str(failure), {"retry-after": "1"} if failure.status == 429 else None)
    return error_response(500, "the server has a bug: its terminal shows where")
