"""What every training script does before its loop and after it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from prepare.common.cli import UserError
from train.parallel.compile_ddp import compiler_errors
from train.parallel.device import is_out_of_memory
from train.parallel.world import World, is_lost_connection, shut_down_distributed
from train.run.run_dir import RunDir
from train.trainer.trainer import Training, run_steps


@contextmanager
def one_line_errors(micro_batch_size: int | str) -> Iterator[None]:
    """Say in one line that memory ran out, that another process is gone, or that nothing can be compiled here."""
    try:
        with compiler_errors("train.compile", "set train.compile false"):
            yield
    except (RuntimeError, MemoryError) as failure:
        if is_out_of_memory(failure):
            raise UserError(
                f"out of memory with data.micro_batch_size {micro_batch_size}: lower it (the batch stays the same, in "
                "more micro-batches), or take a smaller model"
            ) from None
        if is_lost_connection(failure):
            raise UserError(
                "another process of this run is gone, or hangs (the first error above, or its node's log, says why): "
                "the same command goes on from the last checkpoint"
            ) from None
        raise


def open_run(config: Any, world: World) -> RunDir | None:
    """The directory of the run; None, and said, if it is finished.

    Raises:
        UserError: it is in use, or the ranks do not see the same.
    """
    run = RunDir(config, world)
    if not world.all_equal(run.is_done):
        raise UserError(f"the processes do not see the same {run.path}: put run.dir on a file system that all share")
    if run.is_done:
        world.print(f"{run.path} is finished (DONE is there): eval/ scores it; another --run.dir starts a new run")
        return None
    return run


def changeable_settings(config: Any, **others: object) -> dict[str, object]:
    """The values that a run may go on with changed, and that its numbers depend on, by their keys: the optimizer's,
    train.max_steps, and `others` (with `__` for the dot)."""
    optim = {f"optim.{key}": value for key, value in asdict(config.optim).items()}
    rest = {key.replace("__", "."): value for key, value in others.items()}
    return {**optim, "optim.betas": list(config.optim.betas), "train.max_steps": config.train.max_steps, **rest}


def complete(t: Training) -> bool:
    """Train to the end, with everything saved; whether the run was stopped before. Alone from here on."""
    stopped = run_steps(t) and not t.monitor.finished
    t.run.beat(t.step, last=True)
    shut_down_distributed()
    if t.saver:
        t.saver.finish()
    return stopped


def close(t: Training, stopped: bool) -> None:
    """Say how the run ended, and mark it as finished if it is."""
    if stopped:
        t.log.event(t.step, f"stopped by {t.stop.reason()}; the same command goes on from here")
        t.stop.clear()
    else:
        t.log.sync()  # DONE counts on the rows, as a checkpoint does
        t.run.finish(max(t.step, t.config.train.max_steps))  # also a run that ends early
        t.world.print(f"finished {t.step} steps: {t.run.path}")
    t.log.close()
    t.stop.ignore()
