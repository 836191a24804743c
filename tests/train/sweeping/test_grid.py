"""The grid of a sweep: how it is split, named, and compared with runs that are there."""

from pathlib import Path

import pytest
import yaml

from prepare.common.cli import ArgumentError, UserError
from train.config.parsing import plain_config, save_config
from train.sweeping.grid import check_existing, format_value, parse_axis, plan_runs, short_key, split_outside_brackets

QUICKSTART = Path(__file__).resolve().parents[3] / "configs" / "quickstart.yaml"


def test_values_are_split_at_commas_outside_brackets_and_joined_keys_at_plus() -> None:
    assert split_outside_brackets("[],[rotary],[rotary,softcap]") == ["[]", "[rotary]", "[rotary,softcap]"]
    assert split_outside_brackets("{web: {files: a, weight: 1}},b") == ["{web: {files: a, weight: 1}}", "b"]
    assert [dict(pairs) for pairs in parse_axis("model.n_layer+model.n_embd=3+128,4+192")] == [
        {"model.n_layer": "3", "model.n_embd": "128"},
        {"model.n_layer": "4", "model.n_embd": "192"},
    ]
    assert parse_axis("optim.eps=1e+3") == [(("optim.eps", "1e+3"),)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2e-3, "0.002"),
        (1e-5, "1e-05"),
        (1 / 3, "0.3333333333333333"),
        (1.0, "1"),
        (False, "false"),
        ((0.9, 0.95), "[0.9,0.95]"),
        ([], "[]"),
        (["rotary", "softcap"], "[rotary,softcap]"),
        ("runs/../a*b", "runs%2F..%2Fa%2Ab"),
    ],
)
def test_a_value_has_one_form_that_a_folder_can_bear(value: object, text: str) -> None:
    assert format_value(value) == text


def test_a_key_that_several_sections_have_is_named_in_full() -> None:
    assert (short_key("optim.max_lr"), short_key("eval.every")) == ("max_lr", "eval.every")


def test_every_setting_with_every_seed_is_a_run_and_equal_values_are_one(tmp_path: Path) -> None:
    grid = ["optim.max_lr=2e-3,0.002", "model.n_layer+model.n_embd=3+64,4+128", "optim.betas=[0.9,0.95]"]
    runs = plan_runs(QUICKSTART, grid, 2, tmp_path)
    assert len(runs) == 4
    assert runs[0].name == "max_lr=0.002,n_layer=3,n_embd=64,betas=[0.9,0.95],seed=1"
    assert runs[2].name == runs[0].name.replace("seed=1", "seed=2")  # the seeds after the settings
    assert runs[0].path == tmp_path / runs[0].name
    last = runs[-1].config
    assert (last.optim.max_lr, last.model.n_layer, last.model.n_embd, last.train.seed) == (2e-3, 4, 128, 2)
    assert runs[-1].words[-2:] == ["--optim.betas=[0.9,0.95]", "--train.seed=2"]


@pytest.mark.parametrize(
    ("grid", "named"),
    [
        ("optim.max_lrr=1", "optim.max_lrr"),
        ("optim.max_lr=fast", "(?s)optim.max_lr.*fast"),
        ("optim.max_lr=-1", "optim.max_lr is -1"),
        ("optim.max_lr", "KEY=A,B"),
        ("max_lr=1", "KEY=A,B"),
        ("model.n_layer+model.n_embd=3+128,4", "model.n_layer.*4 has 1 values"),
        ("train.seed=1,2", "train.seed.*--seeds"),
        ("eval.every=0", "eval.every is 0"),
    ],
)
def test_a_mistake_in_the_grid_is_named(grid: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=named):
        plan_runs(QUICKSTART, [grid], 1, tmp_path)


def test_a_run_that_is_there_must_have_the_configuration_that_is_asked_for(tmp_path: Path) -> None:
    """Paths may be spelled from another folder, and older configurations lack keys."""
    [run] = plan_runs(QUICKSTART, ["optim.max_lr=1e-3"], 1, tmp_path)
    run.path.mkdir()
    check_existing([run])  # nothing there
    theirs = plain_config(run.config)
    del theirs["optim"]["eps"]
    theirs["model"]["vocab_size"] = 4096
    theirs["data"]["train"] = f"/elsewhere/{theirs['data']['train']}"
    theirs["run"]["dir"] = "../other"
    theirs["log"]["every"] = theirs["checkpoint"]["every"] = theirs["data"]["micro_batch_size"] = 7
    (run.path / "config.yaml").write_text(yaml.safe_dump(theirs))
    check_existing([run])
    for key, value in (("train.max_steps", 9), ("data.val", "data/web/*_val_*.bin")):
        section, name = key.split(".")
        changed = {**theirs, section: {**theirs[section], name: value}}
        (run.path / "config.yaml").write_text(yaml.safe_dump(changed))
        with pytest.raises(UserError, match=f"{key} .*{value}".replace("*_", r"\*_").replace("*.bin", r"\*.bin")):
            check_existing([run])
    save_config(run.config, run.path / "config.yaml")
    check_existing([run])
