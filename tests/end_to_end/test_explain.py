"""The explain page in a real browser: what it shows is what Python computes, and no prompt can run code in it."""

import base64
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page, expect

from eval import explain
from eval.generation.sampling import restrict_logits
from eval.views.page import VIEWS
from prepare import fineweb, train_tokenizer
from prepare.sources.plays import PLAYS, read_play
from prepare.tokens.tokenizer import CharTokenizer
from tests.helpers.browser import open_browser, open_page
from tests.helpers.commands import ROOT, mistake, run_command
from tests.helpers.random_gpt2 import save_random_gpt2
from tests.helpers.tiny import make_run, settings
from tests.helpers.vocabulary import small_tokenizer

PROMPT = "HERMIA:\nO cross! too high"
HOSTILE = "</script><script>window.hacked=1</script>\"'\0🙂\nنص"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a modern model in a vocabulary of its own, with three checkpoints."""
    folder = tmp_path_factory.mktemp("explain")
    (folder / "play.txt").write_text(read_play(PLAYS[0])[:30_000])
    text = ["--input", str(folder / "play.txt"), "--separator", "\n\n"]
    train_tokenizer.main([*text, "--vocab-size", "400", "--out", str(folder / "tokenizer")])
    fineweb.main([*text, "--tokenizer", str(folder / "tokenizer"), "--out", str(folder / "shards")])
    keys = {f"data__{split}": f"{folder}/shards/*_{split}_*.bin" for split in ("train", "val")}
    keys |= {"checkpoint__every": 4, "checkpoint__keep_every": 4, "optim__optimizer": "muon", "log__every": 1}
    keys |= {"model__architecture": "modern", "model__vocab_size": 0, "train__max_steps": 12, "eval__every": 6}
    trained = run_command("python", "train/train_gpt2.py", *settings(folder, folder / "run", **keys))
    assert trained.returncode == 0, trained.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def file(run: Path) -> Path:
    """The page of the run, by the command."""
    file = run / "explain.html"
    made = run_command(
        "python", "eval/explain.py", "--model", run, "--device=cpu", "--prompt", PROMPT, "--output", file
    )
    assert made.returncode == 0, made.stderr
    assert re.fullmatch(rf"{file}: run at step 12, \d+ tokens, checkpoints: 3, \d\.\d MB, \d+ s\n", made.stdout)
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    with open_page(browser, file.as_uri()) as page:
        yield page


def read_data(file: Path) -> dict:
    """The data of a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', file.read_text())[1])


def unpack(packed: dict) -> torch.Tensor:
    content = np.frombuffer(base64.b64decode(packed["data"]), packed["dtype"])
    return torch.tensor(content.astype(np.float32)).view(packed["shape"])


def read_bars(page: Page) -> dict[int, float]:
    """The shown probabilities, by token."""
    rows = page.locator("#next_token tbody tr").evaluate_all(
        "rows => rows.map(row => [row.dataset.token, row.querySelector('.probability').textContent])"
    )
    return {int(token): float(shown.rstrip("%")) / 100 for token, shown in rows}


def test_every_view_names_code_that_exists() -> None:
    for view in (view.describe() for view in VIEWS):
        assert re.search(rf"^def {view['function']}\(", (ROOT / view["file"]).read_text(), re.MULTILINE)
        assert (ROOT / "eval/web/views" / f"{view['key']}.js").is_file()


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_every_view_opens_at_a_phones_width_and_a_desktops(
    browser: Browser, file: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    with open_page(browser, file.as_uri(), viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.add_style_tag(content="#bar { position: static }")  # which would lie over the pictures
        for view in VIEWS:
            section = page.locator(f"#{view.compute.__name__}")
            expect(section.get_by_role("heading", level=2)).to_contain_text(view.title)
            expect(section.locator(".body")).not_to_be_empty()
            section.screenshot(path=tmp_path / f"{view.compute.__name__}.png")
        print(f"screenshots: {tmp_path}")


@pytest.mark.parametrize(
    ("sliders", "cuts"),
    [
        ({}, (1.0, None, None, None)),
        ({"Temperature": "0.7", "Top-k": "5"}, (0.7, 5, None, None)),
        ({"Temperature": "1.5", "Top-p": "0.3"}, (1.5, None, 0.3, None)),
        ({"Top-k": "20", "Top-p": "0.9", "Min-p": "0.4"}, (1.0, 20, 0.9, 0.4)),
        ({"Temperature": "0"}, None),
    ],
)
def test_sliders_move_the_bars_to_pythons_probabilities(page: Page, file: Path, sliders: dict, cuts: tuple) -> None:
    for name, value in sliders.items():
        page.get_by_label(name).fill(value)
    for checkpoint, position in ((2, 3), (0, 5)):
        page.get_by_label("Checkpoint").fill(str(checkpoint))
        page.locator("#bar .choices label").nth(position).click()
        logits = unpack(read_data(file)["checkpoints"][checkpoint]["views"]["next_token"]["logits"])[position]
        if cuts is None:
            expected = torch.nn.functional.one_hot(logits.argmax(), len(logits)).float()
        else:
            temperature, *rest = cuts
            expected = restrict_logits(logits[None] / temperature, *rest).softmax(-1)[0]
        bars = read_bars(page)
        assert bars == pytest.approx({token: float(expected[token]) for token in bars}, abs=6e-5)
        assert set(logits.topk(5).indices.tolist()) <= set(bars)
        left = int((expected > 0).sum())
        expect(page.locator("#next_token .summary")).to_contain_text(f"{left} of {len(logits)} tokens can be drawn")


def test_the_keyboard_moves_along_positions_checkpoints_and_tokens(page: Page) -> None:
    page.locator("#bar input[type=radio]:checked").focus()
    page.keyboard.press("ArrowLeft")
    tokens = page.locator("#bar input[type=radio]")
    expect(tokens.nth(tokens.count() - 2)).to_be_checked()
    expect(page.locator("#next_token caption")).to_contain_text(f"(position {tokens.count() - 1})")
    page.keyboard.press("Tab")
    expect(page.locator("#bar output")).to_have_text("step 12, 6,144 tokens")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#bar output")).to_have_text("step 8, 4,096 tokens")
    button = page.locator("#next_token tbody button").nth(4)
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#next_token tbody button").nth(4)).to_have_attribute("aria-pressed", "true")


def test_attentions_sum_is_shown_for_the_cell_under_the_mouse_or_chosen_by_keys(page: Page, file: Path) -> None:
    attention = read_data(file)["checkpoints"][-1]["views"]["attention"]
    scores, weights = unpack(attention["scores"])[1, 1], unpack(attention["weights"])[1, 1]
    section = page.locator("#attention")
    section.locator(".overview [aria-selected]").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect(section.get_by_role("heading", name="Layer 2, head 2")).to_be_visible()

    def check_sum(query: int, key: int) -> None:
        expect(section.locator(".sum h3")).to_contain_text(re.compile(rf"\(position {query}\).*\(position {key}\)"))
        shown = section.locator(".formula").all_inner_texts()
        numbers = {line.split()[0]: float(line.split()[-1].replace("\u2212", "-").rstrip("%")) for line in shown}
        row = scores[query - 1, :query]
        assert numbers["score"] == pytest.approx(float(row[key - 1]), abs=6e-4)
        assert numbers["denominator"] == pytest.approx(float((row - row.max()).exp().sum()), abs=6e-4)
        assert numbers["weight"] / 100 == pytest.approx(float(row.softmax(0)[key - 1]), abs=6e-5)
        assert float(weights[query - 1, key - 1]) == pytest.approx(float(row.softmax(0)[key - 1]), abs=1e-6)

    cell = section.locator(".large tbody tr").nth(5).locator("td")
    cell.nth(2).click()
    check_sum(6, 3)
    expect(page.locator("#bar input[type=radio]").nth(5)).to_be_checked()
    cell.nth(4).hover()
    check_sum(6, 5)
    page.mouse.move(0, 0)
    check_sum(6, 3)
    page.keyboard.press("ArrowUp")
    check_sum(5, 3)
    page.keyboard.press("End")
    expect(section.locator(".steps")).to_contain_text("its weight 0")


def test_the_lens_ends_in_the_models_output_and_contributions_add_up_to_its_logit(page: Page, file: Path) -> None:
    """The logit is the next token's view's, which is soft-capped."""
    next_token = read_data(file)["checkpoints"][-1]["views"]["next_token"]
    logits = unpack(next_token["logits"])[4]
    section = page.locator("#layers")
    section.locator(".lens tbody tr").nth(5).locator("td").last.click()
    page.keyboard.press("ArrowUp")  # wins over the mouse, which lies still
    expect(section.locator(".top")).to_contain_text("(position 5), layer 2 of 2, the output:")
    shown = float(section.locator(".top td:last-child").first.inner_text().rstrip("%")) / 100
    assert shown == pytest.approx(float(logits.softmax(0).max()), abs=6e-5)
    tokens = section.locator(".choices input")
    tokens.first.check()
    tokens.first.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    section.get_by_role("button", name="layer 2: attention").press("Enter")
    expect(section.locator(".nested")).to_have_count(2)  # of layer 1 alone
    adds = section.locator(".contributions tbody tr:not(.nested) td:nth-child(2)").all_inner_texts()
    total = sum(float(text.replace("\u2212", "-")) for text in adds)
    assert 15 * math.tanh(total / 15) == pytest.approx(float(logits.sort(descending=True).values[1]), abs=5e-3)


def test_a_part_that_is_chosen_by_mouse_or_keyboard_is_switched_off(page: Page, file: Path) -> None:
    data = read_data(file)["checkpoints"][2]["views"]["switch_off"]
    section, position = page.locator("#switch_off"), data["whole"]["loss"]["shape"][0]
    cells = section.get_by_role("grid").first.get_by_role("row")
    cells.nth(2).get_by_role("gridcell").nth(1).click()  # layer 2, head 2
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    expect(section.locator("h3[aria-live]")).to_have_text("Without layer 1, all its attention")
    old, new = (unpack(data[part]["loss"])[place] for part, place in (("whole", ...), ("without", (0, 2))))
    change = (new.mean() - old.mean()).item()
    text = cells.nth(1).get_by_role("gridcell").nth(2).text_content()
    assert float(text.replace("\u2212", "-")) == pytest.approx(change, abs=0.0051)
    expect(section.locator(".summary").first).to_contain_text(f"{old.mean():.3f} to {new.mean():.3f} nats")
    for table, probabilities in enumerate((data["whole"]["probabilities"], data["without"]["probabilities"])):
        shown = section.locator("table.likeliest").nth(table).locator("td:last-child").all_text_contents()
        expected = unpack(probabilities)[position] if table == 0 else unpack(probabilities)[0, 2, position]
        assert [float(text.rstrip("%")) / 100 for text in shown] == pytest.approx(expected.tolist(), abs=6e-5)
    token = section.locator(".losses button").nth(2)
    assert token.locator("span").text_content() == f"{old[2]:.2f} → {new[2]:.2f}"
    token.press("Enter")
    expect(token).to_be_focused()
    expect(section).to_contain_text("(position 3)")


def test_the_losses_of_the_passage_and_of_a_step_of_learning_are_pythons(page: Page, file: Path) -> None:
    views = read_data(file)["checkpoints"][2]["views"]
    section, data = page.locator("#token_loss"), views["token_loss"]
    losses, unigram = unpack(data["passage"]["loss"]), unpack(data["passage"]["unigram"])
    section.get_by_role("option").nth(4).click()
    page.keyboard.press("ArrowRight")
    expect(section.get_by_role("option").nth(5)).to_be_focused()
    expect(section.locator(".detail")).to_contain_text(f"loss {losses[5]:.2f} nats")
    expect(section.locator(".detail")).to_contain_text(f"({unigram[5]:.2f} nats)")
    expect(section).to_contain_text(f"at {int((losses < unigram).sum())} of these 32 tokens")
    section.get_by_text("compared").click()
    blue = "rgba(38, 112, 201" if losses[5] < unigram[5] else "rgba(226, 114, 18"
    assert section.get_by_role("option").nth(5).evaluate("e => getComputedStyle(e).backgroundColor").startswith(blue)

    section, data = page.locator("#learning_step"), views["learning_step"]
    expect(section).to_contain_text("The run ends after step 12")
    expect(section).to_contain_text(f"{data['after']:.4f} nats")
    assert section.locator("thead").first.locator("th").all_text_contents()[-2:] == [
        "out of the MLPmlp.c_proj",
        "biases and norms",
    ]
    shown = section.locator("table").first.locator("td").all_text_contents()
    columns = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "biases and norms"]
    order = [part for part in data["matrices"] if part["layer"] is not None]
    order.sort(key=lambda part: (part["layer"], columns.index(part["name"])))
    order += [part for part in data["matrices"] if part["layer"] is None]  # embedding, final norm and head
    assert list(map(float, shown)) == pytest.approx([part["gradient"] for part in order], rel=0.06)
    page.get_by_label("Checkpoint").fill("1")
    expect(section).to_contain_text("Step 9 of the run")


def test_a_checkpoint_is_chosen_by_its_sample_too(page: Page, file: Path) -> None:
    samples = [checkpoint["views"]["over_time"]["sample"] for checkpoint in read_data(file)["checkpoints"]]
    assert page.locator("#over_time li p").all_text_contents() == [sample.strip("\n") for sample in samples]
    page.get_by_role("button", name="step 4", exact=True).click()
    expect(page.locator("#bar output")).to_have_text("step 4, 2,048 tokens")
    assert page.locator("#bar .slider input").input_value() == "0"


@pytest.mark.parametrize("level", ["bpe", "char"])
def test_a_hostile_prompt_is_shown_and_never_executed(browser: Browser, tmp_path: Path, level: str) -> None:
    """Of a GPT-2 this time, with one checkpoint, on a phone, where the prompt and the map of a head are scrolled."""
    tokenizer = small_tokenizer() if level == "bpe" else CharTokenizer(HOSTILE)
    run = make_run(tmp_path / "run", tokenizer.describe(), vocab_size=300, block_size=64)
    file = tmp_path / "page.html"
    explain.main([f"--model={run}", f"--prompt={HOSTILE}", f"--output={file}", "--device=cpu"])
    assert "window.hacked" not in file.read_text().replace("\\u003cscript>window.hacked", "")
    with open_page(browser, file.as_uri(), viewport={"width": 360, "height": 800}) as page:
        assert page.evaluate("typeof window.hacked") == "undefined"
        parts = {"bpe": ".choices", "char": ".box"}[level]
        shown = "".join(page.locator(f"#text_to_tokens {parts} .token").all_text_contents())
        assert shown == HOSTILE.replace("\0", "␀").replace("\n", "↵")
        assert page.get_by_label("Checkpoint").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        for selected in ("#bar input:checked + span", ".large [aria-selected]"):
            left, right, end = page.locator(selected).evaluate(
                """node => {
                    const scrolled = node.closest(".prompt, .scroll").getBoundingClientRect();
                    const { left, right } = node.getBoundingClientRect();
                    return [left - scrolled.left, right - scrolled.left, scrolled.width];
                }"""
            )
            assert -1 < left < right < end + 1, selected


def test_a_hugging_face_model(browser: Browser, tmp_path: Path) -> None:
    save_random_gpt2(tmp_path / "gpt2", n_positions=32)
    file = tmp_path / "page.html"
    explain.main([f"--model={tmp_path}/gpt2", "--prompt=The answer is", f"--output={file}", "--device=cpu"])
    with open_page(browser, file.as_uri()) as page:
        expect(page.locator("#bar .token")).to_have_text(["The", "␣answer", "␣is"])
        for view in ("token_loss", "learning_step"):  # not a run: no held-out text, no optimizer state
            expect(page.locator(f"#{view} .unavailable")).not_to_be_empty()
            expect(page.locator(f"#{view} .body")).to_be_hidden()
        for view, reason in {"token_loss": "--data", "learning_step": "a checkpoint of a run"}.items():
            expect(page.locator(f"#{view} .unavailable")).to_contain_text(reason)


def test_a_prompt_that_is_empty_or_too_long_is_refused(run: Path, tmp_path: Path) -> None:
    for prompt, remedy in (("a b " * 40, "give at most 32"), ("", "give a text")):
        status, message = mistake(explain.main, f"--model={run}", f"--prompt={prompt}", f"--output={tmp_path}/page")
        assert (status, remedy in message) == (2, True), message
