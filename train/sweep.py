"""Train a grid of settings with several seeds, and compare them in a table and a picture.

Each combination is an ordinary run of train/train_gpt2.py in OUT/NAME, which resumes after a kill and is skipped when
it is DONE. Each task writes OUT/sweep.md, sweep.json and sweep.png (eval/monitor/sweep_report.py) when its share of the
runs has ended.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__, unattended=True)  # imports this file as a module, runs its main, and exits

from eval.monitor.sweep_report import open_reference, write_report
from eval.monitor.sweep_results import read_results
from prepare.common.cli import Parser, UserError, nonempty_path, positive
from prepare.pipeline.options import array_task
from train.sweeping.runs import check_existing, plan_runs, train_runs


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Train every combination of a grid with several seeds, and compare them in a table and a picture.",
        "python train/sweep.py --config configs/quickstart.yaml --grid optim.max_lr=2e-3,4e-3,8e-3 --out runs/lr",
    )
    parser.add_argument("--config", type=nonempty_path, required=True, metavar="FILE", help="base configuration")
    parser.add_argument(
        "--grid",
        nargs="+",
        required=True,
        metavar="KEY=A,B",
        help="values of a key of the configuration, or of keys that change together, as in a ladder of sizes: "
        "model.n_layer+model.n_embd=3+128,4+192",
    )
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="train.seed 1 to N of each combination")
    parser.add_argument("--out", type=nonempty_path, required=True, metavar="DIR", help="folder of the runs")
    parser.add_argument("--task", type=array_task, default="1/1", metavar="I/N", help="every Nth run from the Ith")
    parser.add_argument(
        "--processes", type=positive, default=1, metavar="P", help="processes per run; above 1 uses torchrun"
    )
    parser.add_argument(
        "--reference",
        nargs="+",
        default=[],
        metavar="NAME",
        help="a setting of the table, or runs (their mean): show the tokens and seconds to its final loss",
    )
    args = parser.parse_args(argv)

    # Find mistakes before the first run starts
    runs = plan_runs(args.config, args.grid, args.seeds, args.out)
    check_existing(runs)
    if args.reference:
        open_reference(args.reference, read_results(runs))

    # Train this task's share, and report on the runs of all tasks
    args.out.mkdir(parents=True, exist_ok=True)
    index, count = args.task
    share = runs[index - 1 :: count]
    failed = train_runs(share, args.processes)
    if failed is None:
        return
    write_report(args.out, runs, args.reference)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(share)} runs failed ({', '.join(failed)}): the lines below the table say why, and "
            "the same command tries them again"
        )
