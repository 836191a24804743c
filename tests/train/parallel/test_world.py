"""How ranks find each other, also after others died. With real processes: tests/end_to_end/test_torture.py."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from prepare.common.cli import UserError
from tests.helpers.commands import free_port
from train.parallel.world import init_distributed, rendezvous

LONG, SHORT = timedelta(seconds=60), timedelta(seconds=0.3)


def start_all(store: dist.Store, size: int, late: int | None = None) -> list[dist.Store]:
    """The part of the store that each of `size` ranks gets; one of them may start late."""

    def start(rank: int) -> dist.Store:
        if rank == late:
            time.sleep(0.3)
        return rendezvous(store, rank, size, LONG)

    with ThreadPoolExecutor(size) as ranks:
        return list(ranks.map(start, range(size)))


@pytest.mark.parametrize("size", [2, 3])
def test_each_start_has_its_own_part_of_the_store(size: int) -> None:
    store, starts = dist.HashStore(), []
    for number, late in enumerate([None, *range(size), None]):  # restarts, each rank the last one once
        ours = start_all(store, size, late)
        ours[0].set("address", str(number))
        assert {part.get("address") for part in ours} == {str(number).encode()}
        assert not any(part.get("address") == str(number).encode() for part in starts)
        starts.append(ours[-1])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_alone_gives_up_and_does_not_join_dead_ones(rank: int) -> None:
    store = dist.HashStore()
    for _ in range(2):  # alone at first, then after two ranks have met and died
        with pytest.raises(UserError, match=r"not all of the 2 processes .* 0.3 s"):
            rendezvous(store, rank, 2, SHORT)
        start_all(store, 2)


def test_ranks_that_were_killed_during_the_rendezvous_are_not_waited_for() -> None:
    """Of three, rank 2 is gone before it has seen the others, and these before they have seen it."""
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as ranks:
        ends = [ranks.submit(rendezvous, store, rank, 3, SHORT) for rank in range(2)]  # rank 2 never comes
        assert all(isinstance(end.exception(), UserError) for end in ends)
    with pytest.raises(UserError):
        rendezvous(store, 2, 3, SHORT)
    assert len(start_all(store, 3, late=0)) == 3


@pytest.mark.parametrize(("omp_num_threads", "threads"), [("1", [3]), ("2", []), (None, [])])
def test_processes_on_cpus_divide_the_cores_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, omp_num_threads: str | None, threads: list[int]
) -> None:
    """7 cores for 2 processes. OMP_NUM_THREADS 1 is what torchrun sets where nobody else has."""
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    if omp_num_threads:
        monkeypatch.setenv("OMP_NUM_THREADS", omp_num_threads)
    taken = []
    monkeypatch.setattr("train.parallel.world.available_cores", lambda: 7)
    monkeypatch.setattr("torch.set_num_threads", taken.append)
    init_distributed("cpu")
    assert taken == threads


def test_a_missing_rank_0_is_a_mistake_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1, started by hand. 2 s."""
    variables = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for key, value in {**variables, "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("train.parallel.world.timedelta", lambda **_: timedelta(seconds=1))
    with pytest.raises(UserError, match=r"do not find each other \(.*timed out.*\): .* MASTER_ADDR"):
        init_distributed("cpu")
