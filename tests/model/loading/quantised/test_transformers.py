"""Compares FP8 in blocks and MXFP4 with transformers' own arithmetic, which runs on a CPU."""

import pytest
import torch

from octavo.model.loading.quantised.fp8 import Fp8
from octavo.model.loading.quantised.mxfp4 import Mxfp4

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("shape", [(256, 384), (200, 320)])
def test_fp8_in_blocks(shape: tuple[int, int]) -> None:
    integration = pytest.importorskip("transformers.integrations.finegrained_fp8")
    out, inputs = shape
    weight = torch.randn(shape).to(torch.float8_e4m3fn)
    scales = 0.5 + torch.rand(-(-out // 128), -(-inputs // 128))
    tensors = {"m.weight": weight, "m.weight_scale_inv": scales}
    ours = Fp8((128, 128), "weight_scale_inv").read(tensors.__getitem__, "m", shape).dense()
    theirs = integration._dequantize_fp8_weight(weight, scales, (128, 128), torch.float32)
    assert torch.equal(ours, theirs)


def test_mxfp4() -> None:
    integration = pytest.importorskip("transformers.integrations.mxfp4")
    experts, out, inputs = 2, 48, 96
    blocks = torch.randint(0, 256, (experts, out, inputs // 32, 16), dtype=torch.uint8)
    scales = torch.randint(110, 135, (experts, out, inputs // 32), dtype=torch.uint8)
    theirs = integration.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)  # [E, in, out]
    for n in range(experts):
        tensors = {"experts.down_proj_blocks": blocks[n], "experts.down_proj_scales": scales[n]}
        ours = Mxfp4().read(tensors.__getitem__, "experts.down_proj", (out, inputs)).dense()
        assert torch.equal(ours, theirs[n].T)
