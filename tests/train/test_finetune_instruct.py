"""An instruction follower end to end, on entries of the real file: trained, killed, shared out, asked and exported."""

import io
import itertools
import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from eval import generate
from eval.generation.sampling import greedy_answer
from prepare.common.cli import UserError
from prepare.finetuning.instructions import Template, question
from prepare.tokens.tokenizer import EOT, CharTokenizer
from tests.helpers.finetuning import base_model, finetune, words
from tests.helpers.tiny import rows, save_checkpoint
from train import finetune_instruct
from train.config.finetune import load_instruct_config
from train.data.examples import Examples
from train.model.loss import IGNORE_INDEX
from train.parallel.world import World
from train.weights.load_model import load_model

CHANGES = {"eval__sample_every": 6, "eval__samples": 2, "eval__sample_tokens": 8}


def train(init: Path, data: Path, run: Path, processes: int = 1, **changes: object) -> subprocess.CompletedProcess:
    return finetune("instruct", init, data, run, processes, **CHANGES, **changes)


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_model(tmp_path_factory.mktemp("models") / "base", block_size=64)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Path:
    entries = json.loads((real_data / "instruction-data.json").read_text("utf-8"))[:200]
    long = {"instruction": "Repeat. " * 60, "output": "Repeated."}
    path = tmp_path_factory.mktemp("data") / "entries.json"
    path.write_text(json.dumps([*entries, long, {"instruction": "Nothing", "output": ""}]))
    return path


@pytest.fixture(scope="module")
def reference(init: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "reference"
    result = train(init, data, run)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "template: '### Instruction:\\n...\\n\\n' + '### Response:\\n'" in result.stdout
    assert "201 of entries.json" in result.stdout
    assert "1 with an empty instruction or answer left out" in result.stdout
    assert re.search(r" [1-9]\d* truncated at the beginning of their prompt, 0 at the end", result.stdout)
    return run


@pytest.mark.slow
def test_a_run_leaves_what_is_promised_and_learns(reference: Path) -> None:
    val = rows(reference, "val")
    assert [row["step"] for row in val] == [0, 4, 8, 12]
    assert val[-1]["loss"] < val[0]["loss"] - 0.1
    assert [row["step"] for row in rows(reference, "sample")] == [6, 12]
    assert [answer.keys() for answer in rows(reference, "sample")[0]["answers"]] == [{"prompt", "answer"}] * 2
    report = json.loads((reference / "report.json").read_text())
    assert report["loss"]["after"] < report["loss"]["before"] - 0.1
    assert len(report["answers"]) == 20
    assert (reference / "DONE").exists()


@pytest.mark.slow
def test_the_loss_mask_keeps_the_answers_only(reference: Path, data: Path) -> None:
    loaded = load_model(str(reference))
    wanted = {entry["output"] for entry in json.loads(data.read_text())}
    for part in ("train", "val", "test"):
        examples = Examples.load(reference / "data" / f"{part}.npz")
        for number in range(len(examples)):
            targets = [target for target in examples.row(number)[1].tolist() if target != IGNORE_INDEX]
            assert targets[-1] == EOT
            assert loaded.tokenizer.decode(targets[:-1]) in wanted


@pytest.mark.slow
def test_generate_uses_the_runs_template(
    reference: Path, init: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(str(reference))
    assert loaded.template == Template()
    prompt = loaded.tokenizer.encode("### Instruction:\nAdd.\n\n### Input:\n1 + 2\n\n### Response:\n")
    assert loaded.template.prompt(question("Add.", "1 + 2"), loaded.tokenizer) == prompt
    expected = greedy_answer(loaded.model, loaded.tokenizer, prompt, 8)
    options = ["--device", "cpu", "--temperature", "0", "--max-new-tokens", "8"]
    ask = ["--model", str(reference), *options]
    generate.main([*ask, "--instruction", "Add.", "--input", "1 + 2"])
    assert capsys.readouterr().out == expected + "\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("Add.\nAdd.\n"))
    generate.main([*ask, "--interactive"])
    prompt = loaded.template.prompt(question("Add."), loaded.tokenizer)
    assert capsys.readouterr().out == 2 * (greedy_answer(loaded.model, loaded.tokenizer, prompt, 8) + "\n")
    with pytest.raises(UserError, match="does not follow instructions"):
        generate.main(["--model", str(init), *options, "--instruction", "Add."])


@pytest.mark.slow
def test_a_chat_ends_each_answer_and_remembers_if_trained_on_conversations(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained to count its answers: each answer shows whether it was given the conversation so far."""
    colors = ("red", "blue", "green", "grey", "black", "white", "pink", "brown")
    data, run, forgetful = tmp_path / "turns.jsonl", tmp_path / "run", tmp_path / "forgetful"
    with data.open("w") as file:
        for first, second in itertools.product(colors, repeat=2):
            turns = (("user", first), ("assistant", "one"), ("user", second), ("assistant", "two"))
            messages = [{"role": role, "content": content} for role, content in turns]
            print(json.dumps({"messages": messages}), file=file)
    base = base_model(tmp_path / "base", n_embd=64, block_size=64)
    keys = ("eval__every", "checkpoint__every", "tune__dropout", "data__val_share")
    off = dict.fromkeys(keys, 0)
    learn = {"optim__max_lr": 1e-2, "train__max_steps": 50, "data__micro_batch_size": 16}
    result = finetune("instruct", base, data, run, **off, **learn)
    assert "64 of turns.jsonl, 128 answers" in result.stdout, result.stderr

    loaded = load_model(str(run))
    described = {"tokenizer": loaded.tokenizer.describe(), "template": loaded.template.describe(), "converses": False}
    save_checkpoint(forgetful, 50, loaded.model, **described)
    for model, answers in ((run, "one two one two"), (forgetful, "one one one one")):
        # an empty line starts a new conversation
        monkeypatch.setattr("sys.stdin", io.StringIO("red\ngrey\n\nblue\nred\n"))
        generate.main(["--model", str(model), "--interactive", "--temperature", "0", "--device", "cpu"])
        assert capsys.readouterr().out.split("\n") == [*answers.split(), ""]


def test_mistakes_are_named_before_anything_is_trained(
    init: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.run.stop_request.signal.signal", lambda *_: None)
    broken, few, run = tmp_path / "broken.json", tmp_path / "few.json", tmp_path / "run"
    broken.write_text('[{"instruction": "a",\n  "output" "b"}]')
    few.write_text('[{"instruction": "a", "output": "b"}]')
    characters = base_model(tmp_path / "characters", CharTokenizer("abc").describe(), vocab_size=3)
    for base, file, message in (
        (init, broken, "broken.json:2 is not valid JSON"),
        (characters, data, "has no end-of-text token"),
        (init, few, "data.val_share 0.1 holds out no example"),
    ):
        config = load_instruct_config(words(base, file, run, eval__patience=1), "")
        with pytest.raises(UserError) as failure:
            finetune_instruct.finetune(config, World(0, 1, torch.device("cpu")))
        assert message in str(failure.value)
    assert not (run / "checkpoints").exists()
