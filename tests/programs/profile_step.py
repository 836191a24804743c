"""Inside our training step: a Chrome trace, the heaviest operations, and the all-reduce that nothing hides.

python tests/programs/profile_step.py trace.json --config configs/gpt2_124m.yaml
torchrun --standalone --nproc_per_node=2 tests/programs/profile_step.py trace.json    # with the all-reduce
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
import torch.distributed as dist

from prepare.common.cli import run_script
from tests.programs.step_speed import StepBench, median_ms
from train.config.pretrain import load_config
from train.parallel.world import init_distributed, shut_down_distributed

STEPS = 3


def main() -> None:
    trace, config = Path(sys.argv[1]), load_config(sys.argv[2:], "")
    world = init_distributed(config.train.device, config.train.timeout_seconds)
    with tempfile.TemporaryDirectory(prefix="profile_step_") as folder:
        bench = StepBench(config, world, Path(folder))
        bench.run(STEPS)
        if world.size > 1:
            world.print(f"all-reduce: {all_reduce(bench)}")
        profile(bench, trace)
    shut_down_distributed()


def all_reduce(bench: StepBench) -> str:
    """The all-reduce of the gradients alone, and how much of it the backward pass does not hide."""
    samples = bench.run(STEPS)
    gradients = torch.ones(bench.model.num_parameters(), device=bench.world.device)
    seconds = []
    for _ in range(7):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(gradients)
        gradients[0].item()
        seconds.append(time.perf_counter() - start)
    with bench.train_model.no_sync():  # ty: ignore[not-callable]
        without = median_ms(bench.run(len(samples)), "backward")
    return (
        f"{gradients.nbytes / 1e6:,.1f} MB of gradients in {1000 * statistics.median(seconds):,.1f} ms alone; "
        f"{median_ms(samples, 'backward') - without:,.1f} ms are not hidden by the backward pass, which takes "
        f"{without:,.1f} ms without it"
    )


def profile(bench: StepBench, path: Path) -> None:
    """Write a Chrome trace of one step, and print the ten heaviest operations."""
    with torch.profiler.profile() as record:
        bench.run(1)
    if bench.world.is_main:
        record.export_chrome_trace(str(path))
        key = "self_device_time_total" if bench.world.device.type == "cuda" else "self_cpu_time_total"
        print(record.key_averages().table(sort_by=key, row_limit=10, max_name_column_width=70))
        print(f"{path}: open it in chrome://tracing or https://ui.perfetto.dev")


if __name__ == "__main__":
    run_script(main)
