"""Turn FineWeb, or your own files, into token shards.

python prepare/fineweb.py                              # FineWeb sample-10BT from the hub -> data/fineweb10B
python prepare/fineweb.py --input 'corpus/*.parquet'   # your own documents
python prepare/fineweb.py --pretokenized 10            # a billion published tokens
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

import argparse
import shutil

from prepare.common.cli import DATA, ArgumentError, Parser, nonempty_path, positive
from prepare.pipeline.options import add_input_options, add_job_options, add_task, chosen_tokenizer
from prepare.pipeline.output_folder import pinned_revision
from prepare.pipeline.pretokenized import fetch_pretokenized
from prepare.pipeline.tokenize_job import TokenizeJob, run_job
from prepare.sources.hub import hub_files
from prepare.sources.inputs import HubFile, Source
from prepare.sources.splits import find_files, group_small_files, hold_out


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    name = "finewebedu" if options.edu else "fineweb"
    out = options.out or DATA / (name + options.version.replace("BT", "B"))
    if options.pretokenized is not None:
        fetch_pretokenized(out, options.edu, options.version, options.pretokenized or None)
        return

    # the input files
    tokenizer = chosen_tokenizer(options.tokenizer, options.engine)
    if options.input:
        files = find_files(options.input, options.split, options.column, options.separator, options.encoding)
        own = group_small_files(files, options.shard_tokens)
        if not any(source.split for source in own):
            hold_out(own, options.shard_tokens, options.val_fraction, tokenizer.encode_texts)
        sources: list[Source] = [*own]
        dataset, revision = "local files", None
    else:
        dataset = "HuggingFaceFW/fineweb-edu" if options.edu else "HuggingFaceFW/fineweb"
        # a folder keeps the commit that it was started with, even if the dataset has changed
        pinned = pinned_revision(out, dataset) or "main"
        revision, files = hub_files(dataset, f"sample/{options.version}", ".parquet", pinned)
        sources = [HubFile(dataset, revision, path, out / ".download", options.column) for path in files]

    # tokenize them
    facts = {"column": options.column}
    facts |= {key: value for key in ("separator", "encoding") if (value := getattr(options, key))}
    job = TokenizeJob(sources, name, dataset, revision, tokenizer, facts, options.shard_tokens)
    manifest = run_job(job, out, options.workers, options.task)
    if manifest is None:
        return
    shutil.rmtree(out / ".download", ignore_errors=True)
    held_out, tokens = (
        sum(shard["tokens"] for shard in manifest["shards"] if part in shard["file"]) for part in ("_val_", "")
    )
    print(f"{out}: {held_out:,} tokens ({held_out / tokens:.1%}) are held out for validation")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("Turn FineWeb, or files of your own, into shards of tokens.", "python prepare/fineweb.py")
    parser.add_argument("--edu", action="store_true", help="FineWeb-Edu instead of FineWeb")
    parser.add_argument("--version", choices=["10BT", "100BT", "350BT"], default="10BT", help="which sample")
    add_input_options(parser)
    parser.add_argument(
        "--split",
        choices=["auto", "none", "train", "val"],
        default="auto",
        help="auto: as names say (train, valid, dev, test ...); none: names do not count; or what all of --input is",
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="share of --input to hold out where no file validates (default: about 0.05, at most a shard)",
    )
    parser.add_argument(
        "--out", type=nonempty_path, help="folder of the shards (default: data/fineweb10B, or the name of the sample)"
    )
    parser.add_argument(
        "--pretokenized",
        nargs="?",
        type=positive,
        const=0,
        metavar="CHUNKS",
        help="download published GPT-2 shards of this data instead (all, or the first CHUNKS of 100M tokens each)",
    )
    add_job_options(parser)
    add_task(parser)
    options = parser.parse_args(argv)
    if options.pretokenized is not None and (options.input or options.tokenizer):
        raise ArgumentError("--pretokenized downloads shards of GPT-2's tokens: leave out --input and --tokenizer")
    if options.val_fraction is not None and not 0 < options.val_fraction < 1:
        raise ArgumentError(f"--val-fraction {options.val_fraction} is not between 0 and 1, such as 0.05")
    return options
