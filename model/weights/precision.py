"""Chooses from the flags and the device what a model's matrices are held as and what it computes in."""

import platform
from dataclasses import dataclass

import torch

from octavo.model.config import DTYPES, QUANTIZATIONS, ModelConfig, ModelError
from octavo.model.weights.forms import Form
from octavo.model.weights.fp16 import Fp16Weight
from octavo.model.weights.kinds import INT4, INT8, INT8_FINE
from octavo.model.weights.row_major import Fp8RowMajor, Int4RowMajor, Int8RowMajor, RowMajorWeight

SHORT: dict[Form, str] = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    Fp16Weight: "fp16",
    INT8: "int8",
    INT8_FINE: "int8",
    INT4: "int4",
    Int8RowMajor: "int8",
    Int4RowMajor: "int4",
    Fp8RowMajor: "fp8",
}
_ROW_MAJOR: dict[str, type[RowMajorWeight]] = {"int8": Int8RowMajor, "int4": Int4RowMajor, "fp8": Fp8RowMajor}
FP8_CAPABILITY = (8, 9)


@dataclass(frozen=True, slots=True)
class Precision:
    """A Precision says how a model is held and computed.

    Norms and routers have the dtype of the activations; the embedding has 16 bits or more.
    """

    activations: torch.dtype  # also the KV cache's
    experts: Form
    linears: Form  # for attention and the head
    downs: Form | None = None  # for the experts' down where rounding costs most; None: what the other experts have
    keeps: bool = False  # What a checkpoint has quantised is held as it is, if any kind holds it.

    @property
    def has_plain_linears(self) -> bool:
        """Is true if all but the experts are tensors, so that a tied head can be the embedding itself."""
        return isinstance(self.linears, torch.dtype)

    @property
    def is_quantised(self) -> bool:
        """Is true if experts have 8 bits or fewer."""
        return not isinstance(self.experts, torch.dtype) and self.experts is not Fp16Weight

    @classmethod
    def plain(cls, dtype: torch.dtype) -> "Precision":
        """Returns one dtype for everything."""
        return cls(dtype, dtype, dtype)

    def down(self, layer: int, layers: int) -> Form:
        """Returns what the experts' down projections of a layer are held as, in a model of so many layers."""
        return self.experts if self.downs is None or not _costs_most(layer, layers) else self.downs

    def weight_bytes(self, config: ModelConfig) -> int:
        """Returns the bytes that the weights of such a model will take, without padding."""
        experts = config.num_expert_parameters()
        table = config.vocab_size * config.hidden_size
        if isinstance(self.linears, torch.dtype):  # a tied head is the embedding itself
            return round(self._expert_bytes(config) + (config.num_parameters() - experts) * self.linears.itemsize)
        others = config.num_parameters() - experts - (0 if config.tie_word_embeddings else table)
        return round(self._expert_bytes(config) + others * _bytes(self.linears) + 2 * table)

    def _expert_bytes(self, config: ModelConfig) -> float:
        layers = config.num_hidden_layers
        # Gate, up and down of a layer are equally large.
        each = [2 * _bytes(self.experts) + _bytes(self.down(n, layers)) for n in range(layers)]
        return sum(each) / 3 * config.num_expert_parameters() / max(1, layers)

    def describe(self) -> str:
        """Returns for the log what the weights are held as."""
        if self.keeps:
            return f"the checkpoint's own quantised and {SHORT[self.linears]} other"
        if SHORT[self.linears] == SHORT[self.experts]:
            return SHORT[self.experts]
        return f"{SHORT[self.experts]} expert and {SHORT[self.linears]} other"


def _costs_most(layer: int, layers: int) -> bool:
    """Says where llama.cpp's Q4_K_M gives down more bits: the first and last eighth, every third layer between."""
    eighth = layers // 8
    return not eighth <= layer < 7 * layers // 8 or (layer - eighth) % 3 == 2


def _bytes(form: Form) -> float:
    return form.itemsize if isinstance(form, torch.dtype) else form.bytes_per_weight


@dataclass(frozen=True, slots=True)
class Wanted:
    """Holds the flags of the same names: what the user asked for."""

    dtype: str = "auto"  # auto, or one of DTYPES
    quantization: str = "auto"  # one of QUANTIZATIONS


def choose_precision(wanted: Wanted, checkpoint: str | None, device: torch.device, kernels: bool) -> Precision:
    """Returns what the flags mean on a device, for a checkpoint whose config names a dtype or none. Raises ModelError.

    `kernels` says whether the C kernels are there; without them a CPU multiplies quantised weights slowly.
    """
    if wanted.dtype not in ("auto", *DTYPES):
        raise ModelError(f"The dtype {wanted.dtype!r} is unknown; use auto, {', '.join(DTYPES)}.")
    match wanted.quantization:
        case "auto" if wanted.dtype == "auto" and device.type == "cpu" and kernels:
            return Precision(torch.float32, INT8, INT8_FINE)
        case "auto" | "none":
            return _unquantised(wanted.dtype, checkpoint, device)
        case "int8" | "int4" | "fp8" if device.type == "cuda":
            return _quantised_on_cuda(wanted, checkpoint, device)
        case "int8":
            return Precision(_on_cpu(wanted.dtype), INT8, INT8_FINE)
        case "int4":
            # Measured on the default model, in groups that are new to it: experts in 4 bits raise perplexity by 10%,
            # and with down in 8 bits in half of the layers by 5%, for an eighth more memory. Attention in 4 bits would
            # cost as much again, and the head 5%; neither saves much beside the experts.
            return Precision(_on_cpu(wanted.dtype), INT4, INT8_FINE, downs=INT8)
        case "fp8":
            raise ModelError("fp8 needs a GPU that computes with it; on a CPU use --quantization int8.")
        case other:
            raise ModelError(f"The quantization {other!r} is unknown; use {', '.join(QUANTIZATIONS)}.")


def quantizations(device: torch.device) -> tuple[str, ...]:
    """Returns the quantisations that a device has, `none` among them."""
    return ("none", "fp8", "int8", "int4") if has_fp8(device) else ("none", "int8", "int4")


def has_fp8(device: torch.device) -> bool:
    """Returns whether a device computes with float8_e4m3fn."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def _quantised_on_cuda(wanted: Wanted, checkpoint: str | None, device: torch.device) -> Precision:
    """Quantises experts only: they are nearly all of a sparse model, and quality depends on the rest."""
    if wanted.quantization == "fp8" and "fp8" not in quantizations(device):
        raise ModelError("fp8 needs a GPU of compute capability 8.9 or more; use --quantization int8.")
    linears = _dtype(_fast_on_cuda(checkpoint) if wanted.dtype == "auto" else wanted.dtype)
    return Precision(linears, _ROW_MAJOR[wanted.quantization], linears)


def _on_cpu(dtype: str) -> torch.dtype:
    """Returns the dtype of activations: `--dtype` means no more beside quantised weights. Raises ModelError."""
    if dtype not in ("auto", "float32"):
        raise ModelError(
            f"On a CPU, quantised weights are multiplied with float32: leave out --dtype {dtype}, or use "
            "--quantization none."
        )
    return torch.float32


def _unquantised(dtype: str, checkpoint: str | None, device: torch.device) -> Precision:
    if dtype == "auto":
        dtype = _fast_on_cpu() if device.type == "cpu" else _fast_on_cuda(checkpoint)
    if dtype == "float16" and device.type == "cpu":
        if not fp16_works():
            raise ModelError("This CPU has no float16 product; use --dtype auto or float32.")
        return Precision(torch.float32, Fp16Weight, Fp16Weight)
    return Precision.plain(_dtype(dtype))


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _fast_on_cpu() -> str:
    # Measured: FBGEMM's float16 decodes twice as fast as native bfloat16 even where the CPU has instructions for it.
    if fp16_works():
        return "float16"
    return "bfloat16" if _native_bf16() else "float32"


def _fast_on_cuda(checkpoint: str | None) -> str:
    # The checkpoint's own 16 bits are taken. A float32 one gets bfloat16, which has float32's range.
    if checkpoint == "float16" or not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float16"
    return "bfloat16"


def fp16_works() -> bool:
    """Returns whether torch was built with FBGEMM and runs on a CPU that it supports, by trying it."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        packed = Fp16Weight.pack(torch.ones(16, 16)).packed
        return bool(torch.ops.quantized.linear_dynamic_fp16(torch.ones(1, 16), packed).eq(16).all())
    except RuntimeError:
        return False


def _native_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
