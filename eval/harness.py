"""The lm-evaluation-harness on a run: its own command line, with `gpt2_run` among its models.

python eval/harness.py --model gpt2_run --model_args run=runs/x --tasks hellaswag,lambada_openai

`lm_eval` itself looks for models in its own package only, so this script stands in for it; every other argument is
lm_eval's (`--include_path DIR` for tasks of your own, `--limit`, `--output_path`).
"""

import sys
from pathlib import Path

if not __package__: sys.path[0] = str(Path(__file__).resolve().parents[1])  # noqa: E701  scripts run from anywhere

from prepare.cli import Parser, UserError, run_script


def main() -> None:
    parser = Parser(
        "Run the lm-evaluation-harness on a run, a checkpoint or a Hugging Face directory.",
        "python eval/harness.py --model gpt2_run --model_args run=runs/quickstart --tasks hellaswag",
    )
    parser.add_argument("--model", default="gpt2_run", metavar="KIND", help="gpt2_run, or a model kind of lm_eval")
    parser.add_argument("--model_args", metavar="run=X", help="run=X: as for --model elsewhere; none: the newest run")
    parser.add_argument("--tasks", required=True, metavar="A,B", help="names of the harness's tasks, or of your own")
    options, others = parser.parse_known_args()
    try:
        from eval import harness_model  # noqa: F401  registers gpt2_run
    except ImportError as missing:
        raise UserError(f"lm-eval is not installed ({missing}): pip install -r requirements.txt") from None
    from lm_eval.__main__ import cli_evaluate

    asked = [f"--model={options.model}", f"--tasks={options.tasks}", *others]
    sys.argv = ["lm_eval", "run", *asked, *([f"--model_args={options.model_args}"] if options.model_args else [])]
    cli_evaluate()


if __name__ == "__main__":
    run_script(main)
