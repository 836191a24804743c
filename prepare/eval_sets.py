"""The evaluation sets: HellaSwag, LAMBADA and WikiText as published, or tasks from your own held-out text.

python prepare/eval_sets.py              # all -> data/{hellaswag_val,lambada_test}.jsonl, wikitext*_test.tokens
python prepare/eval_sets.py hellaswag
python prepare/eval_sets.py continuation --shards 'data/plays/*_val_*.bin'    # needs no network
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

import json

from prepare.common.cli import DATA, ArgumentError, Parser, nonempty_path, positive
from prepare.common.files import atomic_write_text
from prepare.pipeline.continuation import make_tasks
from prepare.sources.published import HELLASWAG, LAMBADA, WIKITEXT2, WIKITEXT103
from prepare.tokens.shards import find_shards

KNOWN = {"hellaswag": HELLASWAG, "lambada": LAMBADA, "wikitext2": WIKITEXT2, "wikitext103": WIKITEXT103}


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["continuation"]:
        continuation(arguments[1:])
    else:
        published(arguments)


def published(arguments: list[str]) -> None:
    """Download the published sets, or some of them."""
    parser = Parser(
        "Download HellaSwag, LAMBADA and WikiText (or make tasks from your text: eval_sets.py continuation --help).",
        "python prepare/eval_sets.py",
    )
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"{', '.join(KNOWN)}; default: all")
    parser.add_argument("--out", type=nonempty_path, default=DATA, help="folder of the files")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.sets) - set(KNOWN)):
        raise ArgumentError(
            f"{unknown[0]!r} is unknown: give {', '.join(KNOWN)}, or continuation as the first argument"
        )
    for name in options.sets or KNOWN:
        path = KNOWN[name].fetch(options.out)
        print(f"{path}: {len(path.read_bytes().splitlines()):,} lines")


def continuation(arguments: list[str]) -> None:
    """Write tasks in HellaSwag's format from held-out shards."""
    parser = Parser(
        "Make tasks in HellaSwag's format from held-out text: which of four endings follows?",
        "python prepare/eval_sets.py continuation --shards 'data/plays/*_val_*.bin'",
    )
    parser.prog += " continuation"
    parser.add_argument("--shards", required=True, nargs="+", metavar="GLOB", help="token shards of held-out text")
    default = DATA / "continuation_val.jsonl"
    parser.add_argument("--out", type=nonempty_path, default=default, metavar="FILE", help="file to write")
    parser.add_argument("--tasks", type=positive, default=200, metavar="N", help="number of tasks")
    parser.add_argument("--seed", type=int, default=1, help="which of the possible tasks")
    options = parser.parse_args(arguments)
    if options.out.is_dir() or not options.out.absolute().parent.is_dir():
        raise ArgumentError(f"--out {options.out} is a folder, or not in one that exists: name a file in a folder")
    tasks = make_tasks(find_shards(options.shards), options.tasks, options.seed)
    atomic_write_text(options.out, "".join(json.dumps(task) + "\n" for task in tasks))
    print(f"{options.out}: {len(tasks)} tasks from held-out text (HellaSwag's format, not HellaSwag)")
