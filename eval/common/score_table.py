"""Scores that were published for OpenAI's GPT-2, and the table that compares a model with them."""

from typing import Any

SIZES = ("124M", "355M", "774M", "1558M")
PAPER = "GPT-2 paper, table 3"  # Radford et al. 2019
NANOGPT = "build-nanogpt, hellaswag.py"
HARNESS = "lm-evaluation-harness"

# dataset and metric -> source, and scores by model size
PUBLISHED: dict[str, tuple[str, dict[str, float]]] = {
    "hellaswag plain acc": (NANOGPT, {"124M": 0.2859, "1558M": 0.3842}),
    "hellaswag plain acc_norm": (NANOGPT, {"124M": 0.2955, "1558M": 0.4893}),
    "hellaswag lm-eval acc": (HARNESS, {"124M": 0.2892, "1558M": 0.4004}),
    "hellaswag lm-eval acc_norm": (HARNESS, {"124M": 0.3114, "1558M": 0.5089}),
    "lambada accuracy": (HARNESS, {"124M": 0.3256}),
    "lambada perplexity": (HARNESS, {"124M": 40.06}),
    "wikitext2 perplexity": (PAPER, dict(zip(SIZES, (29.41, 22.76, 19.93, 18.34), strict=True))),
    "wikitext103 perplexity": (PAPER, dict(zip(SIZES, (37.50, 26.37, 22.05, 17.48), strict=True))),
}
NOTES = """
The paper's de-tokenizers for WikiText are not published and its stride is not stated: see eval/scoring/detokenize.py.
The paper's own LAMBADA (45.99% and 35.13 at 124M) leaves out stop words; the harness's and ours do not."""
METRICS = ("acc", "acc_norm", "accuracy", "loss", "perplexity", "bits_per_byte")
COUNTS = ("tasks", "passages", "words", "tokens", "window", "stride", "truncated")

Results = dict[str, dict[str, Any]]  # name of a dataset -> scores, as eval/scoring/evaluation.py has them


def table_rows(results: Results) -> list[dict[str, Any]]:
    """One row per metric: name, value, standard error or None, published scores by model size, and their source."""
    rows = []
    for dataset, scores in results.items():
        for key in METRICS:
            if key in scores:
                name = f"{dataset} {key}"
                source, published = PUBLISHED.get(name, ("", {}))
                row = {"measure": name, "value": scores[key], "stderr": scores.get(f"{key}_stderr")}
                rows.append({**row, "published": published, "source": source})
    return rows


def render_table(model: str, results: Results) -> str:
    """The aligned table, the size of each dataset, and notes; perplexities with two decimals, all else with four."""
    cells = [["", model, *SIZES, "published by"]]
    for row in table_rows(results):
        form = ",.2f" if row["measure"].endswith("perplexity") else ".4f"
        value = f"{row['value']:{form}}" + (f" +- {row['stderr']:{form}}" if row["stderr"] is not None else "")
        published = [f"{row['published'][size]:{form}}" if size in row["published"] else "" for size in SIZES]
        cells.append([row["measure"].replace("_per_", " per "), value, *published, row["source"]])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *numbers, last in cells:
        middle = "  ".join(f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:-1], strict=True))
        lines.append(f"{first:{widths[0]}}  {middle}  {last}".rstrip())
    lines.append("")
    for dataset, scores in results.items():
        lines.append(f"{dataset}: " + ", ".join(f"{key} {scores[key]:,}" for key in COUNTS if key in scores))
    return "\n".join(lines) + NOTES + "\n"
