"""The key-value cache for generation: attention's keys and values of all earlier positions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from train.config.pretrain import ModelConfig


class KVCache:
    """Keys and values in buffers that are allocated once, (B, H, length, D) float32 for each layer."""

    def __init__(self, config: ModelConfig, batch_size: int, length: int, device: torch.device | str = "cpu") -> None:
        shape = (batch_size, config.n_head, length, config.n_embd // config.n_head)
        self.keys = [torch.zeros(shape, device=device) for _ in range(config.n_layer)]
        self.values = [torch.zeros(shape, device=device) for _ in range(config.n_layer)]
        self.filled = 0  # positions that every layer has cached

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append this layer's new keys and values, (B, H, T, D) each; return all of them, (B, H, filled + T, D)."""
        end = self.filled + k.size(2)
        self.keys[layer][:, :, self.filled : end] = k
        self.values[layer][:, :, self.filled : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, n: int) -> None:
        """Count n new positions, which every layer has appended."""
        self.filled += n


class JoinedCache(KVCache):
    """The caches of several generations, whose rows go through the model as one batch, a token each. Every row attends
    to its own generation's cache, so different lengths need neither padding nor a mask."""

    def __init__(self, caches: Sequence[KVCache]) -> None:
        self.caches = caches
        self.rows = [len(cache.keys[0]) for cache in caches]

    def positions(self) -> Tensor:
        """The position of each row's next token, (rows, 1) int64."""
        positions = [cache.filled for cache, rows in zip(self.caches, self.rows, strict=True) for _ in range(rows)]
        return torch.tensor(positions, device=self.caches[0].keys[0].device)[:, None]

    def advance(self, n: int) -> None:
        """Count n new positions in each cache."""
        for cache in self.caches:
            cache.advance(n)
