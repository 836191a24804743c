"""report.py on a small run: every dataset that is there, with the scores of each command and the published ones."""

import json

import pytest

from eval import hellaswag, lambada, report, wikitext
from eval.common.score_table import PUBLISHED
from prepare.common.cli import UserError
from prepare.tokens.tokenizer import GPT2Tokenizer
from tests.helpers.commands import mistake
from tests.helpers.tiny import make_run


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


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", GPT2Tokenizer().describe())


def test_the_report_holds_the_scores_of_the_commands(data, run, tmp_path, capsys):
    output = tmp_path / "report"
    report.main([f"--model={run}", f"--data={data}", f"--output={output}", "--device=cpu"])
    printed = capsys.readouterr().out
    assert "wikitext103 is skipped: " in printed
    assert "wikitext103_test.tokens does not exist" in printed
    assert (output / "report.txt").read_text() in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("wikitext2 perplexity")]
    assert line.endswith("  29.41  22.76  19.93   18.34  GPT-2 paper, table 3")
    written = json.loads((output / "report.json").read_text())
    rows = {row["measure"]: row for row in written["rows"]}
    for script, name, keys in (
        (hellaswag, "hellaswag plain", ("acc", "acc_norm")),
        (lambada, "lambada", ("accuracy", "perplexity")),
        (wikitext, "wikitext2", ("perplexity", "bits_per_byte")),
    ):
        file = next(data.glob(f"{name.split()[0]}*"))
        script.main([f"--model={run}", f"--data={file}", f"--output={tmp_path / 'one.json'}", "--device=cpu"])
        alone = json.loads((tmp_path / "one.json").read_text())
        assert [rows[f"{name} {key}"]["value"] for key in keys] == pytest.approx([alone[key] for key in keys])
    assert rows["wikitext2 perplexity"]["published"]["124M"] == 29.41
    assert rows["wikitext2 perplexity"]["source"].startswith("GPT-2 paper")
    assert set(PUBLISHED) - rows.keys() == {"wikitext103 perplexity"}


def test_a_corrupt_dataset_is_skipped_and_bad_shards_are_reported_first(data, run, tmp_path, capsys):
    output = tmp_path / "report"
    (data / "hellaswag_val.jsonl").write_text("{")
    command = [f"--model={run}", f"--data={data}", "--device=cpu", f"--output={output}"]
    report.main(command)
    assert capsys.readouterr().out.count("hellaswag_val.jsonl:1 is not valid JSON") == 2
    scored = {row["measure"].split()[0] for row in json.loads((output / "report.json").read_text())["rows"]}
    assert scored == {"lambada", "wikitext2"}
    (tmp_path / "bad_val_000000.bin").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match="magic number"):
        report.main([*command, "--shards", str(tmp_path / "bad_val_000000.bin")])
    assert "is skipped" not in capsys.readouterr().out


def test_mistakes_are_named(data, run, tmp_path):
    words = ("--data", tmp_path, "--model", run, "--output")
    assert "nothing to evaluate" in mistake(report.main, *words, tmp_path / "report", "--device=cpu")[1]
    status, error = mistake(report.main, *words, data / "lambada_test.jsonl")
    assert (status, "lambada_test.jsonl is a file" in error) == (2, True), error
