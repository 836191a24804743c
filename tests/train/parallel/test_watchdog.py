"""Who is missing when the ranks stop moving together. That it ends the run: tests/train/test_train_gpt2.py."""

import threading
import time

import torch.distributed as dist

from train.parallel.watchdog import Watchdog


def watches(size: int = 3) -> list[Watchdog]:
    """Watches over one store, whose threads have ended: there is no process group."""
    store = dist.HashStore()
    return [Watchdog(store, rank, size, seconds=0.5) for rank in range(size)]


def missing(asking: Watchdog, living: list[Watchdog]) -> tuple[set[int], str] | None:
    """What `asking` finds while the threads of `living` count on."""
    ended = threading.Event()

    def count_on() -> None:
        while not ended.is_set():
            for watch in living:
                watch.store.add(f"alive/{watch.rank}", 1)
            time.sleep(0.01)

    thread = threading.Thread(target=count_on)
    thread.start()
    found = asking._missing()
    ended.set()
    thread.join()
    return found


def test_nobody_is_missing_while_a_long_step_takes_all_of_them() -> None:
    ranks = watches()
    for watch in ranks:
        watch.arrived(7)
    assert missing(ranks[0], ranks[1:]) is None


def test_a_rank_that_lives_but_does_not_arrive_is_named_with_the_step() -> None:
    ranks = watches()
    for watch in ranks:
        watch.arrived(7)
    ranks[0].arrived(8)
    ranks[2].arrived(8)
    late, line = missing(ranks[0], ranks[1:])
    assert late == {1}
    assert line.startswith("rank 1 (")
    assert "did not arrive at step 8 within 0.5 s (train.timeout_seconds): see to that machine" in line
    ranks[1].arrived(8)
    ranks[1].arrived()
    late, line = missing(ranks[1], [ranks[0], ranks[2]])
    assert late == {0, 2}
    assert "did not arrive at the end of step 8" in line


def test_a_rank_that_is_silent_is_named_though_it_had_arrived() -> None:
    ranks = watches()
    for watch in ranks:
        watch.arrived(7)
    late, line = missing(ranks[0], [ranks[1]])
    assert late == {2}
    assert "is not heard of any more" in line
