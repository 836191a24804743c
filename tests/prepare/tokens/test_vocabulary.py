"""Trained vocabularies: their tokens are those of Hugging Face's tokenizers, whichever engine encodes."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from prepare.common.cli import UserError
from prepare.sources.plays import PLAYS, read_play
from prepare.tokens.tokenizer import BPETokenizer, GPT2Tokenizer, load_tokenizer, open_tokenizer
from prepare.tokens.vocabulary import gpt2_merges, token_ids, write_tokenizer
from prepare.train_tokenizer import train
from tests.helpers.vocabulary import HOSTILE, gpt2_vocabulary_files, random_strings, small_merges, small_tokenizer
from tests.programs.exhaustive import adversarial, scalars


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("small")
    write_tokenizer(path, small_merges())
    return path


def check(merges: str, reference: tokenizers.Tokenizer, texts: list[str]) -> None:
    """Check that both engines give the tokens of `tokenizers`, and that they decode to the texts."""
    array = pa.array(texts, pa.large_string())
    eot = 256 + merges.count("\n") + 1
    expected = [[eot, *encoding.ids] for encoding in reference.encode_batch_fast(texts)]
    for engine in ("gigatoken", "tiktoken"):
        tokenizer = BPETokenizer(merges, engine)
        encoded = tokenizer.encode_texts(array)
        documents = np.split(encoded.tokens, encoded.starts[1:])
        assert [document.tolist() for document in documents] == expected
        assert [tokenizer.decode(document[1:]) for document in documents] == texts


@pytest.fixture(scope="module")
def reference(folder) -> tokenizers.Tokenizer:
    """tokenizers with the small vocabulary; <|endoftext|> in a text is text, as in a document."""
    return _text_only(folder)


def _text_only(folder: Path) -> tokenizers.Tokenizer:
    found = json.loads((folder / "tokenizer.json").read_text())
    return tokenizers.Tokenizer.from_str(json.dumps(found | {"added_tokens": []}))


def test_hostile_strings(reference):
    texts = [text for text in HOSTILE if text] + [text for text in random_strings(2000, seed=3) if text]
    check(small_merges(), reference, [*texts, *filter(None, adversarial(2000, seed=4))])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_any_text(reference, texts):
    check(small_merges(), reference, texts)


@pytest.mark.slow
def test_all_scripts_and_some_plays(tmp_path):
    plays = [read_play(name) for name in PLAYS[:5]]
    merges = train([play.encode() for play in plays], 2000)
    write_tokenizer(tmp_path, merges)
    every = "".join(f"a{chr(code)}'s " for code in scalars() if code < 0x40000)  # planes above hold no language
    check(
        merges,
        _text_only(tmp_path),
        [*plays, *(every[start : start + 10_000] for start in range(0, len(every), 10_000))],
    )


def test_a_vocabulary_without_merges(tmp_path):
    write_tokenizer(tmp_path, "")
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eot) == (257, 256)
    assert tokenizer.decode(tokenizer.encode("naïve")) == "naïve"
    assert load_tokenizer(json.loads(json.dumps(tokenizer.describe()))).vocab_size == 257


def test_transformers_reads_it_and_we_read_transformers(folder, tmp_path):
    from transformers import AutoTokenizer

    ours, theirs = open_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert (len(theirs), theirs.eos_token, theirs.eos_token_id) == (300, "<|endoftext|>", 299)
    for text in filter(lambda text: "<|" not in text, HOSTILE):
        assert theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert theirs.encode("a<|endoftext|>b") == [*ours.encode("a"), 299, *ours.encode("b")]
    theirs.save_pretrained(tmp_path)
    assert open_tokenizer(tmp_path).describe() == ours.describe() == small_tokenizer().describe()
    for file in tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).model.save(str(tmp_path)):
        assert (folder / Path(file).name).read_bytes() == Path(file).read_bytes()  # vocab.json, merges.txt


def test_gpt2_s_ids_follow_from_its_merges(tmp_path):
    encoder = json.loads(gpt2_vocabulary_files()[0].read_text("utf-8"))
    assert token_ids(gpt2_merges()) | {"<|endoftext|>": 50256} == encoder
    write_tokenizer(tmp_path, gpt2_merges())
    assert isinstance(open_tokenizer(tmp_path), GPT2Tokenizer)


@pytest.mark.parametrize(
    "change",
    [
        lambda hf: hf["pre_tokenizer"].update(add_prefix_space=True),
        lambda hf: hf.update(pre_tokenizer=None),
        lambda hf: hf.update(normalizer={"type": "NFC"}),
        lambda hf: hf["model"]["vocab"].update({"!": 1, '"': 0}),
        lambda hf: hf["model"].update(type="Unigram", vocab=[["a", 0.0]]),
    ],
    ids=["prefix space", "no pre-tokenizer", "normalizer", "other ids", "other model"],
)
def test_other_tokenizers_are_refused(folder, tmp_path, change):
    hf = json.loads((folder / "tokenizer.json").read_text())
    change(hf)
    (tmp_path / "tokenizer.json").write_text(json.dumps(hf))
    with pytest.raises(UserError, match=r"tokenizer\.json is not a byte-level BPE"):
        open_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"missing: give a folder"):
        open_tokenizer(tmp_path / "nothing")
