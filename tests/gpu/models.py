"""Loads tiny models for tests of the engine, and gives a CPU's model what a GPU's model has."""

from dataclasses import replace
from pathlib import Path

import torch

from octavo.model.config import ModelConfig
from octavo.model.decoder import Decoder
from octavo.model.kernels.choice import select_backend
from octavo.model.kernels.gpu.decoder import GpuDecoder
from octavo.model.kernels.gpu.ops import GpuOps
from octavo.model.loading.checkpoint import load_model
from octavo.model.weights.precision import Precision
from tests.engine.fake_gpu import capturable
from tests.tiny import write_tiny_checkpoint

BLOCK_SIZE = 16
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


def load(directory: Path, device: torch.device, dtype: torch.dtype = torch.float32, **shape: int) -> Decoder:
    """Writes a tiny checkpoint and loads it like the engine."""
    config = ModelConfig.from_pretrained(write_tiny_checkpoint(directory, seed=3, sharp=4.0, **SHAPE | shape))
    return load_model(directory, config, select_backend(config, device), Precision.plain(dtype))


def interpreted(model: Decoder) -> Decoder:
    """Returns a CPU's model with the Triton kernels that a GPU's model has, which the interpreter runs."""
    plain = capturable(model)
    on_kernels = replace(plain, ops=GpuOps(model.config, 4, "sm_90").ops())
    return replace(on_kernels, fused=GpuDecoder.of(plain.layers, plain.config.rms_norm_eps, "sm_90"))
