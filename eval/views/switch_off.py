"""View 5: the model without one head, MLP, attention or whole layer, and each head's induction score.

Switching a part off sets what it adds to the residual stream to zero (zero ablation): of a head its slice of c_proj's
input, of attention and MLP all of their output. What else reads the stream then reads one without it.
Shapes: T positions, L layers, C = n_embd, H = n_head, D = C / H, V = vocab_size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.common.open_model import evaluating
from eval.views.attention import attention_weights
from eval.views.recording import record
from eval.views.subject import Subject, pack
from train.model.transformer import Transformer

TOP = 10  # tokens of each distribution
INDUCTION_TOKENS = 50  # of each random sequence, before its repetition
INDUCTION_SEQUENCES = 4


def switch_off(subject: Subject) -> dict[str, Any]:
    """Measure the model on the prompt, and again without each of its parts.

    Returns:
        whole: of the complete model `loss` (T - 1,) float32, in nats, of each token but the first, and `ids` (T, TOP)
            and `probabilities`: the most probable next tokens at each position.
        without: the same without each part, (L, H + 3, ...): a layer's heads, its attention, its MLP, all of it.
        induction: (L, H), see induction_scores.
    """
    model = subject.loaded.model
    found = measure_without(model, subject.ids, subject.tokenizer.vocab_size)
    types = {"loss": "float32", "ids": "uint16", "probabilities": "float32"}
    packed = {name: {key: pack(tensor, types[key]) for key, tensor in part.items()} for name, part in found.items()}
    return {**packed, "induction": pack(induction_scores(model))}


@torch.no_grad()
def measure_without(model: Transformer, idx: Tensor, vocab_size: int) -> dict[str, dict[str, Tensor]]:
    """What switch_off returns, as tensors. `idx`: (T,) int64 on the model's device; `vocab_size`: without padding."""
    with evaluating(model):
        whole = _measure(model, model.hidden(idx[None]), idx, vocab_size)
        layers = []
        for block in model.h:
            with each_part_off(block, model.config.n_head):
                layers.append(_measure(model, model.hidden(idx[None]), idx, vocab_size))
    without = {name: torch.stack([layer[name] for layer in layers]) for name in whole}
    return {"whole": {name: tensor[0] for name, tensor in whole.items()}, "without": without}


@contextmanager
def each_part_off(block: nn.Module, n_head: int) -> Iterator[None]:
    """Turn the one sequence that reaches this layer into H + 3, each without one part: every head, the attention, the
    MLP, both. The layers before it compute one sequence, those after it all of them."""
    rows = torch.eye(n_head + 3, device=next(block.parameters()).device)
    heads = (1 - rows[:, :n_head])[:, None, :, None]  # (H + 3, 1, H, 1): 0 where a head is off
    attention, mlp = ((1 - rows[:, part] - rows[:, n_head + 2])[:, None, None] for part in (n_head, n_head + 1))
    with (  # hooks, which are removed at the end of the block
        block.register_forward_pre_hook(lambda _, args: (args[0].expand(n_head + 3, -1, -1), *args[1:])),
        block.attn.c_proj.register_forward_pre_hook(
            lambda _, args: (args[0].unflatten(-1, (n_head, -1)) * heads).flatten(-2)
        ),
        block.attn.register_forward_hook(lambda _module, _args, output: output * attention),
        block.mlp.register_forward_hook(lambda _module, _args, output: output * mlp),
    ):
        yield


def _measure(model: Transformer, hidden: Tensor, idx: Tensor, vocab_size: int) -> dict[str, Tensor]:
    """For each of R sequences of hidden states (R, T, C) of the tokens idx: the losses (R, T - 1), and the ids and
    probabilities of the most probable next tokens (R, T, TOP)."""
    rows = []
    for states in hidden:  # one at a time: R x T logits over the vocabulary may not fit in memory
        logits = model.logits(states)[:, :vocab_size]  # (T, V)
        probabilities, ids = logits.softmax(-1).topk(min(TOP, vocab_size))
        rows.append((F.cross_entropy(logits[:-1], idx[1:], reduction="none"), ids, probabilities))
    return dict(zip(("loss", "ids", "probabilities"), map(torch.stack, zip(*rows, strict=True)), strict=True))


def induction_scores(model: Transformer) -> Tensor:
    """How much each head attends to the token after the current one's earlier occurrence, (L, H), from 0 to 1: the mean
    over the second half of random sequences that are repeated once (Olsson et al. 2022, "In-context Learning and
    Induction Heads")."""
    config, device = model.config, next(model.parameters()).device
    n = min(INDUCTION_TOKENS, config.block_size // 2)
    generator = torch.Generator().manual_seed(0)
    scores = []
    for _ in range(INDUCTION_SEQUENCES):
        tokens = torch.randint(config.vocab_size, (n,), generator=generator).to(device)
        recorded = record(model, tokens.repeat(2))
        _, weights = attention_weights(recorded.q, recorded.k)  # (L, H, 2n, 2n)
        scores.append(induction_score(weights))
    return torch.stack(scores).mean(0)


def induction_score(weights: Tensor) -> Tensor:
    """The mean weight, (...), from each position n + i to position i + 1 in attention weights (..., 2n, 2n) over a
    sequence of n tokens that is repeated once."""
    n = weights.size(-1) // 2
    return weights.diagonal(1 - n, -2, -1)[..., 1:].mean(-1)
