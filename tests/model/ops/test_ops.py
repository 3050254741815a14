"""Which functions stand behind the seams of which device."""

import pytest
import torch

from model.kernels.cpu.library import library
from model.ops import select_ops
from model.ops.experts import experts
from model.ops.linear import linear, linear_reference
from model.quantization import Int8Weight
from tests.model.test_kv_cache import CONFIG


def test_without_kernels_cpu_and_cuda_run_the_same_torch_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.ops.library", lambda: None)
    assert select_ops(CONFIG, torch.device("cpu")) == select_ops(CONFIG, torch.device("cuda", 1))
    assert select_ops(CONFIG, torch.device("cpu")).experts is experts


@pytest.mark.skipif(library() is None, reason="the C kernels were not built")
def test_the_kernels_take_what_is_theirs() -> None:
    ops = select_ops(CONFIG, torch.device("cpu"))
    x, dense = torch.randn(3, 64), torch.randn(32, 64)
    weight = Int8Weight.pack(dense)
    torch.testing.assert_close(ops.linear(x, weight), linear_reference(x, weight), rtol=1e-5, atol=1e-5)
    assert torch.equal(ops.linear(x, dense), linear(x, dense))


def test_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="no operations for device 'mps'"):
        select_ops(CONFIG, torch.device("mps"))
