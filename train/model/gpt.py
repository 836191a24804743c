"""GPT-2. Weights have nanoGPT's names; `bias=True` is OpenAI's architecture.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; openai/gpt-2 src/model.py.
Shapes: B sequences, T positions, C = n_embd, H = n_head, D = C / H, V = vocab_size.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.config.pretrain import ModelConfig
from train.model.kv_cache import KVCache
from train.model.linear import Linear
from train.model.transformer import Transformer, attention


class Attention(nn.Module):
    """Causal multi-head self-attention, (B, T, C) to (B, T, C). `cache` and `mask`: see Transformer.hidden."""

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
        dropout = self.dropout if self.training else 0.0
        y = attention(q, k, v, dropout, layer, cache, mask)  # (B, T, C)
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


class GPT(Transformer):
    """GPT-2. The output head is the token embedding itself (weight tying)."""

    def __init__(self, config: ModelConfig, recompute: bool = False) -> None:
        super().__init__(config, recompute)
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

    @property
    def head(self) -> Tensor:
        return self.wte.weight

    def hidden(
        self, idx: Tensor, cache: KVCache | None = None, positions: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        positions = self.next_positions(idx, cache) if positions is None else positions  # (T,) or (B, T)
        x = self.wte(idx) + self.wpe(positions)  # (B, T, C) + (T, C) or (B, T, C)
        x = F.dropout(x, self.config.dropout, self.training)
        return self.ln_f(self.run_layers(x, cache, mask))
