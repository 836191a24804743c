"""Draw the curves of one run, or of several in one picture."""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

from eval.common.curves import plot_runs
from eval.common.options import output_file
from prepare.common.cli import Parser, nonempty_path
from train.weights.load_model import newest_run


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Draw loss, learning rate, throughput and HellaSwag or accuracy of runs, from their metrics.jsonl.",
        "python eval/plot.py runs/quickstart --output curves.png",
    )
    parser.add_argument(
        "runs", nargs="*", type=nonempty_path, metavar="RUN", help="run directories; default: the newest run"
    )
    several = "picture; default: RUN/loss.png, or curves.png for several runs"
    parser.add_argument("--output", type=output_file, metavar="FILE", help=several)
    parser.add_argument("--over", choices=("tokens", "steps"), default="tokens", help="the horizontal axis")
    args = parser.parse_args(argv)

    runs = args.runs or [newest_run()]
    output = args.output or (runs[0] / "loss.png" if len(runs) == 1 else Path("curves.png"))
    print(plot_runs(runs, output, args.over))
