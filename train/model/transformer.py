"""What GPT-2 and the modern architecture share: attention over cached keys and values, the layers' loop, the loss.

Shapes: B sequences, T positions, C = n_embd, H = n_head, D = C / H, V = vocab_size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from train.config.pretrain import ModelConfig
from train.model.kv_cache import JoinedCache, KVCache
from train.model.linear import linear
from train.model.loss import linear_cross_entropy, softcap_logits


def attention(
    q: Tensor, k: Tensor, v: Tensor, dropout: float, layer: int, cache: KVCache | None, mask: Tensor | None
) -> Tensor:
    """Causal attention with the heads concatenated, (B, H, T, D) each to (B, T, C). `cache`, `mask`: see `hidden`."""
    if isinstance(cache, JoinedCache):
        parts = zip(*(x.split(cache.rows) for x in (q, k, v)), cache.caches, strict=True)
        return torch.cat([attention(*qkv, dropout, layer, own, mask) for *qkv, own in parts])
    T = q.size(2)
    if cache is not None:
        k, v = cache.extend(layer, k, v)  # (B, H, S, D) each, with S = filled + T
        if mask is None and cache.filled and T > 1:  # new position i sees the cached ones, and the new ones up to i
            mask = torch.ones(T, k.size(2), dtype=torch.bool, device=q.device).tril(cache.filled)  # (T, S)
    y = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and (cache is None or T > 1),  # T is tested with a cache only: one graph for all T
    )  # (B, H, T, D)
    return y.transpose(1, 2).flatten(2)


class Transformer(nn.Module):
    """A language model with token embeddings `wte` and layers `h`: hidden states, then logits or the loss."""

    wte: nn.Embedding  # of the tokens
    h: nn.ModuleList
    ln_f: nn.LayerNorm | nn.RMSNorm  # the final norm
    softcap: float | None = None  # logits are capped smoothly at plus and minus this

    def __init__(self, config: ModelConfig, recompute: bool = False) -> None:
        """`recompute`: activation checkpointing, which stores only each layer's input for the backward pass."""
        super().__init__()
        self.config, self.recompute = config, recompute

    @property
    def head(self) -> Tensor:
        """The output head's weight, (V, C)."""
        raise NotImplementedError

    def hidden(
        self, idx: Tensor, cache: KVCache | None = None, positions: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The last layer's normalized states, (B, T, C), which `logits` turns into scores.

        Args:
            cache: keys and values of earlier positions, which idx continues; those of idx are appended to it. With a
                joined cache, T is 1.
            positions: (B, T) int64, each below block_size; None: the T positions after the cached ones.
            mask: (B, 1, T, S) float32, added to the attention scores: 0 where a new position attends to one of the S
                (cached and new), -inf where it does not; None: causal.
        """
        raise NotImplementedError

    def next_positions(self, idx: Tensor, cache: KVCache | None) -> Tensor:
        """The positions of idx after the cached ones, (T,) int64, or (B, 1) for a joined cache. ValueError if the block
        size is exceeded."""
        if isinstance(cache, JoinedCache):
            return cache.positions()
        start, T = (cache.filled if cache else 0), idx.size(1)
        if start + T > self.config.block_size:
            raise ValueError(f"{start + T} positions are more than block_size {self.config.block_size}")
        return torch.arange(start, start + T, device=idx.device)

    def run_layers(self, x: Tensor, cache: KVCache | None, mask: Tensor | None, *rotary: Tensor | None) -> Tensor:
        """All layers, one after the other, (B, T, C) to (B, T, C). `rotary`: modern's blocks take its tables too."""
        for layer, block in enumerate(self.h):
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, layer, cache, mask, *rotary, use_reentrant=False)
            else:
                x = block(x, layer, cache, mask, *rotary)
        if cache is not None:
            cache.advance(x.size(1))
        return x

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits of the next token at every position; with targets, the mean loss instead.

        Args:
            idx: (B, T) int64 token ids.
            targets: (B, T) int64 ids of the next tokens; IGNORE_INDEX (-1) is left out of the loss.

        Returns:
            (B, T, V) logits, or the mean cross-entropy in nats, a float32 scalar.
        """
        x = self.hidden(idx)  # (B, T, C)
        if targets is None:
            return self.logits(x)
        x, targets = x.flatten(0, 1), targets.flatten()  # (B*T, C), (B*T,)
        return linear_cross_entropy(x, self.head, targets, self.softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) states to (..., V) scores over the vocabulary, which is not padded."""
        logits = linear(hidden, self.head)
        return softcap_logits(logits, self.softcap) if self.softcap else logits

    def num_parameters(self) -> int:
        """124,439,808 for GPT-2 124M."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self) -> int:
        """Training FLOPs a token, 6 N + 12 L C T, with N without the embedding tables (PaLM, appendix B): positions,
        and tokens unless that table is the output head too."""
        config = self.config
        tables = [child.weight for child in self.children() if isinstance(child, nn.Embedding)]
        embeddings = sum(table.numel() for table in tables if table is not self.head)
        return 6 * (self.num_parameters() - embeddings) + 12 * config.n_layer * config.n_embd * config.block_size
