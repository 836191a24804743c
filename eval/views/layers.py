"""View 4, layer by layer: what the model would say after each layer, and what each part adds to a token's logit.

Shapes: T positions, L layers, C = n_embd, H = n_head, D = C / H, V = vocab_size.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eval.views.recording import Recording
from eval.views.subject import Subject, pack
from train.model.transformer import Transformer

TOP = 5  # tokens of each cell of the logit lens
CHOSEN = 13  # tokens of each position whose logits are divided: those that web/views/next_token.js shows


@dataclass(frozen=True)
class Part:
    """A part of the model that adds to the residual stream, and so to every logit."""

    kind: str  # embedding, head, bias (of attention's projection), mlp, or norm (the final norm's bias)
    label: str
    layer: int | None = None  # from 0


def layers(subject: Subject) -> dict[str, Any]:
    """The logit lens, (L + 1, T, 5), and the contributions of P parts to the logits of K tokens, (P, T, K).

    The K tokens of each position are the likeliest ones, at most CHOSEN, and in the last place the actual next token of
    the prompt if it is not among them.
    """
    model, vocab_size = subject.loaded.model, subject.tokenizer.vocab_size
    recording, logits = subject.recording, subject.logits
    lens = logit_lens(model, recording.stream, subject.ids, vocab_size)
    tokens = logits.topk(min(CHOSEN, vocab_size)).indices  # (T, K)
    actual = subject.ids[1:]
    absent = (tokens[:-1] != actual[:, None]).all(1)  # (T - 1,)
    tokens[:-1][absent, -1] = actual[absent]
    parts, values = contributions(model, recording, tokens)
    return {
        "lens": {
            "tokens": pack(lens[0], "int32"),
            "probabilities": pack(lens[1], "float32"),
            "next_probabilities": pack(lens[2], "float32"),
        },
        "parts": [asdict(part) for part in parts],
        "tokens": pack(tokens, "int32"),
        "contributions": pack(values, "float32"),
        "probabilities": pack(logits.softmax(-1).gather(1, tokens), "float32"),
    }


@torch.no_grad()
def logit_lens(model: Transformer, stream: Tensor, idx: Tensor, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Read every layer's output as if it were the last one's: through the model's own final norm and head.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".

    Args:
        stream: (L + 1, T, C), the embeddings and the residual stream after each layer.
        idx: (T,) token ids, of which each but the first is the next one of the position before it.
        vocab_size: token ids from here on are padding, and left out.

    Returns:
        The top five tokens and their probabilities, (L + 1, T, 5), and the actual next token's probability, (L + 1, T),
        0 at the last position.
    """
    tokens, probabilities, next_probabilities = [], [], []
    for state in stream:  # one by one: all layers' logits of GPT-2 take 2.6 MB a position
        likelihood = model.logits(model.ln_f(state))[:, :vocab_size].softmax(-1)  # (T, V)
        top = likelihood.topk(min(TOP, vocab_size))
        tokens.append(top.indices)
        probabilities.append(top.values)
        next_probabilities.append(likelihood.gather(1, idx.roll(-1)[:, None])[:, 0])
    next_probabilities = torch.stack(next_probabilities)
    next_probabilities[:, -1] = 0
    return torch.stack(tokens), torch.stack(probabilities), next_probabilities


@torch.no_grad()
def contributions(model: Transformer, recording: Recording, tokens: Tensor) -> tuple[list[Part], Tensor]:
    """Divide each chosen token's logit, before the soft cap, into what each part of the model adds to it.

    The logit is a sum over the parts once the final norm divides by what it divided by in the real forward pass.
    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits" (direct logit attribution).

    Args:
        tokens: (T, K) int64, K tokens at each position.

    Returns:
        P parts, and their contributions, (P, T, K) float64, which sum to the logits.
    """
    head, last = model.head[tokens].double(), recording.stream[-1].double()  # (T, K, C), (T, C)
    norm: Any = model.ln_f  # LayerNorm, or RMSNorm, which has no bias
    # the derivative of the logits by the stream, with the norm's scale held fixed: (T, K, C)
    direction = head if norm.weight is None else head * norm.weight.double()
    if isinstance(norm, nn.LayerNorm):  # centring the stream is centring the direction
        direction = direction - direction.mean(-1, keepdim=True)
        last = last - last.mean(-1, keepdim=True)
    direction = direction * (last.square().mean(-1) + norm.eps).rsqrt()[:, None, None]

    parts = [Part("embedding", name) for name in recording.embeddings]
    values = [torch.einsum("tc,tkc->tk", x.double(), direction) for x in recording.embeddings.values()]
    for layer, block in enumerate(model.h):
        projection: Any = block.attn.c_proj
        to_heads = (direction @ projection.weight.double()).unflatten(-1, (model.config.n_head, -1))  # (T, K, H, D)
        values += torch.einsum("htd,tkhd->htk", recording.heads[layer].double(), to_heads)
        parts += [Part("head", f"head {head + 1}", layer) for head in range(model.config.n_head)]
        if projection.bias is not None:
            values.append(direction @ projection.bias.double())
            parts.append(Part("bias", "attention's bias", layer))
        values.append(torch.einsum("tc,tkc->tk", recording.mlp[layer].double(), direction))
        parts.append(Part("mlp", "MLP", layer))
    if getattr(norm, "bias", None) is not None:
        values.append(head @ norm.bias.double())
        parts.append(Part("norm", "final norm's bias"))
    return parts, torch.stack(values)
