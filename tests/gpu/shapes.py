"""Holds the sizes of models whose kernels are compiled, and what sets their layers apart; from their config.json."""

from dataclasses import dataclass

from octavo.model.families import Swiglu


@dataclass(frozen=True)
class Shape:
    """A Shape holds the sizes of a model's layers."""

    hidden: int
    inner: int  # width of an expert
    experts: int
    top_k: int
    heads: int
    kv_heads: int
    head_dim: int
    norm: str = "none"  # of queries and keys: none, head or projection
    clip: float | None = None
    biases: bool = False  # of everything
    sinks: bool = False
    window: int | None = None  # of every second layer
    activation: Swiglu = Swiglu()

    @property
    def qkv(self) -> int:
        """Returns the width of qkv."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim


MIXTRAL = "Mixtral 8x7B"
SHAPES = {
    MIXTRAL: Shape(4096, 14336, 8, 2, 32, 8, 128),
    "Mixtral 8x22B": Shape(6144, 16384, 8, 2, 48, 8, 128),
    "Qwen3-30B-A3B": Shape(2048, 768, 128, 8, 32, 4, 128, norm="head"),
    "OLMoE-1B-7B": Shape(2048, 1024, 64, 8, 16, 16, 128, norm="projection", clip=8.0),
    "gpt-oss-20b": Shape(
        2880, 2880, 32, 4, 64, 8, 64, biases=True, sinks=True, window=128, activation=Swiglu(1.702, 7.0, 1.0)
    ),
}
