"""Makes of the requests' controls what is added to the logits of the routers."""

import numpy as np
import torch
from torch import Tensor

from octavo.engine.schedule.batch import Batch
from octavo.model.config import ModelConfig


def addends(batch: Batch, config: ModelConfig, device: torch.device) -> Tensor | None:
    """Returns the addends [L, T, E] float32 for the L routers and the T tokens of a batch.

    Returns None if no request of the batch controls experts.
    """
    if all(row.params.experts is None for row in batch.rows):
        return None
    place = {layer: index for index, layer in enumerate(config.sparse_layers())}
    tokens = sum(len(row.tokens) for row in batch.rows)
    table, end = np.zeros((len(place), tokens, config.num_experts), np.float32), 0
    for row in batch.rows:
        start, end = end, end + len(row.tokens)
        if row.params.experts is not None:
            for layer, expert, addend in row.params.experts.biases:
                table[place[layer], start:end, expert] += addend
            for layer, expert in row.params.experts.masked:
                table[place[layer], start:end, expert] = -np.inf
    return torch.from_numpy(table).to(device)
