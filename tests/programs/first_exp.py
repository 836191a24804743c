"""How often a process's first exp differs from its second, when several threads make the first call at once.

    python -m tests.programs.first_exp 60              # seconds
    python -m tests.programs.first_exp 60 --warm-up    # after train.parallel.device.warm_up_math_kernels

Processes are forked from one that has imported torch and computed nothing, eight at a time; each computes exp of the
same 16,384 numbers twice, on eight threads, and compares. The cause is MKL (see warm_up_math_kernels).
"""

import argparse
import os
import time

import numpy as np
import torch

from train.parallel.device import warm_up_math_kernels

NUMBERS = torch.from_numpy(-3 * np.random.default_rng(0).random((256, 64), np.float32))
AT_A_TIME = 8


def differs(warm_up: bool) -> bool:
    """Whether this process's first exp differs from its second."""
    torch.set_num_threads(8)
    if warm_up:
        warm_up_math_kernels()
    first, second = NUMBERS.exp(), NUMBERS.exp()
    wrong = first != second
    if wrong.any():
        error = (first / second - 1).abs().max().item()
        print(f"{wrong.sum().item():,} of {NUMBERS.numel():,} numbers differ, by up to {error:.1e} of each", flush=True)
    return bool(wrong.any())


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the processes whose first exp differs from their second.")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--warm-up", action="store_true", help="call warm_up_math_kernels first")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    started = bad = running = 0
    while running or time.monotonic() < end:
        while running < AT_A_TIME and time.monotonic() < end:
            if os.fork() == 0:
                os._exit(differs(options.warm_up))
            started, running = started + 1, running + 1
        bad += os.wait()[1] != 0
        running -= 1
    print(f"{bad} of {started:,} processes, {'after' if options.warm_up else 'without'} warm_up_math_kernels")


if __name__ == "__main__":
    main()
