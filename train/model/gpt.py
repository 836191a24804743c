"""GPT-2: the whole model. Weights carry nanoGPT's names; `bias=True` is OpenAI's architecture.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; openai/gpt-2 src/model.py.
Shapes: B sequences, T positions, C = n_embd, H = n_head, D = C / H, V = vocab_size.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from train.config.pretrain import ModelConfig
from train.model.loss import linear_cross_entropy

IGNORE_INDEX = -1  # a target that does not count in the loss


ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
WORTH_ONEDNN = 2**24  # multiplications; below that its start takes longer than the product


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """(..., I) inputs and (O, I) weights to (..., O): x @ weight.T + bias, then GELU's tanh approximation if asked.

    Without gradients, in float32 on a CPU, by oneDNN: on an AMD EPYC (Zen 4) 215 GFLOP/s on two cores, where torch's
    own way through MKL reaches 200, and 140 when O is the vocabulary (1,024 inputs of 768); and GELU costs next to
    nothing in it. When compiling, torch chooses.
    """
    by_onednn = ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()
    large = x.numel() * weight.size(0) >= WORTH_ONEDNN
    if by_onednn and large and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling():
        after = ("gelu", [], "tanh") if gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *after)
    y = F.linear(x, weight, bias)
    return F.gelu(y, approximate="tanh") if gelu else y


class Linear(nn.Linear):
    """nn.Linear by the faster way, with GELU behind it if asked."""

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        return linear(x, self.weight, self.bias, gelu)


class KVCache:
    """Keys and values of the positions seen so far, in buffers allocated once: for each layer (B, H, length, D)."""

    def __init__(self, config: ModelConfig, batch_size: int, length: int, device: torch.device | str = "cpu") -> None:
        shape = (batch_size, config.n_head, length, config.n_embd // config.n_head)
        self.keys = [torch.zeros(shape, device=device) for _ in range(config.n_layer)]
        self.values = [torch.zeros(shape, device=device) for _ in range(config.n_layer)]
        self.filled = 0  # positions held by every layer

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append this layer's new keys and values, (B, H, T, D) each; return all of them, (B, H, filled + T, D)."""
        end = self.filled + k.size(2)
        self.keys[layer][:, :, self.filled : end] = k
        self.values[layer][:, :, self.filled : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, n: int) -> None:
        """Every layer has been given n positions."""
        self.filled += n


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, layer: int, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)  # (B, T, 3, H, D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
            if mask is None and cache.filled and T > 1:  # new position i sees the old ones and the new ones up to it
                mask = torch.ones(T, k.size(2), dtype=torch.bool, device=x.device).tril(cache.filled)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and (cache is None or T > 1),  # no look at T, which may change, while compiling
        )
        y = y.transpose(1, 2).reshape(B, T, C)  # heads side by side again
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class MLP(nn.Module):
    """Two linear maps around the tanh approximation of GELU, four times as wide inside."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x, gelu=True)  # (B, T, 4C)
        return F.dropout(self.c_proj(x), self.dropout, self.training)


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
    """GPT-2. The output head is the token embedding itself, so it is no parameter of its own."""

    def __init__(self, config: ModelConfig, recompute: bool = False) -> None:
        """`recompute`: keep only the layers' inputs for the backward pass, which computes what is inside them anew."""
        super().__init__()
        self.config, self.recompute = config, recompute
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
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
            targets: (B, T) int64 ids of the tokens that follow; IGNORE_INDEX (-1) does not count.

        Returns:
            (B, T, V) logits, or the mean cross-entropy in nats, a float32 scalar.
        """
        x = self.hidden(idx)  # (B, T, C)
        if targets is None:
            return self.logits(x)
        return linear_cross_entropy(
            x.flatten(0, 1), self.wte.weight, targets.flatten(), IGNORE_INDEX
        )  # (B*T, C), (B*T,)

    def hidden(
        self,
        idx: Tensor,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The last layer's normalized states, (B, T, C); `logits` turns any of them into scores.

        Args:
            cache: keys and values of earlier positions; idx continues them, and they grow by T.
            positions: (B, T) int64, each below block_size, where they are not the ones that follow the cache's.
            mask: (B, 1, T, S) float32, 0 where a new position sees one of the S (the cache's and the new ones) and
                -inf where it does not; without it each sees all up to itself.
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
        """(..., C) states to (..., V) scores over the vocabulary, and nothing beyond it."""
        return linear(hidden, self.wte.weight)

    def num_parameters(self) -> int:
        """124,439,808 for GPT-2 124M."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self) -> int:
        """Training FLOPs a token, 6 N + 12 L C T, with N without the position table (PaLM, appendix B)."""
        config = self.config
        matrices = self.num_parameters() - self.wpe.weight.numel()
        return 6 * matrices + 12 * config.n_layer * config.n_embd * config.block_size
