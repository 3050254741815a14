"""Which functions stand behind the seams of which device."""

import pytest
import torch

from model.ops import select_ops
from model.ops.experts import experts
from tests.model.test_kv_cache import CONFIG


def test_cpu_and_cuda_run_the_same_torch_code() -> None:
    assert select_ops(CONFIG, torch.device("cpu")) == select_ops(CONFIG, torch.device("cuda", 1))
    assert select_ops(CONFIG, torch.device("cpu")).experts is experts


def test_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="no operations for device 'mps'"):
        select_ops(CONFIG, torch.device("mps"))
