"""The modern architecture in the layout of transformers' NanoChatForCausalLM, read and written without transformers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prepare.common.cli import UserError
from train.config.pretrain import Component, ModelConfig
from train.model.modern import EPS, SOFTCAP, THETA

NAMES = {  # here: there
    "h.": "model.layers.",
    "wte.": "model.embed_tokens.",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
READERS = {"ln_1": "attn.c_attn", "ln_2": "mlp.c_fc", "ln_f": "lm_head"}  # of each norm's output
ALWAYS = ("rotary", "qk_norm", "embed_norm", "rms_norm")  # components that each of its models has
# settings that no model here depends on, or that are read elsewhere
FREE = ("architectures", "rope_parameters", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id")
ROPE = {"rope_theta": THETA, "rope_type": "default"}


def read_nanochat_config(hf: Mapping[str, Any]) -> tuple[ModelConfig, dict[str, tuple]]:
    """The ModelConfig that a config.json describes, and its further settings with the values that are supported, the
    first one the default. `hf` has the rope settings at the top level. KeyError if a setting is missing."""
    heads, width = hf["num_attention_heads"], hf["hidden_size"]
    absent: dict[Component, bool] = {
        "relu2": hf.get("hidden_act", "relu2") != "relu2",
        "untied_head": hf.get("tie_word_embeddings", False),
        "softcap": hf.get("final_logit_softcapping", SOFTCAP) is None,
    }
    config = ModelConfig(
        n_layer=hf["num_hidden_layers"],
        n_head=heads,
        n_embd=width,
        block_size=hf["max_position_embeddings"],
        vocab_size=hf["vocab_size"],
        architecture="modern",
        without=["norm_weights", *(component for component, is_absent in absent.items() if is_absent)],
    )
    rope = ROPE | {"type": "default", "partial_rotary_factor": 1.0}
    fixed = nanochat_config(config, None) | rope | {"head_dim": width // heads}
    return config, {key: (value, None) for key, value in fixed.items() if key not in FREE}


def nanochat_config(config: ModelConfig, eot: int | None) -> dict[str, Any]:
    """The config.json of a model of this shape and end-of-text token. UserError if transformers has no such model."""
    if missing := [component for component in config.without if component in ALWAYS]:
        raise UserError(
            f"the model is without {', '.join(missing)}, which transformers' NanoChatForCausalLM always has: it "
            "cannot be exported"
        )
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "max_position_embeddings": config.block_size,
        "vocab_size": config.vocab_size,
        "hidden_act": "gelu_pytorch_tanh" if "relu2" in config.without else "relu2",
        "final_logit_softcapping": None if "softcap" in config.without else SOFTCAP,
        "tie_word_embeddings": {"untied_head", "norm_weights"}.issubset(config.without),  # see to_nanochat
        "rope_parameters": ROPE,
        "rms_norm_eps": EPS,
        "attention_bias": False,
        "attention_dropout": config.dropout,
        "bos_token_id": eot,
        "eos_token_id": eot,
        "pad_token_id": None,
    }


def to_nanochat(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors under transformers' names, with queries, keys and values apart.

    Transformers' norms have no weights: they are multiplied into the matrices that read the norms' outputs. The final
    norm's scale the head alone, so that a tied head is exported as an untied one.
    """
    folded = dict(state)
    for name in [name for name in state if "ln_" in name]:
        reader = _rename(name, READERS)
        folded[reader] = folded.get(reader, state["wte.weight"]) * folded.pop(name)  # (rows, C) * (C,)
    tensors = {}
    for name, tensor in folded.items():
        name = _rename(name, NAMES)
        if "attn.c_attn" in name:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            tensors |= {name.replace("attn.c_attn", f"self_attn.{x}_proj"): part for x, part in parts}
        else:
            tensors[name] = tensor
    return tensors


def from_nanochat(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of transformers' model under the names here, with queries, keys and values in one."""
    ours = {theirs: ours for ours, theirs in NAMES.items()}
    state = {_rename(name, ours): tensor for name, tensor in tensors.items()}
    for q in [name for name in state if "self_attn.q_proj" in name]:
        parts = [state.pop(q.replace("q_proj", f"{x}_proj")) for x in "qkv"]
        state[q.replace("self_attn.q_proj", "attn.c_attn")] = torch.cat(parts)
    return state


def _rename(name: str, parts: Mapping[str, str]) -> str:
    """A tensor's name with these parts replaced."""
    for old, new in parts.items():
        name = name.replace(old, new)
    return name
