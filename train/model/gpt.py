"""GPT-2, all of it. Weights have nanoGPT's names; `bias=True` is OpenAI's architecture.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; openai/gpt-2 src/model.py.
Shapes: B sequences, T positions, C = n_embd, H = n_head, D = C / H, V = vocab_size.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from train.config.pretrain import ModelConfig
from train.model.kv_cache import KVCache
from train.model.linear import Linear, linear
from train.model.loss import linear_cross_entropy

IGNORE_INDEX = -1  # a target that is left out of the loss


class Attention(nn.Module):
    """Causal multi-head self-attention, (B, T, C) to (B, T, C). `cache` and `mask`: see GPT.hidden."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, layer: int, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)  # (B, T, 3, H, D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        if cache is not None:
            k, v = cache.extend(layer, k, v)  # (B, H, S, D) each, with S = filled + T
            if mask is None and cache.filled and T > 1:  # new position i sees the cached ones, and the new ones up to i
                mask = torch.ones(T, k.size(2), dtype=torch.bool, device=x.device).tril(cache.filled)  # (T, S)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and (cache is None or T > 1),  # T is tested with a cache only: one graph for all T
        )  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)  # concatenate the heads
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class MLP(nn.Module):
    """Two linear layers, 4C wide between them, with the tanh approximation of GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x, gelu=True)  # (B, T, 4C)
        return F.dropout(self.c_proj(x), self.dropout, self.training)  # (B, T, C)


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, layer: int, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), layer, cache, mask)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2. The output head is the token embedding itself (weight tying)."""

    def __init__(self, config: ModelConfig, recompute: bool = False) -> None:
        """`recompute`: activation checkpointing, which stores only each layer's input for the backward pass."""
        super().__init__()
        self.config, self.recompute = config, recompute
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """OpenAI's: N(0, 0.02), positions N(0, 0.01), residual projections scaled by 1/sqrt(2 n_layer), biases 0."""
        for name, parameter in self.named_parameters():
            if name == "wpe.weight":
                parameter.normal_(std=0.01)
            elif name.endswith("c_proj.weight"):
                parameter.normal_(std=0.02 / math.sqrt(2 * self.config.n_layer))
            elif parameter.dim() == 2:
                parameter.normal_(std=0.02)
            elif name.endswith("bias"):
                parameter.zero_()  # LayerNorm weights stay at 1

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
        return linear_cross_entropy(x, self.wte.weight, targets, IGNORE_INDEX)

    def hidden(
        self, idx: Tensor, cache: KVCache | None = None, positions: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The last layer's normalized states, (B, T, C), which `logits` turns into scores.

        Args:
            cache: keys and values of earlier positions, which idx continues; those of idx are appended to it.
            positions: (B, T) int64, each below block_size; None: the T positions after the cached ones.
            mask: (B, 1, T, S) float32, added to the attention scores: 0 where a new position attends to one of the S
                (cached and new), -inf where it does not; None: causal.
        """
        if positions is None:
            start, T = (cache.filled if cache else 0), idx.size(1)
            if start + T > self.config.block_size:
                raise ValueError(f"{start + T} positions are more than block_size {self.config.block_size}")
            positions = torch.arange(start, start + T, device=idx.device)  # (T,)
        x = self.wte(idx) + self.wpe(positions)  # (B, T, C) + (T, C) or (B, T, C)
        x = F.dropout(x, self.config.dropout, self.training)
        for layer, block in enumerate(self.h):
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, layer, cache, mask, use_reentrant=False)
            else:
                x = block(x, layer, cache, mask)
        if cache is not None:
            cache.advance(idx.size(1))
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) states to (..., V) scores over the vocabulary, which is not padded."""
        return linear(hidden, self.wte.weight)

    def num_parameters(self) -> int:
        """124,439,808 for GPT-2 124M."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self) -> int:
        """Training FLOPs a token, 6 N + 12 L C T, with N without the position table (PaLM, appendix B)."""
        config = self.config
        matrices = self.num_parameters() - self.wpe.weight.numel()
        return 6 * matrices + 12 * config.n_layer * config.n_embd * config.block_size
