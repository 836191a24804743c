"""The modern architecture: GPT-2's blocks with what has been found since, in the shape of nanochat's model.

Rotary positions (Su et al. 2021), QK norm (Dehghani et al. 2023), RMSNorm (Zhang and Sennrich 2019),
squared ReLU (So et al. 2021), no biases, residual projections initialized to zero, an untied output head, soft-capped
logits (Gemma 2). Together: karpathy/nanochat and transformers' NanoChatForCausalLM, after Jordan et al.'s
modded-nanogpt, but for the weights of RMSNorm, which nanochat does not have: they pay (docs/recipes.md), and an export
multiplies them into the matrices after them. `model.without` leaves components out, so that the effect of each can be
measured.
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

EPS = 1e-6  # of RMSNorm
SOFTCAP = 15.0
THETA = 10000.0  # the rotary angles' base


def rms_norm(x: Tensor) -> Tensor:
    """Divide the last dimension by its root mean square, computed in float32."""
    return F.rms_norm(x, (x.size(-1),), eps=EPS)


def norm(config: ModelConfig) -> nn.LayerNorm | nn.RMSNorm:
    """The normalization of a layer's input, or of the last layer's output."""
    weights = "norm_weights" not in config.without
    if "rms_norm" in config.without:
        return nn.LayerNorm(config.n_embd, elementwise_affine=weights, bias=False)
    return nn.RMSNorm(config.n_embd, EPS, elementwise_affine=weights)


def rotary_tables(positions: Tensor, head_size: int) -> Tensor:
    """Cosines and sines of each position's angles: positions (T,) or (B, T) to float32 (2, T or B, T, 1, 1, D / 2)."""
    exponents = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32) / head_size
    angles = positions[..., None].float() * (1.0 / THETA**exponents)
    return torch.stack((angles.cos(), angles.sin()))[..., None, None, :]


def rotate(x: Tensor, tables: Tensor) -> Tensor:
    """Rotate each pair (i, i + D / 2) of x (B, T, 2, H, D) by its position's angle, clockwise as nanochat does."""
    (cos, sin), (x1, x2) = tables.to(x.dtype), x.chunk(2, -1)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), -1)


class Attention(nn.Module):
    """Causal multi-head self-attention, (B, T, C) to (B, T, C). `cache` and `mask`: see Transformer.hidden."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.qk_norm = "qk_norm" not in config.without
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=False)

    def forward(
        self, x: Tensor, layer: int, cache: KVCache | None, mask: Tensor | None, rotary: Tensor | None
    ) -> Tensor:
        qkv = self.c_attn(x).unflatten(-1, (3, self.n_head, -1))  # (B, T, 3, H, D)
        qk, v = qkv[:, :, :2], qkv[:, :, 2]  # (B, T, 2, H, D), (B, T, H, D)
        if rotary is not None:
            qk = rotate(qk, rotary)
        if self.qk_norm:
            qk = rms_norm(qk)
        q, k = qk.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        dropout = self.dropout if self.training else 0.0
        y = attention(q, k, v.transpose(1, 2), dropout, layer, cache, mask)  # (B, T, C)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class MLP(nn.Module):
    """Two linear layers, 4C wide between them, with squared ReLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.gelu = "relu2" in config.without
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x, gelu=self.gelu)  # (B, T, 4C)
        if not self.gelu:
            x = F.relu(x)
            x = x * x  # not a power, which autocast would compute in float32
        return F.dropout(self.c_proj(x), self.dropout, self.training)  # (B, T, C)


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = norm(config)
        self.attn = Attention(config)
        self.ln_2 = norm(config)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, layer: int, cache: KVCache | None, mask: Tensor | None, rotary: Tensor | None
    ) -> Tensor:
        x = x + self.attn(self.ln_1(x), layer, cache, mask, rotary)
        return x + self.mlp(self.ln_2(x))


class Modern(Transformer):
    """The modern architecture, without the components that `config.without` names."""

    def __init__(self, config: ModelConfig, recompute: bool = False) -> None:
        super().__init__(config, recompute)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if "rotary" in config.without:
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = norm(config)
        if "untied_head" not in config.without:
            self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        self.softcap = None if "softcap" in config.without else SOFTCAP
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """N(0, 0.02) as GPT-2's, positions N(0, 0.01), residual projections 0.

        nanochat's own scales need its learning rates; at equal ones they lose 0.02 to 0.35 (docs/log.md).
        """
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                zero = "zero_init" not in self.config.without
                parameter.normal_(std=0.0 if zero else 0.02 / math.sqrt(2 * self.config.n_layer))
            elif parameter.dim() == 2:
                parameter.normal_(std=0.01 if name == "wpe.weight" else 0.02)  # norms' weights stay at 1

    @property
    def head(self) -> Tensor:
        return self.wte.weight if "untied_head" in self.config.without else self.lm_head.weight

    def hidden(
        self, idx: Tensor, cache: KVCache | None = None, positions: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        config = self.config
        positions = self.next_positions(idx, cache) if positions is None else positions  # (T,) or (B, T)
        x, rotary = self.wte(idx), None  # (B, T, C)
        if "rotary" in config.without:
            x = x + self.wpe(positions)
        else:
            rotary = rotary_tables(positions, config.n_embd // config.n_head)
        if "embed_norm" not in config.without:
            x = rms_norm(x)
        x = F.dropout(x, config.dropout, self.training)
        return self.ln_f(self.run_layers(x, cache, mask, rotary))
