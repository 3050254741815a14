"""Writes what a GGUF file says about a model of llama.cpp's architecture "llama", which covers Mixtral and Mistral.

The names are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import gguf

from octavo.model.config import ModelConfig


def describe(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """Adds the model's sizes to a file of the architecture "llama"."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if not config.dense:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
