"""Draw the curves of one run, or of several on one picture."""

import sys
from pathlib import Path

if not __package__:  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.common.curves import plot_runs, read_metrics
from prepare.common.cli import RUNS, ArgumentError, Parser, UserError, nonempty_path, run_script
from train.run.metrics_log import METRICS


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Draw loss, learning rate, throughput and HellaSwag or accuracy of runs, from their metrics.jsonl.",
        "python eval/plot.py runs/quickstart --output curves.png",
    )
    parser.add_argument(
        "runs", nargs="*", type=nonempty_path, metavar="RUN", help="run directories; none: the newest run"
    )
    parser.add_argument(
        "--output", type=nonempty_path, help="picture; default: RUN/loss.png, or curves.png for several"
    )
    parser.add_argument("--over", choices=("tokens", "steps"), default="tokens", help="the horizontal axis")
    args = parser.parse_args(argv)
    runs = args.runs or [newest_logged_run()]
    output = args.output or (runs[0] / "loss.png" if len(runs) == 1 else Path("curves.png"))
    if output.is_dir() or (args.output and not output.parent.is_dir()):
        raise ArgumentError(f"--output {output}: name a file, in a folder that is there")
    for run in runs:
        if all(row["kind"] == "event" for row in read_metrics(run)):
            raise UserError(f"{run} has logged nothing to draw yet: let it run longer, or name another RUN")
    print(plot_runs(runs, output, args.over))


def newest_logged_run() -> Path:
    """The run under runs/ that was written to last."""
    logs = sorted(RUNS.glob(f"*/{METRICS}"), key=lambda path: path.stat().st_mtime)
    if not logs:
        raise UserError(f"no run with a {METRICS} under {RUNS}: train one (make quickstart), or name a RUN")
    return logs[-1].parent


if __name__ == "__main__":
    run_script(main)
