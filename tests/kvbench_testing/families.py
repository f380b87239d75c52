"""Tiny random models of the families that transformers has for causal language modelling."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 97
#: keys of configs, with small values that go together
SIZES: dict[str, int] = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 512,
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "intermediate_size_mlp": 64,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "d_model": 64, "n_embd": 64,
    "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": 512, "n_ctx": 512, "d_ff": 64, "d_kv": 16,
    "num_layers": 2, "num_heads": 4, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "ffn_dim": 64, "ffn_hidden_size": 64,
    "word_embed_proj_dim": 64, "embedding_size": 64, "rotary_dim": 8, "max_sequence_length": 512, "max_seq_len": 512,
    "dff": 64, "dim": 64, "n_layers": 2, "n_heads": 4, "emb_dim": 64, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "qk_head_dim": 24, "global_head_dim": 16,
    "num_global_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "num_kv_heads": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "mamba_n_heads": 4, "mamba_d_state": 16, "mamba_d_head": 32, "mamba_num_heads": 4,
    "mamba_head_dim": 16, "state_size": 16, "mamba_chunk_size": 8, "chunk_size": 8, "ssm_state_size": 16,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "attention_hidden_size": 64, "lru_width": 64, "moe_topk": 2, "dim_model": 64, "dim_ff": 64, "dim_head": 16,
    "index_n_heads": 2, "index_head_dim": 16, "index_topk": 16, "image_size": 32, "patch_size": 16,
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16, "swa_v_head_dim": 16,
    "num_attention_groups": 2,
}  # fmt: skip


def names() -> list[str]:
    """All families, by model type."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny(family: str) -> PreTrainedModel:
    """A model of a family with two small layers and wide weights, so that attention matters.

    Raises:
        Exception: these sizes do not go together there, or a package is missing.
    """
    cls = CONFIG_MAPPING[family]
    whole = cls()
    parts = {
        name: _sizes(part) for name in cls.sub_configs if (part := getattr(whole, name, None)) is not None
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(cls(**_sizes(whole), **parts), dtype=torch.float32).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1 and weight.numel() < 10**7:
                weight.normal_(0, 0.15, generator=draw)
    return model


def _sizes(config: Any) -> dict[str, int]:
    content = config.to_dict()
    optional = ("pad_token_id", "num_key_value_heads")
    return {
        key: value
        for key, value in SIZES.items()
        if isinstance(content.get(key), int | float) or (key in optional and key in content)
    }
