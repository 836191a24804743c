"""serve.py as a process, with OpenAI's client: texts, streams, log-probabilities, clients that go away, SIGTERM."""

import json
import signal
import socket
import time
import urllib.request

import openai
import pytest
import torch

from eval import generate, serve
from tests.helpers.commands import mistake, one_line_error, run_command, start_command
from tests.helpers.serving import TOKENIZER, make_runs
from train.weights.load_model import load_model

IDS = {"return_token_ids": True}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("runs"))


def start(runs, *options):
    """A server's process and its address."""
    process = start_command("python", "eval/serve.py", "--runs", runs, "--port=0", "--device=cpu", *options)
    line = process.stdout.readline()
    assert line.startswith("http://"), line + process.stdout.read()
    return process, line.split()[0]


@pytest.fixture(scope="module")
def address(runs):
    process, address = start(runs)
    yield address
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert "error" not in process.stdout.read()


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=100)


def wait_for_running(address, count):
    """Wait until so many requests are running."""
    end = time.monotonic() + 60
    while f"gpt2_requests_running {count}\n" not in urllib.request.urlopen(f"{address}/metrics").read().decode():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_list_of_models(client):
    models = {model.id: model for model in client.models.list()}
    steps = {"gpt2": (2, 4), "modern": (5,), "chat": (6,), "single": (6,), "labels": (7,)}
    assert set(models) == {*steps, *(f"{name}@{step}" for name in steps for step in steps[name])}
    assert models["gpt2@2"].step == 2
    assert (models["chat"].kind, models["labels"].labels) == ("instructions", ["ham", "spam"])
    assert (models["gpt2"].state, models["gpt2"].step) == ("stopped", 4)


@pytest.mark.parametrize("model", ["gpt2", "modern"])
def test_the_same_seed_gives_the_text_of_generate(client, runs, capsys, model):
    """With two samples, beyond the block size."""
    options = ["--temperature=0.8", "--top-p=0.9", "--top-k=0", "--seed=7", "--num-samples=2", "--max-new-tokens=50"]
    generate.main([f"--model={runs / model}", "--prompt=Hello", "--device=cpu", *options])
    settings = {"temperature": 0.8, "top_p": 0.9, "seed": 7, "n": 2, "max_tokens": 50}
    answer = client.completions.create(model=model, prompt="Hello", **settings)
    parts = [f"--- sample {n} of 2 ---\nHello{choice.text}\n" for n, choice in enumerate(answer.choices, 1)]
    assert capsys.readouterr().out == "".join(parts)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(TOKENIZER.encode("Hello")), 100)
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]


def test_a_stream_is_the_complete_text_in_pieces_and_stop_ends_it(client):
    settings = {"model": "gpt2", "prompt": "Hi", "seed": 3, "max_tokens": 30, "n": 2}
    complete = client.completions.create(**settings)
    chunks = list(client.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    texts = ["", ""]
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in complete.choices]
    assert len(chunks) == 61
    assert chunks[-1].usage == complete.usage

    stop = texts[0][20:23]
    ended = client.completions.create(**{**settings, "n": 1}, stop=["never this", stop])
    alone = client.completions.create(**{**settings, "n": 1}).choices[0].text
    if stop in alone:
        assert ended.choices[0].finish_reason == "stop"
    assert ended.choices[0].text == alone.partition(stop)[0]


def test_log_probabilities_are_the_models_own(client, runs):
    """Of each token and its alternatives, whatever the temperature, computed here by one pass over the text."""
    settings = {"model": "gpt2", "prompt": "Hi there", "temperature": 3.0, "max_tokens": 20, "seed": 4}
    choice = client.completions.create(**settings, logprobs=3, extra_body=IDS).choices[0]
    model = load_model(str(runs / "gpt2")).model
    tokens = choice.prompt_token_ids + choice.token_ids
    with torch.no_grad():
        expected = model(torch.tensor([tokens]))[0].log_softmax(-1)[len(choice.prompt_token_ids) - 1 : -1]
    found = torch.tensor(choice.logprobs.token_logprobs)
    torch.testing.assert_close(found, expected.gather(1, torch.tensor(choice.token_ids)[:, None])[:, 0])
    for place, (top, token) in enumerate(zip(choice.logprobs.top_logprobs, choice.logprobs.tokens, strict=True)):
        ids = choice.logprobs.top_token_ids[place]
        assert ids[:3] == expected[place].topk(3).indices.tolist()
        assert (len(ids), choice.token_ids[place] in ids) == (len(top), True)
        best = sorted(top.values(), reverse=True)[:3]
        torch.testing.assert_close(torch.tensor(best), expected[place].topk(3).values)
        assert token in top
        if not token.startswith("bytes:"):
            assert token == TOKENIZER.decode([choice.token_ids[place]])


def test_a_conversation(client, runs, capsys):
    """By the model's template: the text of generate.py's --instruction; streamed too, with log-probabilities."""
    options = ["--instruction=Name a colour.", "--top-k=0", "--seed=5", "--max-new-tokens=12", "--device=cpu"]
    generate.main([f"--model={runs / 'single'}", *options])
    expected = capsys.readouterr().out.removesuffix("\n")
    ask = {"messages": [{"role": "user", "content": "Name a colour."}], "seed": 5, "max_completion_tokens": 12}
    logprobs = {"logprobs": True, "top_logprobs": 2, "extra_body": IDS}
    answer = client.chat.completions.create(model="single", **ask, **logprobs).choices[0]
    assert answer.message.content == expected
    assert [len(token.top_logprobs) for token in answer.logprobs.content] == [2] * 12
    assert [token.token_id for token in answer.logprobs.content] == answer.token_ids
    stream = list(client.chat.completions.create(model="single", **ask, stream=True))
    assert "".join(chunk.choices[0].delta.content for chunk in stream) == expected
    assert stream[0].choices[0].delta.role == "assistant"

    turns = [{"role": role, "content": "Hi"} for role in ("system", "user", "assistant", "user")]
    assert client.chat.completions.create(model="chat", messages=turns, max_tokens=3).usage.prompt_tokens > 20


def test_what_is_not_http_is_refused(address):
    host, port = address.removeprefix("http://").split(":")
    for junk in (b"\x00\xff\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(junk)
            assert connection.recv(12) in (b"HTTP/1.1 400", b"HTTP/1.1 403")


def test_mistakes_are_the_clients_exceptions(client):
    for error, settings in {
        openai.NotFoundError: {"model": "nothing"},
        openai.BadRequestError: {"model": "gpt2", "frequency_penalty": 1},
    }.items():
        with pytest.raises(error):
            client.completions.create(prompt="Hi", **settings)


def test_a_client_that_goes_away_stops_its_generation_and_a_slow_one_holds_nobody(client, address):
    """The slow one reads nothing, so that the server's buffers fill up; the others are answered meanwhile."""
    host, port = address.removeprefix("http://").split(":")
    for stream in (True, False):
        fields = {"model": "gpt2", "prompt": "Hi", "max_tokens": 4096, "n": 2, "stream": stream, "logprobs": 20}
        body = json.dumps(fields | {"temperature": 0}).encode()  # greedy: it does not end by itself
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            slow.connect((host, int(port)))
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
            slow.sendall(head.encode() + body)
            wait_for_running(address, 1)
            for _ in range(3):
                assert client.completions.create(model="gpt2", prompt="Hi", max_tokens=4).usage.completion_tokens == 4
            wait_for_running(address, 1)
        wait_for_running(address, 0)
    assert b'status="500"' not in urllib.request.urlopen(f"{address}/metrics").read()


def test_sigterm_ends_it_within_seconds_and_open_streams_are_closed(runs):
    process, address = start(runs, "--model", runs / "gpt2", "--token=sesame")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="sesame", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="guess").models.list()
    assert client.models.list().data[0].id == str(runs / "gpt2")  # what --model names
    stream = client.completions.create(model="gpt2", prompt="Hi", max_tokens=4096, temperature=0, stream=True)
    next(stream)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(openai.APIError, match="shutting down"):
        for _ in stream:
            pass
    process.wait(20)
    assert "Traceback" not in process.stdout.read()


def test_an_address_that_others_reach_needs_a_token(runs):
    status, message = mistake(serve.main, "--runs", runs, "--host=0.0.0.0", "--port=0")
    assert status == 2
    assert "--token" in message
    assert "ASCII" in mistake(serve.main, "--runs", runs, "--port=0", "--token=sésame")[1]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run_command("python", "eval/serve.py", "--port", taken.getsockname()[1])
    assert "choose" in one_line_error(result)
