"""Run the lm-evaluation-harness on a run: its own command line, with `gpt2_run` among its models.

    python eval/harness.py --model gpt2_run --model_args run=runs/x --tasks hellaswag,lambada_openai

`lm_eval` itself finds only the models of its own package, so this script replaces it; all other arguments are lm_eval's
(`--include_path DIR` for your own tasks, `--limit`, `--output_path`).
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

from prepare.common.cli import ArgumentError, Parser, UserError


def main() -> None:
    parser = Parser(
        "Run the lm-evaluation-harness on a run, a checkpoint or a Hugging Face directory.",
        "python eval/harness.py --model gpt2_run --model_args run=runs/quickstart --tasks hellaswag",
    )
    parser.add_argument("--model", default="gpt2_run", metavar="KIND", help="gpt2_run, or a model kind of lm_eval")
    parser.add_argument("--model_args", default="", metavar="run=X", help="as --model elsewhere; default: newest run")
    parser.add_argument("--tasks", required=True, metavar="A,B", help="names of the harness's tasks, or of your own")
    args, others = parser.parse_known_args()
    if args.model == "gpt2_run" and args.model_args and not args.model_args.startswith("run="):
        raise ArgumentError(f"--model_args {args.model_args}: gpt2_run takes run=X only; --device is a separate option")

    from lm_eval.__main__ import cli_evaluate

    from eval.scoring import harness_model  # noqa: F401  registers gpt2_run

    sys.argv = ["lm_eval", "run", f"--model={args.model}", f"--tasks={args.tasks}", *others]
    if args.model_args:
        sys.argv.append(f"--model_args={args.model_args}")
    try:
        cli_evaluate()
    except ValueError as failure:
        if "Tasks not found" not in str(failure):
            raise
        raise UserError(f"--tasks: {failure}; `lm_eval ls tasks` lists all, --include_path DIR adds yours") from None
