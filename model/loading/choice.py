"""Chooses what a checkpoint's weights are held as, whether it is quantised already or not, and how much that takes."""

import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from octavo.model.config import ModelConfig, ModelError
from octavo.model.loading.quantised.recognise import description_of
from octavo.model.loading.shards import Shards
from octavo.model.weights.precision import Precision, Wanted, choose_precision

log = logging.getLogger(__name__)


def precision_for(
    directory: Path, wanted: Wanted, config: ModelConfig, device: torch.device, kernels: bool
) -> Precision:
    """Returns what the flags mean for a checkpoint on a device; `kernels` says whether the C kernels are there.

    `auto` keeps what the checkpoint has quantised, and `none` makes plain weights of it. Raises ModelError, also where
    a quantisation of ours would round quantised weights again.
    """
    precision = choose_precision(wanted, config.dtype, device, kernels)
    description = description_of(directory)
    if description is None:
        return precision
    for note in description.notes:
        log.info("%s", note)
    match wanted.quantization:
        case "auto":
            return replace(precision, keeps=True)
        case "none":
            log.info("The checkpoint's quantised weights become %s, as --quantization none asks.", precision.describe())
        case ours if description.is_exact:
            raise ModelError(
                f"{directory} is quantised already, and --quantization {ours} would round its weights again: leave "
                "the flag out to serve them as they are, or use none to make plain weights of them."
            )
        case ours:
            log.info("The checkpoint's weights are decoded and quantised again, as --quantization %s asks.", ours)
    return precision


def weight_bytes(directory: Path, config: ModelConfig, precision: Precision) -> int:
    """Returns the bytes that a checkpoint's weights will take, without padding.

    Where they are kept as the files have them, they take what the files take. Raises ModelError for broken files.
    """
    description = description_of(directory)
    if description is None or not precision.keeps or not description.is_exact:
        return precision.weight_bytes(config)
    with ExitStack() as stack:
        shards = Shards.open(directory, stack)
        return sum(map(shards.stored_bytes, shards.files))
