"""The next token: the logits at every position of the prompt, from which the page samples as eval/generate.py does."""

from typing import Any

from eval.views.subject import Subject, pack


def next_token(subject: Subject) -> dict[str, Any]:
    """The logits of every position.

    Returns:
        below_top: (T, V) float16, each logit minus the largest of its position; those near 0 keep most digits.
        top: (T,) float32, these largest logits.
    """
    top = subject.logits.max(-1, keepdim=True).values  # (T, 1)
    return {"below_top": pack(subject.logits - top), "top": pack(top.squeeze(-1), "float32")}
