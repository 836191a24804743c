"""Models to serve, and an app in this process to ask."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import torch

from eval.serving.api import API
from eval.serving.batching import Batcher
from eval.serving.models import Catalog
from prepare.finetuning.instructions import Template
from tests.helpers.tiny import random_model, save_checkpoint
from tests.helpers.vocabulary import small_tokenizer
from train.config.pretrain import ModelConfig
from train.model.build import build_classifier

TOKENIZER = small_tokenizer()


def make_runs(folder: Path) -> Path:
    """Runs of tiny random models: gpt2 (two checkpoints), modern, and an instruction follower and a classifier."""
    shape = {"vocab_size": TOKENIZER.vocab_size, "block_size": 32}
    known: dict[str, Any] = {"tokenizer": TOKENIZER.describe()}
    for step in (2, 4):
        save_checkpoint(folder / "gpt2", step, random_model(**shape), **known)
    save_checkpoint(folder / "modern", 5, random_model(architecture="modern", **shape), **known)
    template = Template().describe()
    save_checkpoint(folder / "chat", 6, random_model(**shape), template=template, converses=True, **known)
    save_checkpoint(folder / "single", 6, random_model(**shape), template=template, **known)
    classifier = build_classifier(ModelConfig(n_layer=1, n_head=1, n_embd=8, **shape), 2)
    save_checkpoint(folder / "labels", 7, classifier, labels=["ham", "spam"], **known)
    return folder


@asynccontextmanager
async def app_client(
    runs: Path, token: str | None = None, start: bool = True
) -> AsyncIterator[tuple[httpx.AsyncClient, Batcher]]:
    """An HTTP client of an app in this process, and the app's batcher, whose thread the test may start itself."""
    batcher = Batcher(torch.device("cpu"))
    if start:
        batcher.start()
    transport = httpx.ASGITransport(API(Catalog(runs), batcher, "127.0.0.1", token).app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=100) as client:
            yield client, batcher
    finally:
        batcher.close()
        await asyncio.to_thread(batcher.join, 20)


async def post_together(client: httpx.AsyncClient, batcher: Batcher, path: str, *bodies: Any, **headers: Any) -> list:
    """The responses to POST requests; the batcher's thread starts when all are queued or refused."""
    posts = [asyncio.ensure_future(client.post(path, content=json.dumps(body), headers=headers)) for body in bodies]
    while batcher.incoming.qsize() + sum(post.done() for post in posts) < len(posts):
        await asyncio.sleep(0.01)
    batcher.start()
    return await asyncio.gather(*posts)
