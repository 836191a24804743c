"""A trained vocabulary from text to a talking, fine-tuned and exported model, after its folder is gone."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval import generate, hellaswag, lambada, wikitext
from eval.generation.sampling import TextStream, greedy_answer
from eval.scoring.evaluation import evaluate_shards
from eval.scoring.harness_model import GPT2Run
from prepare import fineweb, train_tokenizer
from prepare.sources.plays import PLAYS, read_play
from prepare.tokens.shards import open_shard
from prepare.tokens.tokenizer import GPT2Tokenizer
from tests.helpers.commands import one_line_error, run_command
from tests.helpers.finetuning import finetune
from tests.helpers.tiny import make_run, rows, settings
from train import export_hf
from train.data.examples import Examples
from train.parallel.world import World
from train.weights.load_model import load_model

VOCAB, EOT = 600, 599
TEXTS = ["HERMIA:\nO cross! too high to be enthrall'd to low.", "naïve 東京 🙂\n\n  tabs\tand spaces  ", "👩‍👩‍👧‍👦 é"]


def words(data: Path, run: Path, **changes: object) -> list[str]:
    keys = {"model__vocab_size": 0, "data__train": f"{data}/*_train_*.bin", "data__val": f"{data}/*_val_*.bin"}
    keys |= {"model__block_size": 64, "eval__every": 30, "eval__sample_every": 30, "train__max_steps": 30}
    return settings(data, run, **{**keys, "eval__sample_tokens": 8, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards in a vocabulary whose folder has been deleted."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "play.txt").write_text(read_play(PLAYS[0]))
    tokenizer, shards = str(folder / "tokenizer"), folder / "shards"
    text = ["--input", str(folder / "play.txt"), "--separator", "\n\n"]
    train_tokenizer.main([*text, "--vocab-size", str(VOCAB), "--out", tokenizer])
    fineweb.main([*text, "--tokenizer", tokenizer, "--out", str(shards)])
    shutil.rmtree(tokenizer)
    return shards


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    result = run_command("python", "train/train_gpt2.py", *words(data, run))
    assert result.returncode == 0, result.stderr
    return run


def test_the_model_has_the_vocabulary_of_its_data(data: Path, run: Path, tmp_path: Path) -> None:
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["vocab_size"] == VOCAB
    assert load_model(str(run)).tokenizer.encode(TEXTS[0]) != GPT2Tokenizer().encode(TEXTS[0])
    assert rows(run, "sample")[-1]["text"].startswith("Hello, I'm a language model,")
    gpt2 = make_run(tmp_path / "gpt2", GPT2Tokenizer().describe())
    for changes, message in (
        ({"model__vocab_size": 500}, "bpe tokenizer of 600 ids, but model.vocab_size is 500"),
        (
            {"train__init_from": gpt2},
            "the gpt2 vocabulary of 50257 ids, the data was made with another, bpe with 600",
        ),
    ):
        error = one_line_error(
            run_command("python", "train/train_gpt2.py", *words(data, tmp_path / "other", **changes))
        )
        assert message in error
        assert len(error) < 500


def test_scores(data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    [shard] = data.glob("*_val_*.bin")
    loaded = load_model(str(run))
    scores = evaluate_shards(loaded, World(0, 1, torch.device("cpu")), [shard], 10_000)
    tokens = open_shard(shard)[1 : scores["tokens"] + 1]
    size = len(loaded.tokenizer.decode(tokens[tokens != EOT]).encode())
    assert scores["bits_per_byte"] == pytest.approx(scores["loss"] / math.log(2) * len(tokens) / size)

    endings = ["O cross!", "too high", "love", "low"]
    task = {"ctx": "HERMIA:", "activity_label": "", "endings": endings, "label": 0}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task) + "\n")
    hellaswag.main(["--model", str(run), "--data", str(tmp_path / "tasks.jsonl")])
    (tmp_path / "lambada.jsonl").write_text(json.dumps({"text": "I had rather have a 日本 than a fool"}) + "\n")
    lambada.main(["--model", str(run), "--data", str(tmp_path / "lambada.jsonl")])
    (tmp_path / "wikitext.tokens").write_text(" = Title = \n \n Some words of a text . \n" * 3)
    wikitext.main(["--model", str(run), "--data", str(tmp_path / "wikitext.tokens")])
    assert "acc_norm" in capsys.readouterr().out


def test_transformers_gives_the_same_ids_text_and_likelihoods(run: Path, tmp_path: Path) -> None:
    export_hf.main(["--model", str(run), "--output", str(tmp_path / "hf")])
    ours, again = load_model(str(run)), load_model(str(tmp_path / "hf"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert again.tokenizer.describe() == ours.tokenizer.describe()
    assert (len(tokenizer), tokenizer.eos_token_id, theirs.config.eos_token_id) == (VOCAB, EOT, EOT)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == ours.tokenizer.encode(text) == again.tokenizer.encode(text)
        prompt = torch.tensor([ours.tokenizer.encode(text)])
        written = theirs.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.size(1) :]
        expected = greedy_answer(again.model, again.tokenizer, prompt[0].tolist(), 12)
        assert tokenizer.decode(written, skip_special_tokens=True) == expected

    harness = GPT2Run(run=str(run), device="cpu")
    pair = ("HERMIA:\nO", " cross! too high")
    [(found, _)] = harness.loglikelihood([Instance("loglikelihood", {}, pair, 0)])
    ids = torch.tensor([tokenizer("".join(pair))["input_ids"]])
    start = len(tokenizer(pair[0])["input_ids"])
    logits = theirs(ids).logits[0, start - 1 : -1].log_softmax(-1)
    assert found == pytest.approx(logits.gather(1, ids[0, start:, None]).sum().item(), rel=1e-4)


def test_streaming_never_splits_a_character(run: Path, capsys: pytest.CaptureFixture) -> None:
    tokenizer = load_model(str(run)).tokenizer
    for text in TEXTS:
        stream = TextStream(tokenizer)
        pieces = [stream.add(token) for token in tokenizer.encode(text)]
        assert "".join(pieces) == text
    assert "" in pieces  # a token that is part of a character
    generate.main(["--model", str(run), "--prompt", "HERMIA:\n", "--max-new-tokens", "8", "--temperature", "0"])
    assert capsys.readouterr().out.startswith("HERMIA:\n")


def test_fine_tuning_ends_answers_with_the_vocabulary_s_own_token(run: Path, tmp_path: Path) -> None:
    entries = [{"instruction": f"Say {n}.", "output": f"It is {n}, O cross!"} for n in range(40)]
    (tmp_path / "entries.json").write_text(json.dumps(entries))
    result = finetune("instruct", run, tmp_path / "entries.json", tmp_path / "instruct", eval__sample_every=0)
    assert result.returncode == 0, result.stdout + result.stderr
    examples = Examples.load(tmp_path / "instruct/data/train.npz")
    assert set(examples.targets[examples.offsets[1:] - 1].tolist()) == {EOT}
    loaded = load_model(str(tmp_path / "instruct"))
    assert loaded.tokenizer.vocab_size == VOCAB

    (tmp_path / "texts.tsv").write_text("".join(f"{'ham' if n % 3 else 'spam'}\tO {n} cross {n}!\n" for n in range(60)))
    result = finetune("classify", run, tmp_path / "texts.tsv", tmp_path / "classify")
    assert result.returncode == 0, result.stdout + result.stderr
    export_hf.main(["--model", str(tmp_path / "classify"), "--output", str(tmp_path / "hf")])
    assert json.loads((tmp_path / "hf/config.json").read_text())["pad_token_id"] == EOT
    assert np.asarray(AutoTokenizer.from_pretrained(tmp_path / "hf")("O cross")["input_ids"]).max() < EOT
