"""A file system without locks (Lustre without its option, some NFS): downloads, preparation and a model of the hub."""

import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.commands import ROOT, run_command
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.random_gpt2 import save_random_gpt2

SOURCE = ROOT.parent / "shared/cases/noflock.c"  # flock fails with FLOCK_ERRNO


@pytest.mark.skipif(not (shutil.which("cc") and SOURCE.exists()), reason=f"no C compiler, or no {SOURCE}")
def test_downloads_and_their_users_need_no_locks(tmp_path: Path) -> None:
    library, out = tmp_path / "noflock.so", tmp_path / "out"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    folder = tmp_path / "served/datasets/HuggingFaceFW/fineweb/sample/10BT"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"text": ["One.", "Two."]}), folder / "000_00000.parquet")
    save_random_gpt2(tmp_path / "served/models/someone/small", n_layer=1)
    with LoopbackHub(tmp_path / "served") as hub:
        # Linux's ENOTSUPP, which has no name in Python and which filelock does not know
        environment = hub.environment(tmp_path) | {"LD_PRELOAD": str(library), "FLOCK_ERRNO": "524"}
        for command in (
            ("prepare/fineweb.py", "--out", out, "--workers", 1),
            ("train/export_hf.py", "--model", "someone/small", "--output", tmp_path / "hf"),
        ):
            result = run_command("python", *command, fresh=True, **environment)
            assert result.returncode == 0, result.stderr
            assert ("this file system has no locks" in result.stderr) == (command[0] == "prepare/fineweb.py")
    assert (out / "manifest.json").exists()
