"""hellaswag.py against transformers, on the real tasks, alone and under torchrun; its messages."""

import json
import re

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import GPT2TokenizerFast

from eval import hellaswag
from eval.scoring.tasks import harness_prompt, load_hellaswag
from prepare.tokens.tokenizer import GPT2Tokenizer
from tests.helpers.commands import mistake, run_command
from tests.helpers.random_gpt2 import log_likelihood, save_random_gpt2
from tests.helpers.vocabulary import gpt2_vocabulary_files


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random GPT-2 with the full vocabulary: its directory, and transformers' model."""
    folder = tmp_path_factory.mktemp("models") / "random"
    return folder, save_random_gpt2(folder, n_layer=1, n_positions=256)


def _tasks(path, n=6):
    rows = [
        {
            "ind": i,
            "activity_label": "Sewing",
            "ctx_a": f"Someone has {i} needles.",
            "ctx_b": "the thread",
            "ctx": f"Someone has {i} needles. the thread",
            "label": i % 4,
            "endings": ["is red.", "breaks in two when she pulls.", "sings", f"was {i} metres long, at least."],
        }
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _check(found, expected, right, lengths):
    """The report's numbers, from log-likelihoods computed by others."""
    assert len(found["examples"]) == len(expected)
    for example, logliks in zip(found["examples"], expected, strict=True):
        assert example["log_likelihoods"] == pytest.approx(logliks, abs=1e-3)
    best = [max(range(4), key=row.__getitem__) for row in expected]
    best_norm = [max(range(4), key=lambda k, r=row, n=n: r[k] / n[k]) for row, n in zip(expected, lengths, strict=True)]
    for key, choice in (("acc", best), ("acc_norm", best_norm)):
        accuracy = sum(map(int.__eq__, choice, right)) / len(right)
        assert found[key] == pytest.approx(accuracy)
        assert found[f"{key}_stderr"] == pytest.approx((accuracy * (1 - accuracy) / (len(right) - 1)) ** 0.5)
    assert [example["prediction"] for example in found["examples"]] == best
    assert [example["prediction_norm"] for example in found["examples"]] == best_norm


@pytest.mark.slow
def test_60_real_tasks_are_as_transformers_scores_them_one_at_a_time(real_data, model, tmp_path):
    folder, theirs = model
    data, output = real_data / "hellaswag_val.jsonl", tmp_path / "scores.json"
    command = ["python", "eval/hellaswag.py", "--model", folder, "--data", data, "--limit", 60, "--output", output]
    result = run_command(*command)
    assert result.returncode == 0, result.stderr
    found, tokenizer = json.loads(output.read_text()), GPT2Tokenizer()
    rows = [json.loads(line) for line in data.read_text().splitlines()[:60]]
    endings = [[tokenizer.encode(" " + ending) for ending in row["endings"]] for row in rows]
    expected = [
        [log_likelihood(theirs, tokenizer.encode(row["ctx"]), ending)[0] for ending in four]
        for row, four in zip(rows, endings, strict=True)
    ]
    _check(found, expected, [row["label"] for row in rows], [[len(ending) for ending in four] for four in endings])
    assert (found["tasks"], found["format"], found["truncated"]) == (60, "plain", 0)
    printed = dict(re.findall(r"^(\w+): +([0-9.]+) \+- [0-9.]+$", result.stdout, re.MULTILINE))
    assert printed == {"acc": f"{found['acc']:.4f}", "acc_norm": f"{found['acc_norm']:.4f}"}


@pytest.mark.slow
def test_real_tasks_are_as_the_harness_scores_them(real_data, tmp_path):
    """lm-eval's HFLM on the same weights and prompts; a short block, so that some contexts are truncated."""
    save_random_gpt2(tmp_path / "model", n_positions=64, n_layer=3, n_head=2, n_embd=96)
    vocab, merges = gpt2_vocabulary_files()
    lm = HFLM(
        pretrained=str(tmp_path / "model"),
        tokenizer=GPT2TokenizerFast(vocab=str(vocab), merges=str(merges)),
        device="cpu",
        dtype="float32",
        batch_size=16,
    )
    data, output = real_data / "hellaswag_val.jsonl", tmp_path / "scores.json"
    tasks = load_hellaswag(data, 60)
    prompts = [harness_prompt(task) for task in tasks]
    asked = [
        Instance("loglikelihood", {}, (query, f" {choice}"), number)
        for query, choices in prompts
        for number, choice in enumerate(choices)
    ]
    values = iter(loglik for loglik, _ in lm.loglikelihood(asked, disable_tqdm=True))
    expected = [[next(values) for _ in choices] for _, choices in prompts]
    options = [f"--data={data}", "--limit=60", f"--output={output}", "--format=lm-eval", "--device=cpu"]
    hellaswag.main([f"--model={tmp_path / 'model'}", *options])
    found = json.loads(output.read_text())
    assert found["truncated"] > 5
    _check(found, expected, [task.label for task in tasks], [[len(c) for c in choices] for _, choices in prompts])


def test_lm_eval_format_divides_by_characters(model, tmp_path, capsys):
    folder, theirs = model
    data, output, tokenizer = _tasks(tmp_path / "tasks.jsonl"), tmp_path / "scores.json", GPT2Tokenizer()
    hellaswag.main([f"--model={folder}", f"--data={data}", f"--output={output}", "--format=lm-eval", "--device=cpu"])
    assert "lm-eval format" in capsys.readouterr().out
    tasks = load_hellaswag(data)
    prompts = [harness_prompt(task) for task in tasks]
    assert prompts[2][0] == "Sewing: Someone has 2 needles. The thread"
    expected = [
        [log_likelihood(theirs, tokenizer.encode(query), tokenizer.encode(" " + choice))[0] for choice in choices]
        for query, choices in prompts
    ]
    lengths = [[len(choice) for choice in choices] for _, choices in prompts]
    _check(json.loads(output.read_text()), expected, [task.label for task in tasks], lengths)


@pytest.mark.slow
def test_two_processes_report_what_one_does(model, tmp_path):
    data = _tasks(tmp_path / "tasks.jsonl", 30)
    options = ["eval/hellaswag.py", "--model", model[0], "--data", data, "--device", "cpu"]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    alone = run_command("python", *options, "--output", one)
    launcher = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    both = run_command(*launcher, *options, "--output", two, OMP_NUM_THREADS="1")
    assert alone.returncode == both.returncode == 0, alone.stderr + both.stderr
    assert alone.stdout.replace(str(one), "") == both.stdout.replace(str(two), "")
    logliks = [
        [value for example in json.loads(path.read_text())["examples"] for value in example["log_likelihoods"]]
        for path in (one, two)
    ]
    assert logliks[1] == pytest.approx(logliks[0], abs=1e-4)
    assert len(logliks[0]) == 120


def test_tasks_longer_than_the_block_size_are_truncated_on_the_left_and_counted(tmp_path, capsys):
    theirs = save_random_gpt2(tmp_path / "short", n_layer=1, n_positions=12)
    data, output, tokenizer = _tasks(tmp_path / "tasks.jsonl"), tmp_path / "scores.json", GPT2Tokenizer()
    hellaswag.main([f"--model={tmp_path / 'short'}", f"--data={data}", f"--output={output}", "--device=cpu"])
    assert re.search(r"truncated: +6 tasks", capsys.readouterr().out)
    found, rows = json.loads(output.read_text()), [json.loads(line) for line in data.read_text().splitlines()]
    assert found["truncated"] == 6
    for example, row in zip(found["examples"], rows, strict=True):
        context = tokenizer.encode(row["ctx"])
        expected = [log_likelihood(theirs, context, tokenizer.encode(" " + ending))[0] for ending in row["endings"]]
        assert example["log_likelihoods"] == pytest.approx(expected, abs=1e-3)


def test_mistakes_are_named(model, tmp_path):
    data = _tasks(tmp_path / "tasks.jsonl")
    for words, status, message in (
        ([f"--data={tmp_path}/no"], 1, f"{tmp_path}/no does not exist: fetch it (python prepare/eval_sets.py"),
        (["--limit=0"], 2, "--limit"),
        (["--model=no/where"], 1, "--model no/where"),
    ):
        found, error = mistake(hellaswag.main, f"--data={data}", f"--model={model[0]}", "--device=cpu", *words)
        assert (found, message in error) == (status, True), error
