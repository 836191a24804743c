"""How processes find each other, also where others died before them. Real ones: tests/end_to_end/test_torture.py."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from prepare.common.cli import UserError
from tests.helpers.commands import free_port
from train.parallel.world import meet, start

LONG, SHORT = timedelta(seconds=60), timedelta(seconds=0.3)


def start_all(store: dist.Store, size: int, late: int | None = None) -> list[dist.Store]:
    """What each of `size` ranks, one of which may come late, takes for the part of the store that is theirs."""

    def rank(number: int) -> dist.Store:
        if number == late:
            time.sleep(0.3)
        return meet(store, number, size, LONG)

    with ThreadPoolExecutor(size) as ranks:
        return list(ranks.map(rank, range(size)))


@pytest.mark.parametrize("size", [2, 3])
def test_each_start_has_a_part_of_the_store_of_its_own(size: int) -> None:
    store, starts = dist.HashStore(), []
    for number, late in enumerate([None, *range(size), None]):  # restarts, each rank the last one once
        ours = start_all(store, size, late)
        ours[0].set("address", str(number))
        assert {part.get("address") for part in ours} == {str(number).encode()}
        assert not any(part.get("address") == str(number).encode() for part in starts)
        starts.append(ours[-1])


@pytest.mark.parametrize("rank", [0, 1])
def test_nobody_waits_for_ever_nor_goes_with_the_dead(rank: int) -> None:
    store = dist.HashStore()
    for _ in range(2):  # alone at first, then where two have met and died
        with pytest.raises(UserError, match=r"not all of the 2 processes came within 0.3 s: see that all"):
            meet(store, rank, 2, SHORT)
        start_all(store, 2)


def test_those_who_were_killed_while_they_met_are_not_waited_for() -> None:
    """Of three, rank 2 is gone before it has seen the others, and these before they have seen it."""
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as ranks:
        ends = [ranks.submit(meet, store, rank, 3, SHORT) for rank in range(2)]  # rank 2 never comes
        assert all(isinstance(end.exception(), UserError) for end in ends)
    with pytest.raises(UserError):
        meet(store, 2, 3, SHORT)
    assert len(start_all(store, 3, late=0)) == 3


@pytest.mark.parametrize(("asked", "threads"), [("1", [3]), ("2", []), (None, [])])
def test_processes_on_cpus_share_the_cores_out_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, threads: list[int]
) -> None:
    """7 cores for 2 processes. OMP_NUM_THREADS 1 is what torchrun sets where nobody else has."""
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    taken = []
    monkeypatch.setattr("train.parallel.world.available_cores", lambda: 7)
    monkeypatch.setattr("torch.set_num_threads", taken.append)
    start("cpu")
    assert taken == threads


def test_a_store_that_nobody_keeps_is_a_mistake_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1, started by hand, without rank 0. 2 s."""
    variables = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for key, value in {**variables, "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("train.parallel.world.timedelta", lambda **_: timedelta(seconds=1))
    with pytest.raises(UserError, match=r"do not find each other \(.*timed out.*\): see that all of them start"):
        start("cpu")
