"""report.py on a small run: every set that is there, the scripts' own numbers, and what was published beside them."""

import json

import pytest

from eval import hellaswag, lambada, report, wikitext
from eval.common.published import PUBLISHED
from prepare.common.cli import UserError
from prepare.tokens.tokenizer import GPT2Tokenizer
from tests.helpers.commands import one_line_error, run_command
from tests.helpers.tiny import make_run
from train import export_hf

PNG = b"\x89PNG"


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    task = {"ind": 1, "activity_label": "Sewing", "ctx": "Someone sews. the thread", "label": 1}
    endings = ["is red.", "breaks in two.", "sings", "was long, at least."]
    (folder / "hellaswag_val.jsonl").write_text((json.dumps({**task, "endings": endings}) + "\n") * 3)
    (folder / "lambada_test.jsonl").write_text(json.dumps({"text": "The needle and the thread"}) + "\n")
    (folder / "wikitext2_test.tokens").write_text(" \n = Words = \n \n Some words , and more . \n")
    return folder


def test_the_report_holds_what_the_scripts_measure(data, tmp_path, capsys):
    run, output = make_run(tmp_path / "run", GPT2Tokenizer().describe()), tmp_path / "report"
    rows = [{"step": 5, "kind": "hellaswag", "acc": 0.3, "acc_norm": 0.3, "tasks": 9}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report.main([f"--model={run}", f"--data={data}", f"--output={output}", "--device=cpu"])
    printed = capsys.readouterr().out
    assert "wikitext103 is not measured: " in printed
    assert "wikitext103_test.tokens is not there" in printed
    assert (output / "report.txt").read_text() in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("wikitext2 perplexity")]
    assert line.endswith("  29.41  22.76  19.93   18.34  GPT-2 paper, table 3")
    assert (output / "report.png").read_bytes().startswith(PNG)
    written = json.loads((output / "report.json").read_text())
    values = {row["measure"]: row["value"] for row in written["rows"]}
    for script, name, keys in (
        (hellaswag, "hellaswag plain", ("acc", "acc_norm")),
        (lambada, "lambada", ("accuracy", "perplexity")),
        (wikitext, "wikitext2", ("perplexity", "bits_per_byte")),
    ):
        file = next(data.glob(f"{name.split()[0]}*"))
        script.main([f"--model={run}", f"--data={file}", f"--output={tmp_path / 'one.json'}", "--device=cpu"])
        alone = json.loads((tmp_path / "one.json").read_text())
        assert [values[f"{name} {key}"] for key in keys] == pytest.approx([alone[key] for key in keys])
    rows = {row["measure"]: row for row in written["rows"]}
    assert rows["wikitext2 perplexity"]["published"]["124M"] == 29.41
    assert rows["wikitext2 perplexity"]["source"].startswith("GPT-2 paper")
    assert set(PUBLISHED) - rows.keys() == {"wikitext103 perplexity"}


def test_the_log_of_the_run_is_read_before_anything_is_measured(data, tmp_path, capsys):
    run = make_run(tmp_path / "a$^$b", GPT2Tokenizer().describe())
    command = [f"--model={run}", f"--data={data}", f"--output={tmp_path / 'report'}", "--device=cpu"]
    (run / "metrics.jsonl").write_text('damaged\n{"step": 0, "kind": "train", "loss": 9.0}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:1 is not a row"):
        report.main(command)
    assert "is not measured" not in capsys.readouterr().out
    (run / "metrics.jsonl").write_text('{"step": 0, "kind": "train", "loss": 9.0}\n')  # no tokens to draw over
    report.main(command)
    assert (tmp_path / "report/report.png").read_bytes().startswith(PNG)


def test_mistakes_are_one_line_and_leave_nothing(data, tmp_path):
    command = ("python", "eval/report.py", "--output", tmp_path / "report", "--data")
    assert "there is no such folder" in one_line_error(run_command(*command, data, "--model", tmp_path / "absent"))
    run = make_run(tmp_path / "run", GPT2Tokenizer().describe())
    nothing = run_command(*command, tmp_path / "empty", "--model", run)
    assert "nothing to measure" in one_line_error(nothing)
    assert not (tmp_path / "report").exists()


def test_an_output_that_cannot_be_written_is_said_before_anything_is_measured(data, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", GPT2Tokenizer().describe())
    monkeypatch.setattr(report.os, "access", lambda path, _mode: path != tmp_path)
    monkeypatch.setattr(report, "measures", None)
    with pytest.raises(UserError, match="cannot be written to; name another folder"):
        report.main([f"--model={run}", f"--data={data}", f"--output={tmp_path / 'new' / 'report'}"])


def test_a_damaged_set_costs_only_its_own_rows_and_bad_shards_are_said_first(data, tmp_path, capsys):
    run, output = make_run(tmp_path / "run", GPT2Tokenizer().describe()), tmp_path / "report"
    (data / "hellaswag_val.jsonl").write_text("{")
    command = [f"--model={run}", f"--data={data}", "--device=cpu"]
    report.main([*command, f"--output={output}"])
    printed = capsys.readouterr().out
    assert printed.count("hellaswag_val.jsonl:1 is not valid JSON") == 2
    measured = {row["measure"].split()[0] for row in json.loads((output / "report.json").read_text())["rows"]}
    assert measured == {"lambada", "wikitext2"}
    (tmp_path / "bad_val_000000.bin").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match="magic number"):
        report.main([*command, f"--output={output}", "--shards", str(tmp_path / "bad_val_000000.bin")])
    assert "is not measured" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"report\.json is a file"):
        report.main([*command, f"--output={output / 'report.json' / 'new'}"])


def test_the_curve_is_that_of_the_model_wherever_it_is_named_from(data, tmp_path, monkeypatch):
    run, hf = make_run(tmp_path / "run", GPT2Tokenizer().describe()), tmp_path / "hf"
    row = {"step": 3, "kind": "hellaswag", "acc": 0.3, "acc_norm": 0.3, "tasks": 9}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    export_hf.main([f"--model={run}", f"--output={hf}"])
    drawn = []
    monkeypatch.setattr(report, "plot_report", lambda _title, _cells, metrics, _path: drawn.append(metrics))
    monkeypatch.setattr(report, "measures", lambda *_: iter([("lambada", {"accuracy": 0.5})]))
    for cwd, model, expected in (
        (run, "../hf", []),
        (run, hf, []),
        (run, ".", [row]),
        (run, "checkpoints/step_00000003", [row]),
        (run / "checkpoints", "step_00000003", [row]),
        (run / "checkpoints/step_00000003", ".", [row]),
        (data, run / "checkpoints/step_00000003", [row]),
    ):
        monkeypatch.chdir(cwd)
        report.main([f"--model={model}", f"--output={tmp_path / 'report'}", "--device=cpu"])
        assert drawn.pop() == expected, (cwd, model)
