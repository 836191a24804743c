"""What others published of OpenAI's GPT-2, beside which report.py puts a model."""

SIZES = ("124M", "355M", "774M", "1558M")
PAPER = "GPT-2 paper, table 3"  # Radford et al. 2019
NANOGPT = "build-nanogpt, hellaswag.py"
HARNESS = "lm-evaluation-harness"

# name of a measure -> where it is from, and the scores by size
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
NOTES = (
    "The paper's de-tokenizers for WikiText are not published and its stride is not stated: see "
    "eval/scoring/detokenize.py.",
    "The paper's own LAMBADA (45.99% and 35.13 at 124M) leaves out stop words; the harness's and ours do not.",
)
