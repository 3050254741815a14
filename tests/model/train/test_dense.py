"""The frozen model computes what the decoder computes, on whole sequences, and lets gradients through."""

from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.model.train.corpus import Batch
from tests.model.checkpoints import load
from tests.model.pages import Pages
from tests.model.train.training import QWEN3, dense_checkpoint, dense_model


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"model_type": "mistral", "sliding_window": 5},
        {"tie_word_embeddings": True, "num_key_value_heads": 4},
        QWEN3,
        QWEN3 | {"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 1},
    ],
)
def test_losses_are_those_of_the_decoders_logits(tmp_path: Path, overrides: dict[str, Any]) -> None:
    directory = dense_checkpoint(tmp_path / "dense", **overrides)
    tokens = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(1))
    model = dense_model(directory)
    losses = model.losses(batch(tokens), model.own)
    pages = Pages(load(directory), 2, 12)
    logits = pages.step([(0, 0, tokens[0].tolist()), (1, 0, tokens[1].tolist())]).view(2, 12, -1)
    expected = -logits.log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None]).flatten()
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)


def test_only_counted_tokens_have_a_loss_and_padding_changes_nothing(tmp_path: Path) -> None:
    model = dense_model(dense_checkpoint(tmp_path / "dense"))
    tokens = torch.randint(256, (1, 10), generator=torch.Generator().manual_seed(1))
    whole = model.losses(batch(tokens), model.own)  # of tokens 1 to 9
    padded = torch.cat((tokens, torch.full((1, 4), 9)), dim=1)
    counted = torch.zeros(1, 14, dtype=torch.bool)
    counted[0, 3:10] = True
    some = model.losses(Batch(padded, counted, torch.zeros(1)), model.own)
    torch.testing.assert_close(some, whole[2:])


def test_gradients_reach_the_feed_forward_of_each_layer(tmp_path: Path) -> None:
    model = dense_model(dense_checkpoint(tmp_path / "dense"))
    factors = torch.ones(2, requires_grad=True)
    tokens = torch.randint(256, (1, 10), generator=torch.Generator().manual_seed(1))
    loss = model.losses(batch(tokens), lambda layer, x: factors[layer] * model.own(layer, x)).sum()
    (gradient,) = torch.autograd.grad(loss, [factors])
    assert (gradient.abs() > 1e-3).all()


def batch(tokens: torch.Tensor) -> Batch:
    counted = torch.ones_like(tokens, dtype=torch.bool)
    counted[:, 0] = False
    return Batch(tokens, counted, torch.zeros(len(tokens)))
