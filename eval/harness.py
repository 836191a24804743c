"""The lm-evaluation-harness on a run: its own command line, with `gpt2_run` among its models.

    python eval/harness.py --model gpt2_run --model_args run=runs/x --tasks hellaswag,lambada_openai

`lm_eval` itself looks for models in its own package only, so this script stands in for it; every other argument is
lm_eval's (`--include_path DIR` for tasks of your own, `--limit`, `--output_path`).
"""

import sys
from pathlib import Path

if not __package__:  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from prepare.common.cli import ArgumentError, Parser, UserError, run_script

ARGUMENTS = {"run": "run=X (as --model elsewhere)", "batch_tokens": "batch_tokens=N (in a forward pass)"}


def main() -> None:
    parser = Parser(
        "Run the lm-evaluation-harness on a run, a checkpoint or a Hugging Face directory.",
        "python eval/harness.py --model gpt2_run --model_args run=runs/quickstart --tasks hellaswag",
    )
    parser.add_argument("--model", default="gpt2_run", metavar="KIND", help="gpt2_run, or a model kind of lm_eval")
    parser.add_argument("--model_args", metavar="run=X", help=f"{', '.join(ARGUMENTS.values())}; none: the newest run")
    parser.add_argument("--tasks", required=True, metavar="A,B", help="names of the harness's tasks, or of your own")
    options, others = parser.parse_known_args()
    if options.model == "gpt2_run":
        check_model_args(options.model_args or "")
    try:
        from eval.scoring import harness_model  # noqa: F401  registers gpt2_run
    except ImportError as missing:
        raise UserError(f"lm-eval is not installed ({missing}): pip install -r requirements.txt") from None
    from lm_eval.__main__ import cli_evaluate

    asked = [f"--model={options.model}", f"--tasks={options.tasks}", *others]
    sys.argv = ["lm_eval", "run", *asked, *([f"--model_args={options.model_args}"] if options.model_args else [])]
    try:
        cli_evaluate()
    except ValueError as failure:
        if "Tasks not found" not in str(failure):
            raise
        raise UserError(f"--tasks: {failure}; `lm_eval ls tasks` lists all, --include_path DIR adds yours") from None


def check_model_args(text: str) -> None:
    """Refuse what `gpt2_run` would pass over: run=x,batch_tokens=4096 and nothing else.

    Raises:
        ArgumentError: another key, or no number.
    """
    for pair in filter(None, text.split(",")):
        key, _, value = pair.partition("=")
        if key not in ARGUMENTS or not value or (key == "batch_tokens" and not value.isdecimal()):
            names = " or ".join(ARGUMENTS.values())
            raise ArgumentError(f"--model_args {pair}: gpt2_run takes {names}; --device is an option")


if __name__ == "__main__":
    run_script(main)
