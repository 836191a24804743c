"""Which rank the watchdog names. That it ends the run: tests/train/test_train_gpt2.py."""

import torch.distributed as dist

from train.parallel.watchdog import Watchdog


def watchdogs(*steps: int) -> list[Watchdog]:
    """Watchdogs of ranks that have arrived at these steps, whose threads have ended: there is no process group."""
    store = dist.HashStore()
    ranks = [Watchdog(store, rank, len(steps), seconds=0.5) for rank in range(len(steps))]
    for watchdog, last in zip(ranks, steps, strict=True):
        for step in range(1, last + 1):
            watchdog.record_arrival(step)
    return ranks


def find_missing(asking: Watchdog, alive: list[Watchdog]) -> tuple[set[int], str] | None:
    """What `asking` finds while it and `alive` send heartbeats."""

    def send_heartbeats() -> None:
        for watchdog in (asking, *alive):
            watchdog.store.add(f"alive/{watchdog.rank}", 1)

    asking._send_heartbeat = send_heartbeats
    return asking._find_missing()


def test_a_long_step_of_all_ranks_does_not_end_the_run() -> None:
    ranks = watchdogs(7, 7, 7)
    assert find_missing(ranks[0], ranks[1:]) is None


def test_a_living_rank_that_does_not_arrive_is_named_with_the_step() -> None:
    ranks = watchdogs(8, 7, 8)
    late, message = find_missing(ranks[0], ranks[1:])
    assert late == {1}
    assert message.startswith("rank 1 (")
    assert "did not arrive at step 8 within 0.5 s (train.timeout_seconds): " in message
    ranks[1].record_arrival(8)
    ranks[1].record_arrival()
    late, message = find_missing(ranks[1], [ranks[0], ranks[2]])
    assert late == {0, 2}
    assert "did not arrive at the end of step 8" in message


def test_a_rank_without_heartbeat_is_named_though_it_had_arrived() -> None:
    ranks = watchdogs(7, 7, 7)
    late, message = find_missing(ranks[0], [ranks[1]])
    assert late == {2}
    assert "sends no heartbeat" in message
