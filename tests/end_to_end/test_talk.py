"""The page of eval/serve.py in a real browser: what it shows is what the models generate, and no text runs as code."""

import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import uvicorn
from playwright.sync_api import Browser, Locator, Page, expect

from eval import generate
from eval.serving.api import API
from eval.serving.batching import Batcher
from eval.serving.models import Catalog
from prepare.tokens.tokenizer import CharTokenizer
from tests.helpers.browser import open_browser, open_page
from tests.helpers.serving import TOKENIZER, make_runs
from tests.helpers.tiny import random_model, save_checkpoint
from train.config.pretrain import ModelConfig
from train.model.build import build_model

HOSTILE = "<svg onload=hi()>"
RUN = '"><script>window.hacked=1<|script>'  # a folder's name


@dataclass
class Server:
    """A server in this process; the runs, and the thread that computes."""

    address: str
    runs: Path
    batcher: Batcher
    stop: Callable[[], None]

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        return httpx.post(self.address + path, json=body, timeout=60).json()


@contextmanager
def serve(runs: Path, batcher: Batcher, token: str | None = None) -> Iterator[Server]:
    app = API(Catalog(runs), batcher, "127.0.0.1", token).app
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))

        def stop() -> None:
            server.should_exit = server.force_exit = True
            thread.join()

        thread.start()
        try:
            yield Server(f"http://127.0.0.1:{listener.getsockname()[1]}", runs, batcher, stop)
        finally:
            stop()


def save_hostile_run(run: Path) -> None:
    """A run of a character model that was trained to write an element that runs code."""
    tokenizer = CharTokenizer("".join(sorted(set(HOSTILE))))
    ids = torch.tensor(tokenizer.encode(HOSTILE * 4))
    torch.manual_seed(0)
    model = build_model(ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=40, vocab_size=tokenizer.vocab_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    starts = torch.arange(len(HOSTILE))[:, None] + torch.arange(41)
    batch = ids[starts]
    for _ in range(60):
        optimizer.zero_grad()
        model(batch[:, :-1], batch[:, 1:]).backward()
        optimizer.step()
    save_checkpoint(run, 9, model.eval(), tokenizer=tokenizer.describe())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    runs = make_runs(tmp_path_factory.mktemp("runs"))
    save_hostile_run(runs / RUN)
    batcher = Batcher(torch.device("cpu"))
    batcher.start()
    with serve(runs, batcher) as server:
        yield server
    batcher.close()
    batcher.join(20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    with open_page(browser, f"{server.address}/") as page:
        yield page


def finished(answer: Locator) -> None:
    expect(answer.get_by_role("status")).to_have_text(re.compile(r"tokens, seed"))


def ask(page: Page, model: str, prompt: str, length: int = 30) -> Locator:
    """Choose a model, and let it continue the prompt. Returns the generated text, when it is complete."""
    page.get_by_role("combobox", name="Model").select_option(model)
    page.get_by_label("Length").fill(str(length))
    page.locator("#prompt").fill(prompt)
    page.keyboard.press("Control+Enter")
    finished(page.get_by_role("article"))
    return page.get_by_role("listbox").last


def look(page: Page) -> None:
    """Let the page ask for the list of models, as it does every few seconds."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def test_the_text_of_a_seed_is_that_of_generate(page: Page, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    page.get_by_label("Temperature").fill("0.8")
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_text("More settings").click()
    page.get_by_label("Top-k").fill("20")
    page.get_by_label("Repetition penalty").fill("1.3")
    text = ask(page, "gpt2", "Hello", 40)
    options = ["--temperature=0.8", "--seed=7", "--top-k=20", "--repetition-penalty=1.3", "--max-new-tokens=40"]
    generate.main([f"--model={server.runs / 'gpt2'}", "--prompt=Hello", "--device=cpu", *options])
    assert "Hello" + text.text_content() + "\n" == capsys.readouterr().out

    address = page.url
    page.goto("about:blank")
    page.goto(address)  # which holds the settings
    page.get_by_role("button", name="Generate").click()
    finished(page.get_by_role("article"))
    generate.main([f"--model={server.runs / 'gpt2'}", "--prompt=Hello", "--device=cpu", *options])
    assert "Hello" + page.get_by_role("listbox").text_content() + "\n" == capsys.readouterr().out


def test_a_models_state_losses_and_curves(page: Page, server: Server) -> None:
    plt.imsave(server.runs / "gpt2" / "loss.png", np.zeros((20, 30)))
    (server.runs / "gpt2" / "metrics.jsonl").write_text('{"step": 2, "kind": "train", "loss": 4.25}\n')
    look(page)
    page.get_by_role("combobox", name="Model").select_option("gpt2")
    page.get_by_role("combobox", name="Checkpoint").select_option("step 2")
    facts = "state.*stopped.*step.*2.*training loss.*4.2500.*context.*32 tokens"
    expect(page.locator(".chooser dl")).to_have_text(re.compile(facts, re.DOTALL))
    page.get_by_text("Loss curves").click()
    expect(page.get_by_role("img")).to_have_js_property("naturalWidth", 30)


def test_alternatives_by_mouse_and_keyboard_and_a_text_that_continues_from_one(page: Page, server: Server) -> None:
    text = ask(page, "gpt2", "Hello")
    settings = {"model": "gpt2", "prompt": "Hello", "seed": 1337, "top_k": 50, "max_tokens": 30}
    settings |= {"logprobs": 5, "return_token_ids": True}
    choice = server.post("/v1/completions", **settings)["choices"][0]
    tokens, card = text.get_by_role("option"), page.get_by_role("group", name="Alternatives")
    tokens.nth(4).hover()
    expect(card).to_be_visible()
    page.mouse.move(0, 0)
    expect(card).to_be_hidden()

    tokens.nth(0).focus()
    for key in ("ArrowRight",) * 4:
        page.keyboard.press(key)
    shown = [float(each.rstrip("%")) / 100 for each in card.locator("td:last-child").all_text_contents()]
    tops = sorted(choice["logprobs"]["top_logprobs"][4].values(), reverse=True)
    assert shown == pytest.approx(torch.tensor(tops).exp().tolist(), abs=6e-5)
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    expect(card.get_by_role("button").nth(1)).to_be_focused()
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()
    expect(tokens.nth(4)).to_be_focused()

    tokens.nth(4).click()
    other = next(top for top in choice["logprobs"]["top_token_ids"][4] if top != choice["token_ids"][4])
    place = choice["logprobs"]["top_token_ids"][4].index(other)
    card.get_by_role("button").nth(place).click()
    finished(page.get_by_role("article"))
    ids = [*choice["prompt_token_ids"], *choice["token_ids"][:4], other]
    after = server.post("/v1/completions", **{**settings, "prompt": ids})["choices"][0]
    expect(tokens).to_have_count(35)
    assert "".join(tokens.all_text_contents()[5:]) == after["text"]


def test_stop_ends_the_generation(page: Page, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    step = server.batcher._step
    monkeypatch.setattr(server.batcher, "_step", lambda: (time.sleep(0.1), step()))
    page.get_by_role("combobox", name="Model").select_option("gpt2")
    page.get_by_label("Length").fill("1000")
    for end in (lambda: page.get_by_role("button", name="Stop").click(), lambda: page.keyboard.press("Escape")):
        page.get_by_role("button", name="Generate").click()
        page.get_by_role("listbox").get_by_role("option").nth(1).wait_for(state="attached")
        end()
        expect(page.get_by_role("article").get_by_role("status")).to_have_text("Stopped.")
        expect(page.get_by_role("button", name="Stop")).to_be_disabled()
        assert page.get_by_role("listbox").get_by_role("option").count() < 1000
    deadline = time.monotonic() + 60
    while server.batcher.running and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not server.batcher.running


def test_two_models_side_by_side_and_on_a_phone(page: Page, server: Server) -> None:
    page.get_by_role("combobox", name="Model").select_option("gpt2")
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("combobox", name="Model").nth(1).select_option("modern")
    page.get_by_role("combobox", name="Checkpoint").nth(0).select_option("gpt2@2")
    page.get_by_label("Length").fill("20")
    page.locator("#prompt").fill("Hi")
    page.keyboard.press("Control+Enter")
    for place, model in enumerate(("gpt2@2", "modern")):
        answer = page.get_by_role("article").nth(place)
        finished(answer)
        expected = server.post("/v1/completions", model=model, prompt="Hi", seed=1337, top_k=50, max_tokens=20)
        assert answer.get_by_role("listbox").text_content() == expected["choices"][0]["text"]
    page.set_viewport_size({"width": 360, "height": 700})
    page.get_by_role("listbox").get_by_role("option").nth(3).hover()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("article")).to_have_count(1)


def test_a_conversation(page: Page, server: Server) -> None:
    messages, settings = [], {"seed": 1337, "top_k": 50, "max_tokens": 12}
    for question in ("Hi", "And then?"):
        text = ask(page, "chat", question, 12).text_content()
        messages.append({"role": "user", "content": question})
        answer = server.post("/v1/chat/completions", model="chat", messages=messages, **settings)
        assert text == answer["choices"][0]["message"]["content"]
        messages.append({"role": "assistant", "content": text})
    expect(page.locator(".question")).to_have_text(["Hi", "And then?"])
    ask(page, "single", "Hi", 12)  # which sees single instructions
    ask(page, "single", "And then?", 12)
    expect(page.locator(".question")).to_have_text(["And then?"])


def test_a_classifier_answers_with_probabilities(page: Page, server: Server) -> None:
    page.get_by_role("combobox", name="Model").select_option("labels")
    expect(page.get_by_label("Temperature")).to_be_hidden()
    page.get_by_label("Text", exact=True).fill("You have won")
    page.get_by_role("button", name="Classify").click()
    [expected] = server.post("/v1/classify", model="labels", input="You have won")["data"]
    answer = page.get_by_role("article")
    expect(answer.get_by_role("heading", level=3)).to_have_text(expected["label"])
    rows = dict(row.inner_text().split() for row in answer.get_by_role("row").all())
    shown = [float(rows[label].rstrip("%")) / 100 for label in ("ham", "spam")]
    assert shown == pytest.approx(expected["probs"], abs=6e-5)


def test_explain_opens_the_page_of_the_checkpoint_and_the_prompt(browser: Browser, server: Server) -> None:
    with open_page(browser, f"{server.address}/", expected="400") as page:
        page.get_by_role("combobox", name="Model").select_option("gpt2")
        page.get_by_role("combobox", name="Checkpoint").select_option("step 2")
        page.locator("#prompt").fill("The brown")
        with page.expect_popup() as opened:
            page.get_by_role("button", name="Explain").click()
        explained = opened.value
        expect(explained).to_have_url(re.compile(r"/explain/\w{32}$"))
        explained.locator("html[data-ready]").wait_for()
        assert "".join(explained.locator("#bar .token").all_text_contents()) == "The␣brown"
        expect(explained.locator("#next_token .body")).not_to_be_empty()
        assert explained.evaluate("window.opener") is None

        page.locator("#prompt").fill("")
        with page.expect_popup() as opened:
            page.get_by_role("button", name="Explain").click()
        expect(page.get_by_role("alert")).to_contain_text("prompt")
        if not opened.value.is_closed():
            opened.value.wait_for_event("close")


def test_a_hostile_sample_and_name_are_shown_and_never_executed(page: Page) -> None:
    page.get_by_label("Temperature").fill("0")
    text = ask(page, RUN, HOSTILE, len(HOSTILE))
    assert text.text_content() == HOSTILE
    expect(page.locator(".given")).to_have_text(HOSTILE)
    expect(page.get_by_role("article").get_by_role("heading")).to_have_text(f"{RUN} at step 9")
    text.get_by_role("option").first.hover()
    expect(page.get_by_role("group", name="Alternatives")).to_contain_text("<")
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert page.locator("svg, main script").count() == 0


def test_a_run_that_is_replaced_and_deleted_while_it_is_looked_at(browser: Browser, server: Server) -> None:
    run = server.runs / "gone"
    shutil.copytree(server.runs / "modern", run)
    with open_page(browser, f"{server.address}/", expected="404") as page:
        text = ask(page, "gone", "Hi", 5)
        model = random_model(vocab_size=TOKENIZER.vocab_size, block_size=32)
        save_checkpoint(run, 8, model, tokenizer=TOKENIZER.describe())
        look(page)
        expect(page.get_by_role("alert")).to_contain_text("step 8")
        shutil.rmtree(run)
        look(page)
        expect(page.get_by_role("alert")).to_contain_text("gone is no longer there")
        expect(text).not_to_be_empty()
        page.keyboard.press("Control+Enter")
        expect(page.get_by_role("alert")).to_contain_text("there is no model 'gone'")


def test_a_page_without_a_model_waits_for_the_first(browser: Browser, server: Server, tmp_path: Path) -> None:
    with serve(tmp_path, server.batcher) as empty, open_page(browser, f"{empty.address}/") as page:
        expect(page.get_by_role("alert")).to_contain_text("make quickstart")
        expect(page.get_by_role("button")).to_have_count(0)
        shutil.copytree(server.runs / "modern", tmp_path / "first")
        look(page)
        assert ask(page, "first", "Hi", 5).text_content()
        expect(page.get_by_role("alert")).to_have_count(0)


def test_a_token_is_asked_for_and_a_server_that_ends_is_told(browser: Browser, server: Server) -> None:
    with (
        serve(server.runs, server.batcher, token="sesame") as guarded,
        open_page(browser, f"{guarded.address}/", expected="401|net::ERR") as page,
    ):
        for token in ("guess", "sesame"):
            page.get_by_label("Token", exact=True).fill(token)
            page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_be_hidden()
        assert ask(page, "gpt2", "Hi", 5).text_content()
        page.reload()
        assert ask(page, "gpt2", "Hi", 5).text_content()  # kept
        guarded.stop()
        look(page)
        expect(page.get_by_role("alert").first).to_contain_text("does not answer")
