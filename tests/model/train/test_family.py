"""A dense family becomes the sparse one that holds it exactly, and what none holds is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.model.config import ModelConfig, ModelError
from octavo.model.train.family import MIXTRAL, QWEN3_MOE, Sparsity, family_for, sparse_config
from tests.model.train.training import QWEN3, dense_checkpoint
from tests.tiny import LLAMA3_ROPE


def family_of(directory: Path) -> Any:
    return family_for(directory, ModelConfig.from_pretrained(directory))


@pytest.mark.parametrize(
    ("overrides", "family"),
    [({}, MIXTRAL), ({"model_type": "mistral"}, MIXTRAL), (QWEN3, QWEN3_MOE)],
)
def test_families(tmp_path: Path, overrides: dict[str, Any], family: Any) -> None:
    assert family_of(dense_checkpoint(tmp_path / "dense", **overrides)) is family


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model_type": "qwen2"}, "no sparse family holds a qwen2 model exactly: its queries, keys and values have"),
        ({"attention_bias": True}, "its attention_bias is true, and a Mixtral has no biases"),
        ({"model_type": "mixtral"}, r"it is sparse already \(mixtral\)"),
        (
            QWEN3 | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
            "only some of its layers have a sliding window",
        ),
    ],
)
def test_what_no_sparse_family_holds_is_refused(tmp_path: Path, overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        family_of(dense_checkpoint(tmp_path / "dense", **overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE, "max_position_embeddings": 300},
        {"model_type": "mistral", "sliding_window": 7},
        QWEN3 | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
        QWEN3 | {"attention_bias": True},
    ],
)
def test_all_that_the_dense_model_is_stays(tmp_path: Path, overrides: dict[str, Any]) -> None:
    directory = dense_checkpoint(tmp_path / "dense", **overrides)
    dense = ModelConfig.from_pretrained(directory)
    written = sparse_config(directory, dense, family_for(directory, dense), Sparsity(experts=5, top_k=2))
    (tmp_path / "sparse").mkdir()
    (tmp_path / "sparse" / "config.json").write_text(json.dumps(written))
    sparse = ModelConfig.from_pretrained(tmp_path / "sparse")
    assert (sparse.num_experts, sparse.num_experts_per_tok, sparse.dense, sparse.normalise_top_k) == (5, 2, False, True)
    assert sparse.windows() == dense.windows() and sparse.dense_layers == ()
    apart = ("num_experts", "num_experts_per_tok", "dense", "dtype", "tie_word_embeddings")
    apart += ("windowed", "sliding_window", "dense_intermediate_size")
    for name in set(ModelConfig.__dataclass_fields__) - set(apart):
        assert getattr(sparse, name) == getattr(dense, name), name
