"""One step of learning, against the step that the run itself then took."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eval.views.learning_step import learning_step
from eval.views.subject import Subject, Unavailable
from tests.helpers.tiny import rows, tiny_trainer
from train.config.pretrain import CheckpointConfig, DataConfig, OptimConfig, TrainConfig
from train.run.checkpoint import all_checkpoints
from train.weights.load_model import load_model


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_step_is_the_one_that_the_run_takes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    monkeypatch.setattr("train.run.stop_request.signal.signal", lambda *_: None)
    trainer = tiny_trainer(
        tmp_path,
        data=DataConfig(train=str(tmp_path / "shards" / "*_train_*"), batch_tokens=32),
        optim=OptimConfig(optimizer=optimizer, max_lr=0.01, warmup_steps=1, schedule="linear", grad_clip=0.5),
        train=TrainConfig(max_steps=5, compile=False, seed=1, precision="fp32", device="cpu"),
        checkpoint=CheckpointConfig(every=1, keep=9),
    )
    trainer.train(lambda _step: False)
    trainer.log.close()

    def subject(number: int) -> Subject:
        return Subject(loaded[number], torch.arange(3))

    checkpoints = all_checkpoints(tmp_path)
    loaded = [load_model(str(path)) for path in checkpoints]
    models = [each.model for each in loaded]
    untouched = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for number in (1, 3):  # after steps 2 and 4
        seeded = torch.random.get_rng_state()
        before, after = (dict(models[i].named_parameters()) for i in (number, number + 1))
        found = learning_step(subject(number))
        (row,) = (row for row in rows(tmp_path, "train") if row["step"] == number + 2)
        assert found["before"] == pytest.approx(row["loss"], abs=1e-5)
        assert found["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-4)
        assert found["lr"] == pytest.approx(row["lr"] or 0.0025)  # the last step's is 0
        assert found["ends"] == (row["lr"] == 0)
        assert found["after"] < found["before"]
        sums = [part["gradient"] ** 2 for part in found["matrices"]]
        assert sum(sums) ** 0.5 == pytest.approx(row["grad_norm"], rel=1e-4)
        assert torch.equal(torch.random.get_rng_state(), seeded)
        if row["lr"]:
            changes = {(part["layer"], part["name"]): part["change"] for part in found["matrices"]}
            for name in ("wte", "wpe", "h.0.attn.c_attn", "h.0.mlp.c_proj"):
                old, new = before[f"{name}.weight"], after[f"{name}.weight"]
                key = (0, name.removeprefix("h.0.")) if name.startswith("h.") else (None, name)
                assert changes[key] == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-3)
            vectors = [name for name in before if name.startswith("h.") and before[name].dim() == 1]
            old, new = (torch.cat([each[name] for name in vectors]) for each in (before, after))
            assert changes[0, "biases and norms"] == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-3)

    finished = learning_step(subject(-1))
    assert finished["ends"]
    assert finished["lr"] > 0
    assert finished["before"] != finished["after"]
    assert untouched == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for model, path in zip(models, checkpoints, strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(model.parameters(), load_model(str(path)).model.parameters(), strict=True)
        )

    with pytest.raises(Unavailable, match="checkpoint of a run"):
        learning_step(Subject(replace(loaded[0], checkpoint=None), torch.arange(3)))
    for missing, reason in (
        ((tmp_path / "shards" / "tiny_train_000001.bin"), "shards are other"),
        (checkpoints[0] / "train_state.pt", r"train_state\.pt"),
    ):
        missing.unlink()
        with pytest.raises(Unavailable, match=reason):
            learning_step(subject(0))
