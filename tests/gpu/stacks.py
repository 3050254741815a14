"""Makes random experts of every kind, and tokens that choose among them."""

from functools import partial

import pytest
import torch
from torch import Tensor

from octavo.model.weights.kinds import Kind as CheckpointKind
from octavo.model.weights.kinds import Offset, Scale
from octavo.model.weights.memory import zeros_on
from octavo.model.weights.parts import Parts
from octavo.model.weights.row_major import Fp8RowMajor, Int4RowMajor, Int8GroupedRowMajor, Int8RowMajor, RowMajorWeight
from octavo.model.weights.row_major_kinds import E2M1, RowMajorForm, fp8_form, row_major_form
from octavo.model.weights.stack import Stack
from tests.model.weights.any_kind import NAMED, UNSIGNED4, random_parts

SIGNED4 = tuple(range(-8, 8))
GPTQ = partial(CheckpointKind, UNSIGNED4, offset=Offset.ZERO)
FP8_GROUPS = fp8_form(128)
# Each has something that no other one has: a type of scale, a size of group, an offset, a table.
CHECKPOINT_KINDS: dict[str, CheckpointKind | RowMajorForm] = {
    "4 bits, 128, fp16, zero": GPTQ(128, Scale.FLOAT16),
    "4 bits, 32, bf16, zero": GPTQ(32, Scale.BFLOAT16),
    "4 bits, 64, fp32, zero": GPTQ(64, Scale.FLOAT32),
    "4 bits, 256, fp16, zero": GPTQ(256, Scale.FLOAT16),
    "4 bits, channel, zero": GPTQ(0, Scale.NONE),
    "4 bits, 128, bf16": CheckpointKind(SIGNED4, 128, Scale.BFLOAT16),
    "4 bits, 32, fp16": CheckpointKind(SIGNED4, 32, Scale.FLOAT16),
    "4 bits, channel": CheckpointKind(SIGNED4, 0, Scale.NONE),
    "4 bits, 32, fp16, minimum": NAMED["q4_1"],
    "4 bits, 128, bf16, minimum": CheckpointKind(UNSIGNED4, 128, Scale.BFLOAT16, Offset.MINIMUM),
    "4 bits, 64, fp32, minimum": NAMED["minima in float32"],
    "q4_k": NAMED["q4_k"],
    "mxfp4": NAMED["mxfp4"],
    "fp4, 128, fp16": CheckpointKind(E2M1, 128, Scale.FLOAT16),
    "8 bits, 128, fp16, zero": CheckpointKind(None, 128, Scale.FLOAT16, Offset.ZERO),
    "8 bits, 32, bf16": CheckpointKind(None, 32, Scale.BFLOAT16),
    "8 bits, channel, zero": CheckpointKind(None, 0, Scale.NONE, Offset.ZERO),
    "8 bits, 32, bf16, minimum": NAMED["minima in bfloat16"],
    "q5_k": NAMED["q5_k"],
    "fp8, 128": FP8_GROUPS,
}
KINDS = [torch.bfloat16, torch.float16, torch.float32, Int8RowMajor, Int8GroupedRowMajor, Int4RowMajor, Fp8RowMajor]
Kind = torch.dtype | type[RowMajorWeight] | CheckpointKind | RowMajorForm
NAMES = [str(kind).split(".")[-1].rstrip("'>") for kind in KINDS]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=NAMES)
each_checkpoint_kind = pytest.mark.parametrize("kind", CHECKPOINT_KINDS.values(), ids=CHECKPOINT_KINDS)


def make(kind: Kind, dtype: torch.dtype, shape: tuple[int, int, int], device: torch.device) -> tuple[Stack, Tensor]:
    """Returns random weights [E, out, in] as a stack, and their values as they are held, [E, out, in] float32."""
    if kind in (Fp8RowMajor, FP8_GROUPS) and device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("the device has no fp8")
    torch.manual_seed(sum(shape))
    if isinstance(kind, CheckpointKind | RowMajorForm):
        return make_held(kind, shape, device)
    dense = torch.randn(shape, device=device).div_(shape[2] ** 0.5)
    if isinstance(kind, torch.dtype):
        dense = dense.to(dtype)
        return Stack.of(dense.unbind()), dense.float()
    views = kind.stack(shape[0], shape[1:], zeros_on(device))
    for view, rows in zip(views, dense, strict=True):
        view.fill(rows, 0)
        rows.copy_(view.dense())  # It is done in place: at true shapes this is 4 GB, and several tests share a device.
    return Stack.of(views), dense


def make_held(
    kind: CheckpointKind | RowMajorForm, shape: tuple[int, int, int], device: torch.device
) -> tuple[Stack, Tensor]:
    """Returns random weights of a checkpoint's kind, and what the parts of that kind mean by its description."""
    form = kind if isinstance(kind, RowMajorForm) else row_major_form(kind)
    assert form is not None
    views = form.stack(shape[0], shape[1:], zeros_on(device))
    dense = torch.empty(shape)
    for view, rows in zip(views, dense, strict=True):
        parts, values = random_fp8(*shape[1:]) if isinstance(kind, RowMajorForm) else random_held(kind, *shape[1:])
        view.put(parts, 0)
        rows.copy_(values)
    return Stack.of(views), dense.to(device)


def random_held(kind: CheckpointKind, out: int, inputs: int) -> tuple[Parts, Tensor]:
    """Returns random parts, and what they mean: [out, in] float32, a few tenths as large as a product's terms."""
    parts = random_parts(kind, out, inputs)
    parts = Parts(parts.codes, parts.factors / inputs**0.5, parts.scales, parts.offsets, parts.coarse)
    padded = parts.padded(kind, -(-inputs // kind.unit) * kind.unit)
    return parts, padded.unpacked(kind).dense()[:, :inputs]


def random_fp8(out: int, inputs: int) -> tuple[Parts, Tensor]:
    """Does what random_held does, with a scale for each 128 inputs."""
    rows, factors = torch.randn(out, inputs).to(torch.float8_e4m3fn), torch.rand(out) / inputs**0.5
    scales = 0.5 + torch.rand(out, -(-inputs // 128))
    wide = factors[:, None] * scales.repeat_interleave(128, 1)[:, :inputs]
    return Parts(rows.view(torch.uint8), factors, scales), rows.float() * wide


def activations(kind: Kind) -> torch.dtype:
    return kind if isinstance(kind, torch.dtype) else torch.bfloat16


def ragged(tokens: int, top_k: int, num_experts: int, device: torch.device) -> Tensor:
    """Chooses different experts for each token; the last expert gets none, the first one most."""
    torch.manual_seed(tokens)
    weights = torch.rand(tokens, num_experts)
    weights[:, 0] += 0.7
    if num_experts > top_k:
        weights[:, -1] = 0
    return weights.topk(top_k).indices.to(device, torch.int32)
