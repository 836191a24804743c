"""A classifier end to end, on lines of the real SMS collection: trained, killed, shared out, asked and exported."""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from eval import classify as ask
from eval.scoring.classification import classify
from prepare.common.cli import UserError
from prepare.tokens.tokenizer import CharTokenizer, GPT2Tokenizer
from tests.helpers.commands import one_line_error, run_command
from tests.helpers.event_files import assert_events_equal_metrics
from tests.helpers.finetuning import base_model, finetune, words
from tests.helpers.tiny import rows, save_checkpoint
from train import finetune_classify
from train.config.finetune import load_classify_config
from train.parallel.world import World
from train.run.stop_request import SIGNALS
from train.trainer import trainer
from train.weights.load_model import load_model

ALONE = World(0, 1, torch.device("cpu"))


def train(init: Path, data: Path, run: Path, processes: int = 1, **changes: object) -> subprocess.CompletedProcess:
    return finetune("classify", init, data, run, processes, **changes)


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Path:
    lines = (real_data / "SMSSpamCollection").read_text("utf-8").splitlines()
    spam, ham = ([line for line in lines if line.startswith(label)][:150] for label in ("spam", "ham"))
    path = tmp_path_factory.mktemp("data") / "messages"
    path.write_text("\n".join([*spam, *ham, "ham\t", "ham\t" + "word " * 60]))
    return path


@pytest.fixture(scope="module")
def reference(init: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "reference"
    result = train(init, data, run)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "labels: ham 151, spam 150" in result.stdout
    assert "1 empty ones left out" in result.stdout
    assert "longer than the model's 48 tokens truncated at the end" in result.stdout
    return run


@pytest.mark.slow
def test_a_run_leaves_what_is_promised_and_learns(reference: Path) -> None:
    names = {path.name for path in reference.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "data", "DONE", "loss.png", "report.json", "report.png"} <= names
    val = rows(reference, "val")
    assert [row["step"] for row in val] == [0, 4, 8, 12]
    assert val[-1]["loss"] < val[0]["loss"]
    report = json.loads((reference / "report.json").read_text())
    assert report["labels"] == ["ham", "spam"]
    assert sum(map(sum, report["confusion"])) == report["examples"] > 50
    assert report["accuracy"] > 0.6  # of half and half
    tokens = json.loads((reference / "data" / "data.json").read_text())
    assert tokens["counts"] == {"ham": 151, "spam": 150}


@pytest.mark.slow
def test_two_processes_do_the_same(reference: Path, init: Path, data: Path, tmp_path: Path) -> None:
    result = train(init, data, tmp_path / "two", 2)
    assert result.returncode == 0, result.stdout + result.stderr
    for kind in ("train", "val"):
        ours, theirs = rows(tmp_path / "two", kind), rows(reference, kind)
        assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], abs=1e-5)
    assert [row["tokens"] for row in rows(tmp_path / "two", "train")] == [
        row["tokens"] for row in rows(reference, "train")
    ]


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_weights(reference: Path, init: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    assert train(init, data, run, fault="SIGKILL@11:0", log__tensorboard="true").returncode == -signal.SIGKILL
    result = train(init, data, run, log__tensorboard="true")
    assert "resumed at step " in result.stdout, result.stdout + result.stderr
    name = "checkpoints/step_00000012/model.safetensors"
    ours, theirs = load_file(run / name), load_file(reference / name)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key
    tokens = {row["step"]: row["tokens"] for row in rows(run, "train")}
    assert_events_equal_metrics(run, lambda step: tokens.get(step, 0))
    assert (
        json.loads((run / "report.json").read_text())["confusion"]
        == json.loads((reference / "report.json").read_text())["confusion"]
    )


@pytest.mark.slow
def test_it_stops_early_at_its_best_with_only_the_last_block_trained(init: Path, data: Path, tmp_path: Path) -> None:
    """A learning rate that destroys what was there: the validation loss does not fall for long."""
    run = tmp_path / "early"
    changes = {"eval__every": 2, "checkpoint__every": 2, "eval__patience": 2, "train__max_steps": 60}
    options = {"optim__max_lr": 0.3, "tune__blocks": 1, "data__class_weights": "balanced", "checkpoint__keep": 4}
    result = train(init, data, run, **changes, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    losses = {row["step"]: row["loss"] for row in rows(run, "val")}
    last, best = max(losses), min(losses, key=losses.get)
    assert last < 60
    assert last - best == 4 or best == 0
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept[-1] == f"step_{best or last:08d}"
    weights = load_model(str(run), classifier=True).model.state_dict()
    initial = load_model(str(init)).model.state_dict()
    for name, tensor in initial.items():
        assert torch.equal(weights[name], tensor) == (not name.startswith(("h.1.", "ln_f."))), name
    assert "is finished" in train(init, data, run, **changes, **options).stdout


@pytest.mark.slow
def test_it_answers_and_transformers_says_the_same(reference: Path, data: Path, tmp_path: Path) -> None:
    text = "WINNER!! You have won a prize, call 09061701461 now"
    answered = run_command("python", "eval/classify.py", "--model", reference, "--text", text)
    loaded = load_model(str(reference), classifier=True)
    (row,), _ = classify(loaded.model, loaded.tokenizer, [text], "cpu")
    assert answered.stdout == f"{loaded.labels[row.argmax()]}\t{row.max():.4f}\t{text}\n", answered.stderr

    output = tmp_path / "hf"
    result = run_command("python", "train/export_hf.py", "--model", reference, "--output", output)
    assert result.returncode == 0, result.stderr
    theirs = AutoModelForSequenceClassification.from_pretrained(output, local_files_only=True).eval()
    assert type(theirs).__name__ == "GPT2ForSequenceClassification"
    assert theirs.config.id2label == {0: "ham", 1: "spam"}
    texts = [text, "ok", "see you at home later then"]
    ids = [loaded.tokenizer.encode(each) for each in texts]
    padded = torch.full((3, max(map(len, ids))), theirs.config.pad_token_id)
    for place, each in enumerate(ids):
        padded[place, : len(each)] = torch.tensor(each)
    with torch.no_grad():
        probabilities = torch.softmax(theirs(padded, attention_mask=padded != 50256).logits, -1)
    ours, _ = classify(loaded.model, loaded.tokenizer, texts, "cpu")
    torch.testing.assert_close(probabilities, torch.tensor(ours, dtype=torch.float32), atol=1e-5, rtol=0)

    labelled = tmp_path / "some.tsv"
    labelled.write_text("\n".join(data.read_text().splitlines()[100:200]))
    result = run_command("python", "eval/classify.py", "--model", reference, "--file", labelled)
    lines = result.stdout.splitlines()
    guesses = [line.split("\t")[0] for line in lines]
    right = sum(
        line.startswith(guess + "\t") for line, guess in zip(labelled.read_text().splitlines(), guesses, strict=True)
    )
    assert f"accuracy {right / 100:.4f}" in result.stderr


def test_mistakes_in_asking_are_named(reference: Path, init: Path, tmp_path: Path) -> None:
    odd, quoted = tmp_path / "odd.tsv", tmp_path / "odd.csv"
    odd.write_text("ham\thello\neggs\tbacon\n")
    quoted.write_text('text,label\n"",ham\n')
    for model, source, message in (
        (reference, ["--file", str(odd)], "the label 'eggs'; the labels of reference at step 12: ham, spam"),
        (reference, ["--file", str(quoted)], "odd.csv, row 1: the text is empty"),
        (init, ["--text", "hello"], "is not a classifier"),
        (reference, ["--text", ""], "argument --text: "),
    ):
        with pytest.raises(UserError) as failure:
            ask.main(["--model", str(model), "--device", "cpu", *source])
        assert message in str(failure.value)
    with pytest.raises(UserError, match=r"is a classifier \(ham, spam\): eval/classify.py"):
        load_model(str(reference))


@pytest.fixture
def signals() -> Iterator[None]:
    """The handlers as they were before a run in this process took them."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_a_run_resumes_only_with_the_model_that_it_started_from(
    reference: Path, init: Path, data: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(reference, tmp_path / "run"))
    (run / "DONE").unlink()
    before = (run / "config.yaml").read_text()
    model = load_model(str(init)).model
    with torch.no_grad():
        model.ln_f.weight[3] += 1e-6
    save_checkpoint(tmp_path / "other", 3, model, tokenizer=GPT2Tokenizer().describe())
    with pytest.raises(UserError, match=r"is of another run: init "):
        finetune_classify.finetune(load_classify_config(words(tmp_path / "other", data, run), ""), ALONE)
    assert (run / "config.yaml").read_text() == before
    moved = shutil.copytree(init, tmp_path / "moved")
    finetune_classify.finetune(load_classify_config(words(moved, data, run), ""), ALONE)
    assert (run / "DONE").exists()


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(
    ("steps", "message"), [(2, "the model's logits are not finite"), (6, "2 steps in a row had a non-finite loss")]
)
def test_a_run_that_diverges_says_so_and_scores_nothing(
    steps: int, message: str, init: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, changes = tmp_path / "run", {"optim__max_lr": 1e10, "optim__warmup_steps": 0}
    changes |= {"train__max_steps": steps, "eval__every": 1, "tune__dropout": 0.0}
    monkeypatch.setattr(trainer, "MAX_SKIPPED", 2)
    with pytest.raises(UserError, match=message):
        finetune_classify.finetune(load_classify_config(words(init, data, run, **changes), ""), ALONE)
    first, *others = rows(run, "val")
    assert first["accuracy"] > 0
    assert others
    assert all(row[key] is None for row in others for key in ("loss", "accuracy", "macro_f1", "ece"))
    assert not (run / "report.json").exists()
    assert not (run / "DONE").exists()


@pytest.mark.usefixtures("signals")
def test_mistakes_are_named_before_anything_is_trained(init: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "texts.csv", tmp_path / "run"
    data.write_text("text,label\n" + "some words,ham\nother words,spam\n" * 20)
    (tmp_path / "one").write_text("ham\thi\nham\tho\n")
    characters = base_model(tmp_path / "characters", CharTokenizer("some wrd\n").describe(), vocab_size=9)
    bare = base_model(tmp_path / "bare", vocab_size=64)
    for base, file, changes, message in (
        (init, data, {"data__text": "body"}, "has no column body, but text, label"),
        (init, tmp_path / "one", {}, "all 2 texts are 'ham'"),
        (init, tmp_path / "gone", {}, "cannot be read"),
        (init, data, {"data__batch_examples": 14}, "take 12 or 16"),
        (init, data, {"tune__blocks": 3}, "tune.blocks is 3, but the model has 2 layers"),
        (characters, data, {}, "the character 't' (U+0074) is not among the 9 of this character vocabulary"),
        (bare, data, {}, "--init"),
        (bare, data, {}, "its vocabulary of 64 is smaller than its tokenizer's"),
    ):
        with pytest.raises(UserError) as failure:
            finetune_classify.finetune(load_classify_config(words(base, file, run, **changes), ""), ALONE)
        assert message in str(failure.value)
    assert not (run / "checkpoints").exists()
    assert "all 2 texts are 'ham'" in one_line_error(train(init, tmp_path / "one", tmp_path / "other"))
