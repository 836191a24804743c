"""generate.py on random GPT-2s and a character model: streams, samples, conversations."""

import io
import os
import pty
import subprocess

import pytest
import torch

from eval import generate
from prepare.common.cli import ArgumentError
from prepare.tokens.tokenizer import CharTokenizer, GPT2Tokenizer
from tests.helpers.commands import one_line_error, run_command, start_command
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


@pytest.mark.parametrize("prompt", ["The answer is 🙂", ""])
def test_greedy_text_is_transformers_and_an_empty_prompt_begins_a_document(bpe, capsys, prompt):
    folder, theirs = bpe
    tokenizer = GPT2Tokenizer()
    ids = torch.tensor([tokenizer.encode(prompt) or [50256]])
    expected = theirs.generate(ids, max_new_tokens=15, do_sample=False, pad_token_id=0, eos_token_id=50256)[0].tolist()
    text = tokenizer.decode([token for token in expected if token != 50256])
    assert (
        _say(capsys, f"--model={folder}", f"--prompt={prompt}", "--max-new-tokens=15", "--temperature=0") == f"{text}\n"
    )


def test_seeds_and_samples(bpe, capsys):
    options = [f"--model={bpe[0]}", "--prompt=Hi", "--max-new-tokens=12", "--num-samples=3"]
    first, again = _say(capsys, *options, "--seed=1"), _say(capsys, *options, "--seed=1")
    assert first == again
    assert first != _say(capsys, *options, "--seed=2")
    marks = [f"--- sample {number} of 3 ---\nHi" for number in (1, 2, 3)]
    assert all(first.count(mark) == 1 for mark in marks)
    texts = [part for mark in marks for part in [first.split(mark)[1].split("--- sample")[0]]]
    assert len(set(texts)) == 3


def test_characters_decode_beyond_the_block(characters, capsys):
    printed = _say(capsys, f"--model={characters}", "--prompt=abc é", "--max-new-tokens=216", "--temperature=0.9")
    assert printed.startswith("abc é")
    assert len(printed) == 5 + 216 + 1
    assert set(printed) <= set(CHARACTERS)
    greedy = [f"--model={characters}", "--max-new-tokens=30", "--temperature=0"]
    assert _say(capsys, *greedy, "--prompt=\n") == "\n" + _say(capsys, *greedy)  # a text begins after a new line


def test_generation_ends_at_the_end_of_text(tmp_path, capsys):
    theirs = save_random_gpt2(tmp_path / "ends", n_layer=1, n_positions=64)
    with torch.no_grad():
        theirs.transformer.ln_f.bias.copy_(theirs.transformer.wte.weight[50256])
        theirs.transformer.wte.weight[50256] *= 4
        theirs.transformer.ln_f.bias *= 9
    theirs.save_pretrained(tmp_path / "ends")
    printed = _say(capsys, f"--model={tmp_path / 'ends'}", "--prompt=The end", "--num-samples=2")
    assert printed == "--- sample 1 of 2 ---\nThe end\n--- sample 2 of 2 ---\nThe end\n"


def test_a_stop_text_ends_it(characters, capsys):
    options = [f"--model={characters}", "--max-new-tokens=60", "--temperature=0.9", "--prompt=abc"]
    continued = _say(capsys, *options)[3:-1]
    stop = continued[20:22]
    assert _say(capsys, *options, f"--stop={stop}") == f"abc{continued[: continued.index(stop)]}\n"


def test_each_line_of_a_conversation_continues_the_text_so_far(characters, monkeypatch, capsys):
    """Each answer is that of the complete text so far, typed as one prompt; an empty line forgets it."""
    settings = [f"--model={characters}", "--max-new-tokens=9", "--temperature=0"]
    first = _say(capsys, *settings, "--prompt=abc")
    continued = _say(capsys, *settings, f"--prompt={first}xyz")
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\nxyz\n\nxyz\n"))
    assert _say(capsys, *settings, "--interactive") == continued + _say(capsys, *settings, "--prompt=xyz")
    monkeypatch.setattr("sys.stdin", io.StringIO("xyz\nWHAT\n"))
    generate.main([*settings, "--interactive", "--prompt=abc", "--device=cpu"])  # --prompt is the first line
    out, err = capsys.readouterr()
    assert out == continued
    assert err.count("error: ") == 1
    assert "'W'" in err  # is not in the vocabulary, and does not end the conversation


def test_on_a_terminal_the_up_key_brings_back_the_line_before(characters, monkeypatch, capsys):
    settings = [f"--model={characters}", "--interactive", "--max-new-tokens=5", "--temperature=0"]
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\nabc\n"))
    expected = _say(capsys, *settings)
    ours, theirs = pty.openpty()
    command = ("python", "eval/generate.py", *settings, "--device=cpu")
    files = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with start_command(*command, **files, TERM="dumb", INPUTRC=os.devnull) as process:
        os.close(theirs)
        shown = b""
        for turn, keys in enumerate((b"abc\n", b"\x1b[A\n", b"\x04"), 1):
            while shown.count(b"> ") < turn:
                shown += os.read(ours, 65536)  # OSError when the process is gone
            os.write(ours, keys)
    os.close(ours)
    assert process.returncode == 0
    assert expected in shown.decode().replace("\r\n", "\n").replace("> abc\n", "")


def test_text_streams_in_complete_characters(tmp_path):
    """Every token is written when it is there, and no write ends within a character."""
    save_random_gpt2(tmp_path, n_layer=1, n_positions=128)
    command = ("python", "eval/generate.py", "--model", tmp_path, "--top-k", "0", "--max-new-tokens", "120")
    with start_command(*command, stderr=subprocess.DEVNULL) as process:
        chunks = []
        while chunk := os.read(process.stdout.fileno(), 65536):
            chunks.append(chunk)
    assert process.returncode == 0
    assert len(chunks) > 5
    for chunk in chunks:
        chunk.decode("utf-8")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--temperature=-1"], "--temperature -1: out of range"),
        (["--top-k=-1"], "--top-k -1: out of range"),
        (["--top-p=1.5"], "--top-p 1.5: out of range"),
        (["--min-p=-1"], "--min-p -1: out of range"),
        (["--repetition-penalty=0"], "--repetition-penalty 0: out of range"),
        (["--max-new-tokens=0"], "--max-new-tokens"),
        (["--prompt=a", "--instruction=b"], "--instruction excludes --prompt"),
        (["--interactive", "--instruction=a"], "--interactive"),
        (["--prompt=a", "--input=b"], "--input is the text that an --instruction refers to"),
    ],
)
def test_options_out_of_range_or_that_exclude_each_other_are_errors(options, words):
    with pytest.raises(ArgumentError, match=words):
        generate.main(options)


def test_a_mistake_is_one_line(characters):
    result = run_command("python", "eval/generate.py", "--model", characters, "--prompt", "UPPER")
    assert "'U'" in one_line_error(result)
