"""generate.py on random GPT-2s and a character model: the cache, streams, samples, prompts from standard input."""

import io
import os
import pty
import subprocess
import sys

import pytest
import torch

from eval import generate
from prepare.common.cli import ArgumentError
from prepare.tokens.tokenizer import CharTokenizer, GPT2Tokenizer
from tests.helpers.commands import ROOT, one_line_error, run_command
from tests.helpers.random_gpt2 import save_random_gpt2
from tests.helpers.tiny import save_checkpoint
from train.config.pretrain import ModelConfig
from train.model.gpt import GPT

CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz.é"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """A directory with a random GPT-2 whose block has 32 tokens, and transformers' model."""
    folder = tmp_path_factory.mktemp("models") / "random"
    return folder, save_random_gpt2(folder, n_layer=2, n_positions=32)


@pytest.fixture(scope="module")
def characters(tmp_path_factory):
    """A run with a checkpoint of a random character model."""
    run = tmp_path_factory.mktemp("runs") / "characters"
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=16, vocab_size=len(CHARACTERS)))
    with torch.no_grad():
        model.wte.weight.mul_(20)
    save_checkpoint(run, 3, model, tokenizer=CharTokenizer(CHARACTERS).describe())
    return run


def _say(capsys, *options: object) -> str:
    generate.main([*map(str, options), "--device=cpu"])
    return capsys.readouterr().out


def test_greedy_text_is_the_same_with_and_without_the_cache_200_tokens_beyond_the_block(bpe):
    command = ["python", "eval/generate.py", "--model", bpe[0], "--prompt", "Once upon a time 🙂"]
    command += ["--max-new-tokens", 232, "--temperature", 0]
    cached, plain = run_command(*command), run_command(*command, "--no-cache")
    assert cached.returncode == plain.returncode == 0, cached.stderr + plain.stderr
    assert cached.stdout == plain.stdout
    assert cached.stdout.startswith("Once upon a time 🙂")
    assert len(GPT2Tokenizer().encode(cached.stdout)) > 150  # not ended early; encoding may find longer tokens


def test_greedy_text_is_transformers(bpe, capsys):
    folder, theirs = bpe
    tokenizer, prompt = GPT2Tokenizer(), "The answer is"
    ids = torch.tensor([tokenizer.encode(prompt)])
    expected = theirs.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=50256)[0].tolist()
    text = tokenizer.decode([token for token in expected if token != 50256])
    said = _say(capsys, f"--model={folder}", f"--prompt={prompt}", "--max-new-tokens=20", "--temperature=0")
    assert said == text + "\n"


def test_seeds_and_samples(bpe, capsys):
    options = [f"--model={bpe[0]}", "--prompt=Hi", "--max-new-tokens=12", "--num-samples=3"]
    first, again = _say(capsys, *options, "--seed=1"), _say(capsys, *options, "--seed=1")
    assert first == again
    assert first != _say(capsys, *options, "--seed=2")
    marks = [f"--- sample {number} of 3 ---\nHi" for number in (1, 2, 3)]
    assert all(first.count(mark) == 1 for mark in marks)
    texts = [part for mark in marks for part in [first.split(mark)[1].split("--- sample")[0]]]
    assert len(set(texts)) == 3


def test_an_empty_prompt_begins_a_document(bpe, characters, capsys):
    folder, theirs = bpe
    tokenizer = GPT2Tokenizer()
    expected = theirs.generate(torch.tensor([[50256]]), max_new_tokens=8, do_sample=False, pad_token_id=0)[0, 1:]
    said = _say(capsys, f"--model={folder}", "--max-new-tokens=8", "--temperature=0")
    assert said == tokenizer.decode([token for token in expected.tolist() if token != 50256]) + "\n"
    options = [f"--model={characters}", "--max-new-tokens=30", "--temperature=0"]
    assert _say(capsys, *options, "--prompt=\n") == "\n" + _say(capsys, *options)


def test_characters_decode_beyond_the_block(characters, capsys):
    said = _say(capsys, f"--model={characters}", "--prompt=abc é", "--max-new-tokens=216", "--temperature=0.9")
    assert said.startswith("abc é")
    assert len(said) == 5 + 216 + 1
    assert set(said) <= set(CHARACTERS)


def test_generation_ends_at_the_end_of_text(tmp_path, capsys):
    theirs = save_random_gpt2(tmp_path / "ends", n_layer=1, n_positions=64)
    with torch.no_grad():
        theirs.transformer.ln_f.bias.copy_(theirs.transformer.wte.weight[50256])
        theirs.transformer.wte.weight[50256] *= 4
        theirs.transformer.ln_f.bias *= 9
    theirs.save_pretrained(tmp_path / "ends")
    said = _say(capsys, f"--model={tmp_path / 'ends'}", "--prompt=The end", "--num-samples=2")
    assert said == "--- sample 1 of 2 ---\nThe end\n--- sample 2 of 2 ---\nThe end\n"


def test_several_prompts_go_on_as_each_does_alone(bpe, capsys):
    options = [f"--model={bpe[0]}", "--max-new-tokens=40", "--temperature=0", "--repetition-penalty=1.2"]
    alone = [_say(capsys, *options, f"--prompt={prompt}") for prompt in ("Hi", "A longer beginning, of a text")]
    both = _say(capsys, *options, "--prompt=Hi", "--prompt=A longer beginning, of a text")
    assert both == f"--- sample 1 of 2 ---\n{alone[0]}--- sample 2 of 2 ---\n{alone[1]}"


def test_stop_texts_end_it(characters, capsys):
    options = [f"--model={characters}", "--max-new-tokens=60", "--temperature=0.9", "--prompt=abc"]
    whole = _say(capsys, *options)[3:-1]
    stop = whole[20:22]
    assert _say(capsys, *options, f"--stop={stop}") == f"abc{whole[: whole.index(stop)]}\n"


def test_a_conversation_goes_on_from_what_was_said(characters, monkeypatch, capsys):
    """Each answer is that of the whole text so far, typed as one prompt; an empty line forgets it."""
    settings = [f"--model={characters}", "--max-new-tokens=9", "--temperature=0"]
    first = _say(capsys, *settings, "--prompt=abc")
    whole = _say(capsys, *settings, f"--prompt={first}xyz")
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\nxyz\n\nxyz\n"))
    said = _say(capsys, *settings, "--interactive")
    assert said == whole + _say(capsys, *settings, "--prompt=xyz")
    monkeypatch.setattr("sys.stdin", io.StringIO("xyz\n"))
    assert _say(capsys, *settings, "--interactive", "--prompt=abc") == whole  # the first line may stand in the command


def test_interactive_answers_each_line_and_survives_an_unknown_character(characters, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\nWHAT\nxyz\n"))
    generate.main([f"--model={characters}", "--interactive", "--max-new-tokens=5", "--device=cpu"])
    captured = capsys.readouterr()
    assert captured.out.startswith("abc")
    assert "\nxyz" in captured.out
    assert captured.err.count("error: ") == 1
    assert "'W'" in captured.err


def test_on_a_terminal_the_up_key_brings_back_the_line_before(characters, monkeypatch, capsys):
    settings = [f"--model={characters}", "--interactive", "--max-new-tokens=5", "--temperature=0"]
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\nabc\n"))
    expected = _say(capsys, *settings)
    ours, theirs = pty.openpty()
    command = [sys.executable, "eval/generate.py", *settings, "--device=cpu"]
    environment = {**os.environ, "PYTHONUTF8": "1", "TERM": "dumb", "INPUTRC": os.devnull}
    with subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        for turn, keys in enumerate((b"abc\n", b"\x1b[A\n", b"\x04"), 1):
            while shown.count(b"> ") < turn:
                shown += os.read(ours, 65536)  # OSError when the process is gone
            os.write(ours, keys)
    os.close(ours)
    assert process.returncode == 0
    assert expected in shown.decode().replace("\r\n", "\n").replace("> abc\n", "")


def test_text_streams_in_whole_characters(tmp_path):
    """Every token is written when it is there, and no write ends within a character."""
    save_random_gpt2(tmp_path, n_layer=1, n_positions=128)
    command = [sys.executable, "eval/generate.py", "--model", tmp_path, "--top-k", "0", "--max-new-tokens", "120"]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    with subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        chunks = []
        while chunk := os.read(process.stdout.fileno(), 65536):
            chunks.append(chunk)
    assert process.returncode == 0
    assert len(chunks) > 5
    for chunk in chunks:
        chunk.decode("utf-8")


WARPERS = ["--temperature=-1", "--temperature=nan", "--top-k=-1", "--top-p=0", "--top-p=1.5", "--min-p=2"]
LARGE = [f"--seed={2**64}", f"--max-new-tokens={10**21}"]


@pytest.mark.parametrize("option", [*WARPERS, *LARGE, "--repetition-penalty=0", "--stop=", "--seed=-1"])
def test_impossible_settings_are_argument_errors(option):
    with pytest.raises(ArgumentError, match=option.split("=")[0]):
        generate.main([option])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt=a", "--instruction=b"], "give one of them"),
        (["--interactive", "--instruction=a"], "leave out --instruction"),
        (["--prompt=a", "--input=b"], "--input is what an --instruction is about"),
    ],
)
def test_what_would_be_passed_over_is_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        generate.main(options)


@pytest.mark.parametrize("option", ["--temperature=1e-46", "--top-p=1e-300", "--repetition-penalty=0.001"])
def test_the_least_that_settings_can_be(characters, capsys, option):
    said = _say(capsys, f"--model={characters}", "--prompt=abc", "--max-new-tokens=9", option)
    if "penalty" not in option:
        assert said == _say(capsys, f"--model={characters}", "--prompt=abc", "--max-new-tokens=9", "--temperature=0")


def test_bytes_that_are_no_utf8(bpe):
    """On a terminal, whose streams are strict: typed in, and in a prompt that is printed."""
    command = [sys.executable, "eval/generate.py", "--model", bpe[0], "--max-new-tokens", "2"]
    settings = {"cwd": ROOT, "env": {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"}}
    for more, typed, shown in ((["--interactive"], b"caf\xe9\n", "caf\ufffd"), (["--prompt", b"a\xffb"], b"", "a?b")):
        done = subprocess.run([*command, *more], input=typed, capture_output=True, check=False, **settings)
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode().startswith(shown)


def test_mistakes_are_one_line(characters):
    result = run_command("python", "eval/generate.py", "--model", characters, "--prompt", "UPPER")
    assert "'U'" in one_line_error(result)
    assert "--num-samples" in one_line_error(run_command("python", "eval/generate.py", "--num-samples", "0"), status=2)


def test_a_hundred_billion_new_tokens_end_where_a_text_does(characters, capsys):
    options = [f"--model={characters}", "--prompt=abc", "--temperature=0.9"]
    text = _say(capsys, *options, "--max-new-tokens=60")
    end = text[20:22]
    assert _say(capsys, *options, "--max-new-tokens=100000000000", f"--stop={end}") == text[: text.index(end, 3)] + "\n"
