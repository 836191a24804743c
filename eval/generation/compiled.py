"""One new token for each row, compiled once: every step has the same shapes, wherever in the window it is."""

import torch
from torch import Tensor

from train.config.pretrain import ModelConfig
from train.model.gpt import GPT
from train.model.kv_cache import KVCache
from train.parallel.compile_ddp import compiler_errors, prepare_compiler

OPTION = "--compile", "leave it out"  # what asks for the compiler, and what to do where there is none


class FixedKVCache(KVCache):
    """A whole block of positions. A single token goes where `place` (int64, (1,)) says, and all positions come back,
    of which a mask must hide those that hold nothing."""

    def __init__(self, config: ModelConfig, batch_size: int, device: torch.device | str) -> None:
        super().__init__(config, batch_size, config.block_size, device)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        for tensor in (*self.keys, *self.values):
            torch._dynamo.mark_static_address(tensor)  # without it there is no CUDA graph, since it writes to them

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if k.size(2) > 1:
            return super().extend(layer, k, v)
        self.keys[layer].index_copy_(2, self.place, k)
        self.values[layer].index_copy_(2, self.place, v)
        return self.keys[layer], self.values[layer]

    def advance(self, n: int) -> None:
        if n > 1:
            super().advance(n)


class CompiledStep:
    """A model's compiled step for so many rows, and the cache that it works on."""

    def __init__(self, model: GPT, batch_size: int) -> None:
        """Nothing is compiled before the first call.

        Raises:
            UserError: there is no C++ compiler.
        """
        prepare_compiler(*OPTION)
        device = model.wte.weight.device
        self.tokens = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)
        self.model, self.cache = model, FixedKVCache(model.config, batch_size, device)
        mode = "reduce-overhead" if device.type == "cuda" else None  # CUDA graphs: a step is mostly launches
        self.run = torch.compile(self._run, fullgraph=True, dynamic=False, mode=mode)

    def __call__(self, tokens: Tensor, place: int, positions: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, V) of what follows the tokens, int64 (B, 1), which go to one place of the cache.

        Args:
            positions: (B, 1) int64, in the model's block.
            mask: (B, 1, 1, block_size) float32, 0 for the places that each token sees, else -inf.

        Raises:
            UserError: the C++ compiler does not work.
        """
        self.tokens.copy_(tokens)  # a slice's strides would be other ones in another text
        self.cache.place.fill_(place)
        with compiler_errors(*OPTION):
            return self.run(positions, mask)

    def _run(self, positions: Tensor, mask: Tensor) -> Tensor:
        return self.model.logits(self.model.hidden(self.tokens, self.cache, positions, mask)[:, -1])
