"""The model against transformers' GPT-2: same weights, same logits, same gradients."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from train.config.pretrain import ModelConfig
from train.model.build import build_model
from train.model.gpt import GPT
from train.model.kv_cache import KVCache
from train.model.linear import WORTH_ONEDNN, linear
from train.weights.huggingface import from_hf

SHAPES = [
    ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=4, vocab_size=11),
    ModelConfig(n_layer=2, n_head=4, n_embd=32, block_size=16, vocab_size=97),
    ModelConfig(n_layer=3, n_head=2, n_embd=64, block_size=33, vocab_size=256),
    ModelConfig(n_layer=2, n_head=3, n_embd=48, block_size=8, vocab_size=50257),
]


def pair(config: ModelConfig, seed: int, dropout: float = 0.0) -> tuple[GPT2LMHeadModel, GPT]:
    """A transformers GPT-2 with random weights, and ours with the same weights."""
    torch.manual_seed(seed)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            n_positions=config.block_size,
            vocab_size=config.vocab_size,
            bos_token_id=None,
            eos_token_id=None,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
        )
    )
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases and norms too, away from their initial 0 and 1
            parameter.add_(0.05 * torch.randn_like(parameter))
    ours = GPT(replace(config, dropout=dropout))
    from_hf(ours, theirs.state_dict(), "test")
    return theirs, ours


def test_one_compilation_serves_every_length() -> None:
    """Of the modern architecture, which does more than GPT-2's."""
    model = build_model(ModelConfig(1, 2, 32, block_size=64, vocab_size=90, architecture="modern"))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for length in (16, 24, 40):  # from the second on it is a symbol
        x = torch.randint(90, (4, length))
        torch.testing.assert_close(compiled(x, x), model(x, x))
        compiled(x, x).backward()


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_large_linear_layer_equals_float64(gelu: bool, bias: bool, gradients: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((2, 130, 256), (320, 256)))
    b = torch.randn(320, generator=generator) if bias else None
    assert x.numel() * len(weight) > WORTH_ONEDNN
    with torch.set_grad_enabled(gradients):
        found = linear(x, weight, b, gelu)  # (2, 130, 320)
    expected = x.double() @ weight.double().T + (0 if b is None else b.double())
    if gelu:
        expected = expected / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (expected + 0.044715 * expected**3)))
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("config", SHAPES, ids=lambda config: f"{config.n_layer}x{config.n_embd}v{config.vocab_size}")
@pytest.mark.parametrize("batch", [1, 3])
def test_logits_loss_and_gradients_equal_transformers(config: ModelConfig, batch: int) -> None:
    theirs, ours = pair(config, seed=batch)
    idx = torch.randint(config.vocab_size, (batch, config.block_size))
    torch.testing.assert_close(ours(idx), theirs(idx).logits, atol=1e-5, rtol=1e-5)

    targets = torch.randint(config.vocab_size, (batch, config.block_size))
    loss = ours(idx, targets)
    reference = torch.nn.functional.cross_entropy(theirs(idx).logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=1e-5)
    loss.backward()
    reference.backward()
    gradients = GPT(config)  # a model to hold their gradients
    from_hf(gradients, {name: parameter.grad for name, parameter in theirs.named_parameters()}, "test")
    for (name, parameter), theirs_grad in zip(ours.named_parameters(), gradients.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, theirs_grad.data, atol=1e-5, rtol=1e-5, msg=name)


def test_flops_of_a_token_are_counted_as_palm_does() -> None:
    # 6 x 123,653,376, the parameters without 1,024 positions of 768, and 12 x 12 layers x 768 x 1,024
    with torch.device("meta"):
        assert GPT(ModelConfig(vocab_size=50257)).flops_per_token() == 741_920_256 + 113_246_208


def test_initialization_is_openais() -> None:
    torch.manual_seed(0)
    config = ModelConfig(n_layer=8, n_head=4, n_embd=256, block_size=256, vocab_size=1000)
    for name, parameter in GPT(config).named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.full_like(parameter, float("ln" in name and "weight" in name))), name
            continue
        expected = 0.01 if name == "wpe.weight" else 0.02 / math.sqrt(16) if "c_proj" in name else 0.02
        assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
        assert abs(parameter.mean().item()) < expected / 20, name


@pytest.mark.parametrize("cuts", [[33], [1] * 33, [5, 1, 1, 10, 16], [32, 1]], ids=str)
def test_cache_gives_the_logits_of_the_whole_sequence(cuts: list[int]) -> None:
    _, model = pair(SHAPES[2], seed=2)
    model.eval()
    idx = torch.randint(256, (3, 33))
    cache = KVCache(model.config, batch_size=3, length=33)
    parts = [model.logits(model.hidden(part, cache)) for part in idx.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(idx), atol=1e-5, rtol=1e-5)
    assert cache.filled == 33


def test_more_positions_than_the_block_size_are_refused() -> None:
    model = GPT(SHAPES[0])
    with pytest.raises(ValueError, match="5 positions are more than block_size 4"):
        model(torch.zeros(1, 5, dtype=torch.int64))


def test_dropout_acts_where_transformers_has_it() -> None:
    """From one seed the same masks, drawn in the same order."""
    theirs, ours = pair(SHAPES[1], seed=4, dropout=0.3)
    idx = torch.randint(97, (2, 16))
    torch.manual_seed(0)
    expected = theirs.train()(idx).logits
    torch.manual_seed(0)
    torch.testing.assert_close(ours(idx), expected, atol=1e-5, rtol=1e-5)


def test_without_biases() -> None:
    config = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=50, bias=False)
    names = [name for name, _ in GPT(config).named_parameters()]
    assert not [name for name in names if "bias" in name]
    assert GPT(config)(torch.zeros(1, 16, dtype=torch.int64)).shape == (1, 16, 50)


@pytest.mark.parametrize(("compiled", "architecture"), [(False, "gpt2"), (True, "modern")])
def test_activation_checkpointing_has_the_same_loss_and_gradients_and_stores_less(
    compiled: bool, architecture: str
) -> None:
    """Compiled without Inductor's code, which has no part in it, and without dropout, whose masks would be others."""
    dropout = 0.0 if compiled else 0.2
    config = ModelConfig(2, 2, 32, block_size=64, vocab_size=50, dropout=dropout, architecture=architecture)
    if architecture == "modern":  # else the layers' gradients are 0
        config = replace(config, without=["zero_init"])
    torch.manual_seed(0)
    model = build_model(config)
    step = torch.compile(model, backend="aot_eager_decomp_partition") if compiled else model
    idx = torch.randint(50, (4, 64))
    found = []
    for model.recompute in (False, True):
        kept = []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x) or x, lambda x: x):
            loss = step(idx, idx)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
        found.append((loss, gradients, sum(storages.values())))
    (loss, gradients, plain), (recomputed_loss, recomputed_gradients, recomputed) = found
    torch.testing.assert_close(recomputed_loss, loss, atol=1e-6, rtol=0)
    torch.testing.assert_close(recomputed_gradients, gradients, atol=1e-6, rtol=1e-5)
    assert recomputed < plain / 2
    if compiled:
        model.recompute = False
        eager = model(idx, idx)
        torch.testing.assert_close(loss, eager, atol=1e-6, rtol=0)
        eager_gradients = torch.autograd.grad(eager, list(model.parameters()))
        torch.testing.assert_close(gradients, eager_gradients, atol=1e-6, rtol=1e-5)
