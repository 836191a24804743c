"""The lm-evaluation-harness on a run, with local tasks, compared with its own HFLM on the exported directory."""

import json
import re
from collections.abc import Iterable
from functools import partialmethod
from pathlib import Path

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from eval import harness
from eval.scoring.harness_model import GPT2Run
from prepare.common.cli import UserError
from prepare.tokens.tokenizer import GPT2Tokenizer
from tests.helpers.commands import one_line_error, run_command
from tests.helpers.tiny import make_run
from train import export_hf
from train.weights import load_model as open_model

DOCUMENTS = [
    {
        "query": f"Number {n} is a word, and",
        "choices": [f"number {n + k} " + "is " * k + "not." for k in range(3)],
        "label": n % 3,
        "text": f"Sentence {n} of a text that is longer than the block. " * (1 + n % 3),
    }
    for n in range(8)
]
COMMON = """\
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {data}}}}}
validation_split: validation
"""
TASKS = {
    "local_choice": """\
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_target: "{{label}}"
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "local_text": """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "local_answer": """\
output_type: generate_until
doc_to_text: "{{query}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: [" the", "\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "local_answer_short": """\
output_type: generate_until
doc_to_text: "{{query}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: "\\n", max_new_tokens: "8", top_k: 0}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(autouse=True)
def without_the_harness_s_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """To read its 10,000 files takes 10 s."""
    monkeypatch.setattr(TaskManager, "__init__", partialmethod(TaskManager.__init__, include_defaults=False))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the modern architecture, its export, and task files."""
    folder = tmp_path_factory.mktemp("harness")
    make_run(folder / "run", GPT2Tokenizer().describe(), architecture="modern")
    export_hf.main([f"--model={folder / 'run'}", f"--output={folder / 'hf'}"])
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    (folder / "tasks").mkdir()
    for name, text in TASKS.items():
        head = COMMON.format(data=folder / "data.jsonl")
        (folder / "tasks" / f"{name}.yaml").write_text(f"task: {name}\n{head}{text}")
    return folder


def _evaluate(folder: Path, model: object, tasks: Iterable[str] = TASKS, **options: object) -> dict:
    manager = TaskManager(include_path=str(folder / "tasks"))
    return simple_evaluate(model, tasks=[*tasks], task_manager=manager, bootstrap_iters=0, **options)


@pytest.mark.slow
def test_every_score_and_answer_is_the_harness_s_own(folder: Path) -> None:
    theirs = _evaluate(folder, "hf", model_args=f"pretrained={folder / 'hf'},dtype=float32", device="cpu")
    ours = _evaluate(folder, GPT2Run(run=str(folder / "run"), device="cpu"))
    for name in ("local_choice", "local_text"):
        for metric, value in theirs["results"][name].items():
            if isinstance(value, float):
                assert ours["results"][name][metric] == pytest.approx(value, rel=1e-4), metric
    for name in TASKS:
        for a, b in zip(ours["samples"][name], theirs["samples"][name], strict=True):
            if name.startswith("local_answer"):
                assert a["resps"] == b["resps"]
                continue
            logliks = [[value if name == "local_text" else value[0] for value in x["filtered_resps"]] for x in (a, b)]
            assert logliks[0] == pytest.approx(logliks[1], abs=1e-3)


def test_unsupported_settings_are_named(folder: Path) -> None:
    model = GPT2Run(run=str(folder / "run"), device="cpu")

    def ask(kind: str, *args: object) -> None:
        getattr(model, kind)([Instance(kind, {}, args, 0)])

    with pytest.raises(UserError, match="max_gen_toks 24 of the task does not fit in the block size 24"):
        ask("generate_until", "The", {"max_gen_toks": 24})
    for key, value in (("num_beams", 2), ("do_sample", True)):
        with pytest.raises(UserError, match=f"{key} is {value}"):
            ask("generate_until", "The", {"max_gen_toks": 4, key: value})
    ask("generate_until", "The", {"max_gen_toks": 4, "num_beams": 1})  # no beam search


def test_the_command_line_is_lm_evals_with_gpt2_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = ["harness.py", "--model=gpt2_run", "--tasks=local_choice", "--include_path", str(folder / "tasks")]
    words += ["--limit=4", "--device=cpu", "--output_path", str(tmp_path), "--model_args"]
    monkeypatch.setattr("sys.argv", [*words, f"run={folder / 'run'}"])
    harness.main()
    assert re.search(r"\|local_choice\|(.*\n)*.*acc_norm", capsys.readouterr().out)
    [results] = tmp_path.iterdir()
    assert results.name == str(folder / "run").replace("/", "__")
    monkeypatch.setattr("sys.argv", [*words, f"run={folder / 'absent'}"])
    with pytest.raises(UserError, match="there is no such folder"):
        harness.main()
    assert "--tasks" in one_line_error(run_command("python", "eval/harness.py"), 2)


def test_results_lie_under_the_name_of_their_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "runs" / "newest", GPT2Tokenizer().describe())
    monkeypatch.setattr(open_model, "RUNS", tmp_path / "runs")
    for model_args in ({"run": str(folder / "run")}, {}):
        tracker = EvaluationTracker(str(tmp_path / "scores"))
        options = {"model_args": model_args, "device": "cpu", "evaluation_tracker": tracker}
        results = _evaluate(folder, "gpt2_run", ["local_choice"], **options)
        tracker.save_results_aggregated(results)
    names = {json.loads(file.read_text())["model_name"]: file.parent.name for file in tmp_path.glob("scores/*/*.json")}
    assert names.keys() == {str(folder / "run"), str(tmp_path / "runs" / "newest")}
    assert {name.rpartition("__")[2] for name in names.values()} == {"run", "newest"}


def test_mistakes_are_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"pretrained=gpt2": "gpt2_run takes run=X", f"run={folder / 'run'}": "Tasks not found: no_such_task"}
    for model_args, words in wrong.items():
        monkeypatch.setattr("sys.argv", ["harness.py", "--model_args", model_args, "--tasks", "no_such_task"])
        with pytest.raises(UserError, match=words):
            harness.main()
