"""The next token: the logits at every position of the prompt, from which the page samples as eval/generate.py does."""

from typing import Any

from eval.views.subject import Subject, pack


def next_token(subject: Subject) -> dict[str, Any]:
    """The logits of every position, (T, V) float32."""
    return {"logits": pack(subject.logits, "float32")}
