"""The trainer end to end: real processes, real torchrun, kills and stops, and mistakes in one line."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from eval.scoring.log_likelihood import sum_loss
from prepare.tokens.shards import open_shard, write_shard
from prepare.tokens.tokenizer import GPT2Tokenizer
from tests.helpers.commands import FAULTS, ROOT, free_port, one_line_error, run_command, start_command
from tests.helpers.random_gpt2 import save_random_gpt2
from tests.helpers.tiny import VOCAB, rows, settings, tiny_trainer, two_sources, write_shards
from train.config.pretrain import DataConfig, SourceConfig, TrainConfig
from train.data.loader import Mixture
from train.data.windows import Windows, validation_batches
from train.train_gpt2 import print_summary
from train.weights.huggingface import load_hf

SCRIPT = ROOT / "train" / "train_gpt2.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data"))


def attempt(
    data: Path, run: Path, processes: int = 1, fault: str = "", cwd: Path = ROOT, **changes: object
) -> subprocess.CompletedProcess:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    script = [FAULTS, fault, SCRIPT] if fault else [SCRIPT]
    return run_command("python", *torchrun, *script, *settings(data, run, **changes), cwd=cwd)


def train(data: Path, run: Path, processes: int = 1, **changes: object) -> subprocess.CompletedProcess:
    result = attempt(data, run, processes, **changes)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run, "train")]


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors")


def assert_same_weights(run: Path, other: Path) -> None:
    ours, theirs = final_weights(run), final_weights(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run on one process, with dropout."""
    run = tmp_path_factory.mktemp("runs") / "reference"
    train(data, run, model__dropout=0.1, eval__every=10, checkpoint__every=4)
    return run


def test_a_run_leaves_what_is_promised(reference: Path) -> None:
    names = {path.name for path in reference.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "DONE", "loss.png"} <= names
    assert sorted(path.name for path in (reference / "checkpoints").iterdir()) == ["step_00000016", "step_00000020"]
    train_rows = rows(reference, "train")
    assert [row["step"] for row in train_rows] == list(range(1, 21))
    assert train_rows[-1]["tokens"] == 20 * 512
    assert train_rows[-1].keys() == {"step", "kind", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "mfu"}
    assert train_rows[0]["lr"] == pytest.approx(1e-2 / 5)
    assert train_rows[-1]["lr"] == 0.0
    assert [row["step"] for row in rows(reference, "val")] == [0, 10, 20]
    assert (reference / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_loss_falls_from_a_uniform_guess(reference: Path) -> None:
    assert rows(reference, "val")[0]["loss"] == pytest.approx(np.log(VOCAB), abs=0.1)
    assert rows(reference, "val")[-1]["loss"] < rows(reference, "val")[0]["loss"] - 0.7


def test_losses_are_the_same_for_every_world_size_and_micro_batch(data: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    train(data, one, eval__every=20)
    for processes, micro in ((2, 2), (1, 16)):
        other = tmp_path / f"{processes} {micro}"
        train(data, other, processes, data__micro_batch_size=micro, eval__every=20)
        assert losses(other) == pytest.approx(losses(one), abs=1e-5)
        for ours, theirs in zip(rows(other, "val"), rows(one, "val"), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
            assert ours["tokens"] == theirs["tokens"]


def test_dropout_too_is_the_same_on_two_processes(data: Path, tmp_path: Path, reference: Path) -> None:
    train(data, tmp_path / "two", 2, model__dropout=0.1)
    assert losses(tmp_path / "two") == pytest.approx(losses(reference), abs=1e-5)


def start_training(data: Path, run: Path, **changes: object) -> subprocess.Popen:
    return start_command("python", SCRIPT, *settings(data, run, **changes))


def wait_for(process: subprocess.Popen, text: str) -> None:
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f"ended with {process.wait()} before {text!r}")


def test_a_stopped_run_has_saved_exits_0_and_resumes(data: Path, tmp_path: Path, reference: Path) -> None:
    """By a signal (each of them: test_stop_request.py), then by a STOP file."""
    run, changes = tmp_path / "stopped", {"model__dropout": 0.1, "eval__every": 10}
    for fault, step, reason in (("SIGTERM", 6, "SIGTERM"), ("STOP", 11, "a STOP file")):
        train(data, run, fault=f"{fault}@{step}:0", **changes)
        assert not (run / "DONE").exists()
        assert not (run / "STOP").exists()
        assert (run / "checkpoints" / f"step_{step:08d}").exists()
        assert rows(run, "event")[-1]["event"].startswith(f"stopped by {reason};")
    train(data, run, **changes)
    assert (run / "DONE").exists()
    assert losses(run) == losses(reference)
    assert_same_weights(run, reference)


@pytest.mark.parametrize("ignored", [False, True], ids=["", "nohup"])
def test_a_closed_terminal_ends_the_run_saved_unless_nohup_ignores_it(
    data: Path, tmp_path: Path, ignored: bool
) -> None:
    """torchrun on a terminal that goes away: it hands the SIGHUP on, unless told not to; what is printed is EIO."""
    run, kept = tmp_path / "run", ["--signals-to-handle=SIGINT,SIGTERM"] if ignored else []
    steps = 20 if ignored else 100_000
    torchrun = ("python", "-m", "torch.distributed.run", *kept, "--standalone", "--nproc_per_node=2")
    master, terminal = os.openpty()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)  # which a child inherits
    words = settings(data, run, log__every=1, train__max_steps=steps)
    process = start_command(*torchrun, SCRIPT, *words, stdout=terminal, stderr=terminal)
    signal.signal(signal.SIGHUP, before)
    os.close(terminal)
    printed = b""
    while b"5/%d |" % steps not in printed:
        printed += os.read(master, 1 << 16)
    os.close(master)
    process.send_signal(signal.SIGHUP)
    process.wait()
    assert (run / "DONE").exists() == ignored
    last = int(next((run / "checkpoints").iterdir()).name.removeprefix("step_"))
    assert last == 20 if ignored else "SIGHUP" in rows(run, "event")[-1]["event"] and last >= 5


def test_a_stop_during_an_evaluation_does_not_wait_for_its_end(data: Path, tmp_path: Path) -> None:
    """Of 1,000 batches; it is abandoned, and run again (a shorter one) after the next start."""
    run, long = tmp_path / "run", write_shards(tmp_path / "long", sizes=(), val=32_001)
    changes = {"eval__every": 2, "data__micro_batch_size": 1}
    process = start_training(data, run, eval__val_tokens=32_000, data__val=long / "tiny_val_000000.bin", **changes)
    wait_for(process, "step  2/20")
    (run / "STOP").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopped by a STOP file" in output
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000002"]
    assert [row["step"] for row in rows(run, "val")] == [0]
    train(data, run, **changes)
    assert [row["step"] for row in rows(run, "val")] == list(range(0, 21, 2))


def test_resuming_on_another_number_of_processes(data: Path, tmp_path: Path) -> None:
    """On two processes with another micro-batch, after 10 or 20 steps on one; dropout too is that of the windows, and a
    window's source that of its number. The second time it is the modern architecture with Muon."""
    changes = {"train__max_steps": 60, "checkpoint__every": 10}
    for name, dropout, micro in (("plain", 0.0, 2), ("dropout, sources and the modern recipe", 0.1, 4)):
        run, reference = tmp_path / name, tmp_path / f"{name} reference"
        modern = {"model__architecture": "modern", "optim__optimizer": "muon"}
        changes |= modern | two_sources(data) if dropout else {}
        train(data, reference, model__dropout=dropout, **changes)
        assert attempt(data, run, fault="SIGKILL@25:0", model__dropout=dropout, **changes).returncode == -signal.SIGKILL
        train(data, run, 2, model__dropout=dropout, data__micro_batch_size=micro, **changes)
        assert [row["step"] for row in rows(run, "train")] == list(range(1, 61))
        assert losses(run) == pytest.approx(losses(reference), abs=1e-5)


COUNTED = """
from torch._dynamo.utils import counters
from train import train_gpt2
train_gpt2.main()
print("graphs:", counters["stats"]["unique_graphs"], "breaks:", dict(counters["graph_break"]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_once_with_evaluation_hellaswag_and_samples_between_the_steps(tmp_path: Path) -> None:
    """One process and two, which share the evaluations, compile one graph each, from a cold cache: ranks that compile
    at different speeds once hung at their end. The losses are those of a run that is not compiled. A minute.

    The data is BPE text, so that HellaSwag and samples have their tokens.
    """
    data = tmp_path / "data"
    data.mkdir()
    text = (ROOT / "train" / "model" / "gpt.py").read_text() * 6
    tokens = np.array(GPT2Tokenizer().encode(text), dtype=np.uint16)
    write_shard(data / "tiny_train_000001.bin", tokens)
    write_shard(data / "tiny_val_000000.bin", tokens[:3000])
    tasks = data / "hellaswag_val.jsonl"  # relative to where the runs start
    endings = ["sits down.", "runs away from the camera.", "eats it.", "is a dog"]
    task = {"activity_label": "Fun", "endings": endings}
    lines = [json.dumps({"ind": i, "ctx": f"Number {i} of them", "label": i % 4, **task}) for i in range(11)]
    tasks.write_text("\n".join(lines))
    (tmp_path / "counted.py").write_text(COUNTED)
    changes = {
        "model__vocab_size": 50257,
        "model__n_layer": 1,  # half the time to compile
        "train__max_steps": 6,
        "eval__every": 3,
        "eval__hellaswag_every": 3,
        "eval__sample_every": 3,
        "eval__sample_tokens": 40,
        "checkpoint__every": 3,
    }
    runs = {processes: tmp_path / f"{processes} processes" for processes in (1, 2)}
    for processes, run in runs.items():
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [*torchrun, tmp_path / "counted.py", *settings(data, run, **changes, train__compile="true")]
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled"), "PYTHONPATH": str(ROOT)}
        result = run_command("python", *command, cwd=tmp_path, **cache)
        assert result.returncode == 0, result.stdout + result.stderr
        assert result.stdout.count("graphs: 1 breaks: {}") == processes, result.stdout
    one, two = runs.values()
    train(data, tmp_path / "eager", **changes)
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    assert losses(tmp_path / "eager") == pytest.approx(losses(one), abs=1e-4)
    for kind, steps in (("val", [0, 3, 6]), ("hellaswag", [3, 6]), ("sample", [3, 6])):
        assert [row["step"] for row in rows(one, kind)] == steps
    for ours, theirs in zip(rows(two, "hellaswag"), rows(one, "hellaswag"), strict=True):
        assert ours["tasks"] == theirs["tasks"] == 11
        assert ours["acc"] == theirs["acc"]
    assert all(row["text"].startswith("Hello, I'm a language model,") for row in rows(one, "sample"))
    assert all(len(row["text"]) > 60 for row in rows(one, "sample"))


def test_a_stop_at_the_last_step_leaves_its_evaluation_to_the_next_start(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(data, run, fault="SIGTERM@20:0", eval__every=20)
    assert not (run / "DONE").exists()
    assert [row["step"] for row in rows(run, "val")] == [0]
    train(data, run, eval__every=20)
    assert (run / "DONE").exists()
    assert [row["step"] for row in rows(run, "val")] == [0, 20]


def test_a_character_run_leaves_out_what_it_has_no_characters_for(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be\n" * 400)
    made = run_command(
        "python", ROOT / "prepare" / "shakespeare.py", "--level", "char", "--input", text, "--out", tmp_path / "d"
    )
    assert made.returncode == 0, made.stderr
    changes = {
        "data__train": f"{tmp_path}/d/*_train_*.bin",
        "data__val": f"{tmp_path}/d/*_val_*.bin",
        "eval__every": 10,
        "eval__sample_every": 10,
    }
    foreign = train(tmp_path, tmp_path / "run", **changes)
    assert "no sample while training" in foreign.stdout
    assert "the character 'H'" in foreign.stdout
    train(tmp_path, tmp_path / "own", **changes, eval__sample_prompt="to be")
    assert all(row["text"].startswith("to be") for row in rows(tmp_path / "own", "sample"))
    assert len(rows(tmp_path / "own", "sample")) == 2


def test_ranks_that_see_different_data_are_refused(data: Path, tmp_path: Path) -> None:
    """Each rank is started by hand, with shards of its own."""
    other = write_shards(tmp_path / "other", sizes=(6000, 5000))
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = []
    for rank, folder in enumerate((data, other)):
        world |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(start_command("python", SCRIPT, *settings(folder, tmp_path / "run"), **world))
    errors = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [1, 1]
    assert "error: the processes see different checkpoints or data" in errors[0]


def test_gradients_that_stay_infinite_end_the_run_and_keep_the_last_good_checkpoint(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = run_command(
        "python",
        SCRIPT,
        *settings(data, run, optim__max_lr=1e30, optim__warmup_steps=0, checkpoint__every=1),
    )
    assert "5 steps in a row had a non-finite loss or gradient" in one_line_error(result)
    assert [row["in_a_row"] for row in rows(run, "event") if "not finite" in row["event"]] == [1, 2, 3, 4, 5]
    for tensor in final_weights(run).values():
        assert torch.isfinite(tensor).all()


def torchruns_error(result: subprocess.CompletedProcess) -> str:
    """The one line of ours, above torchrun's own report."""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "]: Traceback" not in result.stderr  # as torchrun writes a rank's
    return line


def test_a_rank_whose_gradient_is_not_a_number_makes_all_of_them_skip_the_step(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run", 2, fault="nan@7:1")
    events = rows(tmp_path / "run", "event")
    assert [row["step"] for row in events if "not finite" in row["event"]] == [7]
    train_rows = rows(tmp_path / "run", "train")
    assert [row["step"] for row in train_rows] == list(range(1, 21))
    assert [row["step"] for row in train_rows if row["grad_norm"] is None] == [7]
    assert (tmp_path / "run" / "DONE").exists()


def test_a_rank_whose_parameters_have_drifted_is_named_and_nothing_of_it_is_saved(data: Path, tmp_path: Path) -> None:
    for drift, every, found, saved in ((7, 4, 8, 4), (97, 96, 100, 96)):  # before a checkpoint, or every 100 steps
        run, changes = tmp_path / str(drift), {"checkpoint__every": every, "train__max_steps": 101}
        result = attempt(data, run, 2, fault=f"drift@{drift}:1", **changes)
        assert result.returncode == 1
        message = f"error: after step {found} the parameters differ: rank 1 against the others: nothing is saved"
        assert message in torchruns_error(result)
        assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step_{saved:08d}"]


def test_a_rank_that_hangs_is_named_with_the_step(data: Path, tmp_path: Path) -> None:
    result = attempt(data, tmp_path / "run", 2, fault="hang@7:1", train__timeout_seconds=5)
    assert result.returncode == 1
    message = "did not arrive at step 7 within 5 s (train.timeout_seconds)"
    assert message in torchruns_error(result)
    assert "error: rank 1 (" in torchruns_error(result)


def test_a_rank_that_stands_still_is_named(data: Path, tmp_path: Path) -> None:
    changes = {"train__timeout_seconds": 5, "train__max_steps": 1_000_000}
    torchrun = ("python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    process = start_command(*torchrun, SCRIPT, *settings(data, tmp_path / "run", **changes))
    wait_for(process, "step       5/")
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    ranks = {rank_of(int(pid)): int(pid) for pid in children}
    os.kill(ranks["1"], signal.SIGSTOP)
    errors = []
    for line in process.stdout:
        if line.startswith("error: "):
            errors.append(line)
            os.kill(ranks["1"], signal.SIGKILL)  # torchrun would wait half a minute for it
    assert process.wait() == 1
    assert len(errors) == 1
    assert errors[0].startswith("error: rank 1 (")
    assert "(train.timeout_seconds), and sends no heartbeat" in errors[0]


def rank_of(pid: int) -> str | None:
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(variable.split("=", 1) for variable in variables if "=" in variable).get("RANK")


def test_when_a_rank_dies_the_others_end_in_one_line_and_the_run_resumes(data: Path, tmp_path: Path) -> None:
    run, changes = tmp_path / "run", {"model__dropout": 0.1, "checkpoint__every": 4}
    result = attempt(data, run, 2, fault="SIGKILL@11:1", **changes)
    assert result.returncode == 1
    assert "another process of this run is gone, or hangs" in torchruns_error(result)
    train(data, run, 2, **changes)
    train(data, tmp_path / "uninterrupted", 2, **changes)
    assert losses(run) == losses(tmp_path / "uninterrupted")
    assert_same_weights(run, tmp_path / "uninterrupted")


def test_changed_settings_are_an_event_and_other_data_is_refused(data: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", write_shards(tmp_path / "other", sizes=(4000,))
    train(data, run, train__max_steps=10)
    train(data, run, train__max_steps=14, optim__max_lr=5e-3)
    (event,) = [row for row in rows(run, "event") if row["event"].startswith("changed")]
    assert event["step"] == 10
    assert event["event"] == "changed: optim.max_lr 0.01 (now 0.005), train.max_steps 10 (now 14)"
    refused = one_line_error(attempt(other, run, train__max_steps=20, optim__max_lr=5e-3))
    assert "data.shards 3 (now 1), data.tokens 14001 (now 4000), data.sha256" in refused
    assert "--train.init_from" in refused


def test_a_run_starts_from_another_models_weights_and_is_resumed_with_its_own(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "random"
    save_random_gpt2(folder, n_layer=1, n_head=2, n_embd=16, n_positions=32)
    shape = {"model__n_layer": 1, "model__n_embd": 16, "model__vocab_size": 50257}
    changes = {**shape, "train__init_from": folder, "eval__every": 1, "checkpoint__every": 1}
    windows = list(validation_batches(Windows([data / "tiny_val_000000.bin"], 32, 50257), 2048, 64))
    nll, tokens = sum_loss(load_hf(folder), windows, "cpu")
    started = train(data, tmp_path / "run", train__max_steps=1, **changes)
    assert "initial weights: random" in started.stdout
    assert rows(tmp_path / "run", "val")[0]["loss"] == pytest.approx(nll / tokens, abs=1e-4)
    resumed = train(data, tmp_path / "run", train__max_steps=2, **changes)
    assert "initial weights" not in resumed.stdout
    assert "resumed at step 1" in resumed.stdout
    assert "another shape" in one_line_error(attempt(data, tmp_path / "other", train__init_from=folder))


def test_a_second_epoch_is_an_event(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(data, run, train__max_steps=60)
    assert "60 steps of 512 tokens are 2.20 epochs" in result.stdout
    epochs = [row for row in rows(run, "event") if "epoch" in row]
    assert [(row["step"], row["epoch"]) for row in epochs] == [(28, 2), (55, 3)]


def test_tokens_and_epochs_of_each_source_are_printed_and_logged_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("train.run.stop_request.signal.signal", lambda *_: None)
    trainer = tiny_trainer(tmp_path, train=TrainConfig(max_steps=3000, compile=False))
    shards = sorted((tmp_path / "shards").glob("*_train_*"))
    sources = DataConfig(train={"web": SourceConfig("", 3), "code": SourceConfig("", 1)})
    mixture = Mixture({"web": shards[:1], "code": shards[1:]}, sources, trainer.config.model, seed=1)
    print_summary(trainer)
    trainer.loader = replace(trainer.loader, mixture=mixture)
    print_summary(trainer)
    plain, code, web, again = [row["event"] for row in rows(tmp_path, "event")]
    assert "data:  14,001 tokens in 3 shards; 3,000 steps of 524,288 tokens are 6.86 epochs" in capsys.readouterr().out
    assert plain.startswith("warning: source data.train is read 6.9 times")
    assert code == "source code: 8,001 tokens in 2 shards; 3,000 steps read 24,000, 3.00 epochs"
    assert web == "source web: 6,000 tokens in 1 shards; 3,000 steps read 72,000, 12.02 epochs"
    assert again.startswith("warning: source web is read 12.0 times")


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"data__train": "none/*.bin"}, 1, "no token shards match"),
        ({"data__val": "none/*.bin", "eval__every": 10}, 1, "no token shards match"),
        ({"data__batch_tokens": 500}, 2, "take 384 or 512"),
    ],
)
def test_mistakes_end_in_one_line(data: Path, tmp_path: Path, changes: dict, status: int, message: str) -> None:
    assert message in one_line_error(attempt(data, tmp_path / "run", **changes), status)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_two_runs_in_one_directory(data: Path, tmp_path: Path) -> None:
    process = start_training(data, tmp_path / "run", train__max_steps=100_000)
    wait_for(process, "step      3/")
    result = run_command("python", SCRIPT, *settings(data, tmp_path / "run"))
    assert f"in use by process {process.pid}" in one_line_error(result)
    process.kill()
    process.communicate()


def test_nanogpts_header_less_files_train(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "d")
    open_shard(shards / "tiny_train_000001.bin").tofile(tmp_path / "train.bin")
    open_shard(shards / "tiny_val_000000.bin").tofile(tmp_path / "val.bin")
    changes = {"data__train": tmp_path / "train.bin", "data__val": tmp_path / "val.bin", "train__max_steps": 2}
    train(shards, tmp_path / "run", eval__every=2, **changes)
    assert rows(tmp_path / "run", "val")[-1]["tokens"] == 2048


def test_slurms_time_limit_stops_the_run_though_one_rank_alone_looks_at_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 60))
    result = train(data, tmp_path / "run", 2, checkpoint__margin_seconds=120)
    assert "stopped by Slurm's time limit" in result.stdout
    assert not (tmp_path / "run" / "DONE").exists()
    assert [row["step"] for row in rows(tmp_path / "run", "train")] == [1]


@pytest.mark.parametrize(("optimizer", "processes"), [("adamw", 2), ("muon", 1)])
def test_a_sharded_optimizer_makes_the_same_run_also_after_a_kill(
    data: Path, tmp_path: Path, optimizer: str, processes: int
) -> None:
    """15 seconds. On one process there is nothing to shard: the state is put together again. Muon's always is."""
    run, changes = tmp_path / "sharded", {"checkpoint__every": 4, "optim__optimizer": optimizer}
    sharded = {"train__shard_optimizer": str(optimizer == "adamw").lower()}
    assert attempt(data, run, 2, fault="SIGKILL@11:1", **sharded, **changes).returncode == 1
    result = train(data, run, processes, **sharded, **changes)
    assert "resumed at step 8" in result.stdout
    train(data, tmp_path / "plain", 2, **changes)
    assert losses(run) == pytest.approx(losses(tmp_path / "plain"), abs=1e-4)
    for name, weights in final_weights(tmp_path / "plain").items():
        torch.testing.assert_close(final_weights(run)[name], weights, atol=1e-4, rtol=0, msg=name)
