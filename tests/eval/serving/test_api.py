"""The endpoints in this process: batches, checks, limits, and what happens to files that change."""

import asyncio
import json
import os
import random
import shutil
from collections import Counter

import pytest

from eval import classify, explain
from eval.serving import api, batching, models, security
from eval.views import over_time
from prepare.common.files import FileLock
from tests.helpers.serving import TOKENIZER, app_client, make_runs, post_together
from tests.helpers.tiny import random_model, save_checkpoint
from train.run.checkpoint import all_checkpoints
from train.weights import load_model as loading
from train.weights.load_model import read_weights

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("runs"))


def ask(runs, *bodies, path=COMPLETIONS, token=None, **headers):
    """The responses to POST requests that are sent together."""

    async def send():
        async with app_client(runs, token, start=False) as (client, batcher):
            return await post_together(client, batcher, path, *bodies, **headers), batcher

    return asyncio.run(send())


def text(response):
    assert response.status_code == 200, response.text
    return [choice["text"] for choice in response.json()["choices"]]


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gpt2", "modern"])
def test_requests_together_get_what_each_gets_alone(runs, model):
    """With their own lengths, settings and seeds, also beyond the block size."""
    settings = [{"temperature": 0}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 9, "n": 3}, {"min_p": 0.01}]
    bodies = [
        {"model": model, "prompt": "word " * (1 + 9 * n), "seed": n, "max_tokens": 44 - n, **settings[n % 4]}
        for n in range(7)
    ]

    async def send():
        async with app_client(runs, start=False) as (client, batcher):
            together = await post_together(client, batcher, COMPLETIONS, *bodies)
            assert batcher.totals["steps"] == max(body["max_tokens"] for body in bodies)  # they shared them
            alone = [await client.post(COMPLETIONS, json=body) for body in bodies]
            assert list(map(text, together)) == list(map(text, alone))

    asyncio.run(send())


def test_models_take_turns_in_memory_and_one_is_loaded_for_all_that_wait_for_it(runs):
    names = ["gpt2", "modern", "gpt2", "gpt2@2", "modern", "gpt2@4"]  # gpt2@4 is gpt2
    responses, batcher = ask(runs, *({"model": name, "max_tokens": 4, "seed": 1} for name in names))
    assert [response.json()["model"] for response in responses] == names
    assert len({text(response)[0] for response in responses}) == 2  # the two checkpoints of gpt2 are equal
    assert batcher.totals["model_loads"] == 3


def test_a_prompt_as_text_as_tokens_and_as_a_list_of_one(runs):
    body, tokens = {"model": "gpt2", "max_tokens": 3, "temperature": 0, "n": 2}, TOKENIZER.encode("Hello there")
    prompts = ["Hello there", tokens, ["Hello there"], [tokens]]
    responses, _ = ask(runs, *({**body, "prompt": prompt} for prompt in prompts))
    assert len({tuple(text(response)) for response in responses}) == 1
    assert [choice["index"] for choice in responses[0].json()["choices"]] == [0, 1]
    usage = {"prompt_tokens": len(tokens), "completion_tokens": 6, "total_tokens": len(tokens) + 6}
    assert responses[0].json()["usage"] == usage


# --- what is refused --------------------------------------------------------------------------------------------------


def assert_refused(runs, path, defaults, words_of):
    """Each of these bodies, over the defaults, is answered by a 400 whose message holds the words before it."""
    responses, _ = ask(runs, *({**defaults, **body} for _, body in words_of), path=path)
    for (words, _), response in zip(words_of, responses, strict=True):
        assert (response.status_code, words in response.json()["error"]["message"]) == (400, True), words


def test_fields_that_are_unknown_or_out_of_range_are_named_by_a_400(runs):
    refused = [
        ("logit_bias", {"logit_bias": {"5": 1}}),
        ("tools: is not supported", {"tools": []}),
        ("frequency_penalty", {"frequency_penalty": 0.5, "presence_penalty": 0.0}),
        ("best_of", {"best_of": 2}),
        ("echo", {"echo": True}),
        ("temperature", {"temperature": -1}),
        ("temperature", {"temperature": "1"}),
        ("top_p", {"top_p": 0}),
        ("n: ", {"n": 17}),
        ("prompt: give one", {"prompt": ["a", "b"]}),
        ("max_tokens 4096", {"n": 3, "max_tokens": 4096}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": 10**6}),
        ("stop", {"stop": ""}),
        ("seed", {"seed": 2**70}),
        ("logprobs", {"logprobs": 21}),
        ("300 is outside the vocabulary", {"prompt": [300]}),
        ("prompt", {"prompt": "a " * 70_000}),
        ("at most 32768", {"prompt": [1] * 33_000}),
        ("is a classifier", {"model": "labels"}),
    ]
    assert_refused(runs, COMPLETIONS, {"model": "gpt2"}, refused)


def test_conversations_that_a_model_cannot_answer_are_named_by_a_400(runs):
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    refused = [
        ("has no chat template", {"model": "gpt2"}),
        ("top_logprobs", {"model": "chat", "top_logprobs": 2}),
        ("messages", {"model": "chat", "messages": []}),
        ("role", {"model": "chat", "messages": [{"role": "tool", "content": "x"}]}),
        ("content", {"model": "chat", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        ("must be the user's", {"model": "chat", "messages": [{"role": "assistant", "content": "x"}]}),
        ("single", {"model": "single", "messages": turns}),
    ]
    assert_refused(runs, CHAT, {"messages": turns[:1]}, refused)


def test_hosts_origins_and_tokens(runs):
    key = {"authorization": "Bearer sesame"}
    cases = [
        (200, key),
        (200, {**key, "origin": "http://localhost"}),
        (200, {**key, "host": "10.1.2.3:80", "origin": "http://10.1.2.3:80"}),
        (200, {**key, "host": "[::1]:80"}),
        *((403, {**key, "host": host}) for host in ("evil.example", "localhost.evil.example", "", "[")),
        *((403, {**key, "origin": origin}) for origin in ("https://evil.example", "null")),
        (403, {**key, "origin": "http://localhost:1234"}),  # another server of this machine
        *((401, {"authorization": value}) for value in ("", "Bearer", "Bearer sesamé".encode())),
        (401, {}),
    ]

    async def send():
        async with app_client(runs, "sesame") as (client, _):
            for status, headers in cases:
                response = await client.post(COMPLETIONS, json={"model": "gpt2", "max_tokens": 1}, headers=headers)
                assert response.status_code == status, headers

    asyncio.run(send())


def test_health_and_the_pages_files_need_no_token_and_every_response_has_a_content_security_policy(runs):
    paths = {"/health": 200, "/metrics": 401, "/nothing": 401, "/web/style.css": 200, "/web/..%2fserve.py": 404}

    async def get():
        async with app_client(runs, "sesame") as (client, _):
            return [await client.get(path) for path in paths]

    responses = asyncio.run(get())
    assert [response.status_code for response in responses] == list(paths.values())
    for response in responses:
        assert "script-src 'self'" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"


def test_bodies_and_concurrent_requests_and_the_memory_of_a_model_have_limits(runs, monkeypatch):
    [response], _ = ask(runs, {"model": "gpt2", "prompt": "a" * api.BODY_BYTES})
    assert response.status_code == 413
    monkeypatch.setattr(batching, "MAX_JOBS", 3)
    responses, _ = ask(runs, *[{"model": "gpt2", "max_tokens": 40}] * 5)
    assert Counter(response.status_code for response in responses) == {200: 3, 429: 2}
    assert {response.headers.get("retry-after") for response in responses} == {None, "1"}
    monkeypatch.setattr(batching, "CACHE_BYTES", 2 * 8 * 2 * 32 * 32)  # two rows
    [fits, refused], _ = ask(runs, {"model": "gpt2", "n": 2}, {"model": "gpt2", "n": 3})
    assert (fits.status_code, refused.status_code) == (200, 400)
    assert "at most 2" in refused.json()["error"]["message"]


def test_a_client_that_goes_away_while_it_sends_or_never_reads_is_disconnected(runs, monkeypatch):
    monkeypatch.setattr(security, "SEND_TIMEOUT", 0.1)
    body = json.dumps({"model": "gpt2", "max_tokens": 4096, "stream": True}).encode()
    partial = iter([{"type": "http.request", "body": body[:9], "more_body": True}, {"type": "http.disconnect"}])
    scope = {"type": "http", "method": "POST", "path": COMPLETIONS, "query_string": b""}
    scope["headers"] = [(b"host", b"localhost")]

    async def look():
        received = iter([{"type": "http.request", "body": body}])

        async def receive():
            return next(received, None) or await asyncio.sleep(100)

        async def send(message):
            if message["type"] == "http.response.body":
                await asyncio.sleep(100)

        async with app_client(runs) as (client, batcher):
            app = client._transport.app
            await app({**scope}, lambda: asyncio.sleep(0, next(partial)), lambda _message: asyncio.sleep(0))
            assert app.responses == {499: 1}
            await app(scope, receive, send)
            while batcher.running:
                await asyncio.sleep(0.01)
            assert batcher.totals["generated_tokens"] < 4096

    asyncio.run(asyncio.wait_for(look(), 60))


def test_a_thousand_malformed_requests_are_never_answered_by_500(runs):
    rng = random.Random(5)
    junk = [None, True, "x", "\ud800", "", -1, 0.5, 1e300, 10**30, float("nan"), [], {}, [[]], [None], {"a": 1}, ["\0"]]
    bodies = {
        COMPLETIONS: {"model": "gpt2", "prompt": "Hi", "max_tokens": 2, "logprobs": 1, "stream": False, "stop": ["a"]},
        CHAT: {"model": "chat", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "top_p": 0.5},
        "/v1/classify": {"model": "labels", "input": ["x"]},
        "/v1/explain": {"model": "labels", "prompt": "x"},
    }
    fields = api.CompletionFields.model_fields | api.ChatFields.model_fields
    names = sorted({field.alias or name for name, field in fields.items()} | {"tools", "input", "top_logprobs"})

    def request():
        path, body = rng.choice(list(bodies.items()))
        for _ in range(rng.randint(1, 3)):
            body = {**body, rng.choice(names): rng.choice(junk)}
        content = json.dumps(body).encode()
        if rng.random() < 0.3:  # bytes that are lost, changed or repeated
            start, end = sorted(rng.choices(range(len(content)), k=2))
            content = content[:start] + rng.randbytes(rng.randint(0, 3)) + content[end:] * rng.randint(0, 2)
        if rng.random() < 0.05:
            content = rng.choice([b"[" * 100_000, b"", b"\xff", b"0", b'{"prompt":' * 9999])
        method = rng.choice(["POST"] * 9 + ["PUT"])
        return method, rng.choice([path] * 9 + ["/v1/models/" + rng.choice(["..%2f", "%00", "é", "a/b"])]), content

    async def send():
        async with app_client(runs) as (client, batcher):
            found = Counter()
            for _ in range(20):
                some = [
                    client.request(method, path, content=content)
                    for method, path, content in (request() for _ in range(50))
                ]
                found.update(response.status_code for response in await asyncio.gather(*some))
            assert batcher.is_alive()
            return found

    found = asyncio.run(send())
    assert sum(found.values()) == 1000
    assert set(found) <= {200, 400, 404, 405}
    assert found[400] > 500


# --- classifiers and the explain page -------------------------------------------------------------------------------


def test_probabilities_are_those_of_the_classify_command(runs, capsys):
    texts = ["You have won a prize", "word " * 50]
    [several, one, generator], _ = ask(
        runs,
        {"model": "labels", "input": texts},
        {"model": "labels", "input": texts[0]},
        {"model": "gpt2", "input": texts},
        path="/v1/classify",
    )
    assert (generator.status_code, "not a classifier" in generator.text) == (400, True)
    answer = several.json()
    assert answer["labels"] == ["ham", "spam"]
    assert answer["usage"]["prompt_tokens"] == len(TOKENIZER.encode(texts[0])) + 32  # the block size
    for text, entry in zip(texts, answer["data"], strict=True):
        classify.main([f"--model={runs / 'labels'}", "--device=cpu", "--text", text])
        assert capsys.readouterr().out.split("\t")[:2] == [entry["label"], f"{max(entry['probs']):.4f}"]
        assert sum(entry["probs"]) == pytest.approx(1)
    assert one.json()["data"][0]["probs"] == pytest.approx(answer["data"][0]["probs"])


def test_the_explain_page_is_that_of_the_command_for_one_checkpoint(runs, tmp_path):
    """Made while a text is generated; it is read without a token, and has the content security policy of its own."""
    key = {"authorization": "Bearer sesame"}
    asked = {"model": "gpt2@2", "prompt": "</script>Hi"}

    async def look():
        async with app_client(runs, "sesame") as (client, _):
            text, *made = await asyncio.gather(
                client.post(COMPLETIONS, json={"model": "gpt2@2", "max_tokens": 30}, headers=key),
                *(client.post("/v1/explain", json=asked, headers=key) for _ in range(5)),
                client.post("/v1/explain", json={"model": "gpt2", "prompt": "word " * 80}, headers=key),
                client.post("/v1/explain", json={"model": "labels", "prompt": "Hi"}, headers=key),
            )
            assert [response.status_code for response in (text, *made)] == [200, *[201] * 5, 400, 400]
            assert "give at most 32" in made[5].text
            pages = [await client.get(response.json()["url"]) for response in made[:5]]
            kept = [page for page in pages if page.status_code == 200]
            assert Counter(page.status_code for page in pages) == {200: 4, 404: 1}
            assert "content-security-policy" not in kept[0].headers
            return kept[0].text

    html = asyncio.run(look())
    [checkpoint] = (runs / "gpt2" / "checkpoints").glob("*2")
    file = tmp_path / "page.html"
    explain.main([f"--model={checkpoint}", "--device=cpu", f"--prompt={asked['prompt']}", f"--output={file}"])
    assert html == file.read_text()


# --- files that change ------------------------------------------------------------------------------------------------


def test_a_run_that_is_trained_replaced_deleted_or_corrupt(tmp_path):
    runs = tmp_path
    shape = {"vocab_size": TOKENIZER.vocab_size, "block_size": 16}
    known = {"tokenizer": TOKENIZER.describe()}
    save_checkpoint(runs / "sweep" / "one", 1, random_model(**shape), **known)
    save_checkpoint(runs / os.fsdecode(b"caf\xe9"), 1, random_model(**shape), **known)  # not listed: JSON is UTF-8
    body = {"model": "sweep/one", "max_tokens": 6, "temperature": 0}

    async def look():
        async with app_client(runs) as (client, batcher):

            async def post(**changes):
                return await client.post(COMPLETIONS, json={**body, **changes})

            first = await post()
            with FileLock(runs / "sweep" / "one" / ".lock", "run"):
                [listed] = [m for m in (await client.get("/v1/models")).json()["data"] if m["id"] == "sweep/one"]
            assert (listed["state"], listed["step"]) == ("training", 1)
            assert listed["fingerprint"] == first.json()["system_fingerprint"]

            save_checkpoint(runs / "sweep" / "one", 2, random_model(noise=0.5, **shape), **known)
            second = await post()
            assert second.json()["system_fingerprint"] != first.json()["system_fingerprint"]
            assert text(second) != text(first)
            assert text(await post(model="sweep/one@1")) == text(first)

            weights = runs / "sweep" / "one" / "checkpoints" / "step_00000002" / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-9])
            corrupt = await post()
            assert corrupt.status_code == 409
            assert "corrupt" in corrupt.json()["error"]["message"]

            shutil.rmtree(runs / "sweep")
            deleted, none = await post(), await post(model=None)
            assert (deleted.status_code, none.status_code) == (404, 404)
            assert "deleted" in deleted.json()["error"]["message"]
            assert "--model" in none.json()["error"]["message"]
            assert (await client.get("/v1/models")).json()["data"] == []
            assert batcher.totals["model_loads"] == 3

    asyncio.run(look())


def test_what_is_deleted_while_it_is_read_and_a_model_that_has_diverged(tmp_path, monkeypatch):
    """A checkpoint that is being loaded, a run that is being explained or listed; the server continues to answer."""
    shape = {"vocab_size": TOKENIZER.vocab_size, "block_size": 16}
    known = {"tokenizer": TOKENIZER.describe()}
    save_checkpoint(tmp_path / "run", 1, random_model(**shape), **known)
    save_checkpoint(tmp_path / "run", 2, random_model(**shape), **known)
    diverged = random_model(**shape)
    diverged.wte.weight.data.fill_(float("nan"))
    save_checkpoint(tmp_path / "diverged", 1, diverged, **known)

    def read_deleted(path):
        if path.parent == tmp_path / "run" / "checkpoints" / "step_00000001":
            shutil.rmtree(path.parent)
        return read_weights(path)

    monkeypatch.setattr(loading, "read_weights", read_deleted)
    for name, code, words in (("run@1", 409, "deleted or replaced"), ("diverged", 400, "not finite")):
        [bad, good], _ = ask(tmp_path, {"model": name}, {"model": "run", "max_tokens": 2})
        assert (bad.status_code, good.status_code) == (code, 200)
        assert words in bad.json()["error"]["message"]

    def list_deleted(folder):
        if folder.name == "run":
            shutil.rmtree(folder)
            raise FileNotFoundError(folder)
        return all_checkpoints(folder)

    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.touch()
    monkeypatch.setattr(over_time, "read_rows", lambda path: (shutil.rmtree(path.parent), path.read_text()))
    [explained], _ = ask(tmp_path, {"model": "run", "prompt": "Hi"}, path="/v1/explain")
    assert (explained.status_code, "deleted or replaced" in explained.text) == (409, True)
    metrics.parent.mkdir()
    monkeypatch.setattr(models, "all_checkpoints", list_deleted)
    assert {model.name for model in models.Catalog(tmp_path).models()} == {"diverged", "diverged@1"}


def test_what_is_known_of_a_checkpoint_that_model_names(runs):
    [checkpoint] = (runs / "chat" / "checkpoints").iterdir()
    about = models.describe(models.Catalog(runs, str(checkpoint)).find(None))
    assert (about["id"], about["kind"], about["step"]) == (str(checkpoint), "instructions", 6)


def test_logits_that_are_not_finite_end_only_their_own_request(runs, monkeypatch):
    def spoil(model, generations):
        all_logits = compute(model, generations)
        return [logits * float("nan") if len(logits) == 2 else logits for logits in all_logits]

    compute = batching.next_logits
    monkeypatch.setattr(batching, "next_logits", spoil)
    responses, _ = ask(runs, *({"model": "gpt2", "max_tokens": 9, "n": n} for n in (1, 2, 3)))
    assert [response.status_code for response in responses] == [200, 400, 200]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_in_the_thread_that_computes(runs, monkeypatch):
    """It is answered by a 500, and the next request by a 200; when it cannot be printed, nobody waits in vain."""
    compute, failures = batching.next_logits, [RuntimeError("boom"), OSError("boom")]

    def fail(*args):
        if failures:
            raise failures.pop(0)
        return compute(*args)

    async def look():
        async with app_client(runs) as (client, _):

            async def post():
                return (await client.post(COMPLETIONS, json={"model": "gpt2", "max_tokens": 2})).status_code

            assert [await post(), await post(), await post()] == [500, 500, 200]
            failures.append(RuntimeError("boom"))
            monkeypatch.setattr(batching.traceback, "print_exception", open)  # raises
            assert [await post(), await post()] == [503, 503]
            assert (await client.get("/health")).status_code == 503

    monkeypatch.setattr(batching, "next_logits", fail)
    asyncio.run(asyncio.wait_for(look(), 60))


def test_no_name_leads_out_of_the_folder(runs):
    async def look():
        async with app_client(runs / "gpt2") as (client, _):
            for name in ("../modern", "..", str(runs / "modern"), "checkpoints/../../modern", "", "gpt2"):
                response = await client.post(COMPLETIONS, json={"model": name})
                assert response.status_code == 404, name

    asyncio.run(look())
