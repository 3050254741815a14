"""What tensors and weights look like to C: the structs of octavo.h, which point into them and do not own them."""

from ctypes import POINTER, Structure, c_float, c_int64, c_void_p

from model.quantization import GroupedWeight, Int4Weight


class WeightStruct(Structure):
    """`Weight` of octavo.h."""

    _fields_ = (
        ("quants", c_void_p),
        ("scales", c_void_p),
        ("mins", c_void_p),
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("bits", c_int64),
    )

    @classmethod
    def of(cls, weight: GroupedWeight) -> "WeightStruct":
        """Valid for as long as the weight lives."""
        outputs, inputs = weight.shape
        mins = weight.mins.data_ptr() if isinstance(weight, Int4Weight) else None
        bits = 4 if isinstance(weight, Int4Weight) else 8
        return cls(weight.quants.data_ptr(), weight.scales.data_ptr(), mins, outputs, inputs, bits)


class ExpertsStruct(Structure):
    """`Experts` of octavo.h."""

    _fields_ = (
        ("norm", c_void_p),
        ("router", c_void_p),
        ("gate_up", POINTER(WeightStruct)),
        ("down", POINTER(WeightStruct)),
        ("num_experts", c_int64),
        ("top_k", c_int64),
        ("hidden", c_int64),
        ("intermediate", c_int64),
        ("eps", c_float),
    )

    @classmethod
    def of(cls, gate_up: tuple[GroupedWeight, ...], down: tuple[GroupedWeight, ...], top_k: int) -> "ExpertsStruct":
        """Experts whose choice is made elsewhere: without a norm and a router."""
        count = len(down)
        hidden, intermediate = down[0].shape
        return cls(
            None,
            None,
            (WeightStruct * count)(*map(WeightStruct.of, gate_up)),
            (WeightStruct * count)(*map(WeightStruct.of, down)),
            count,
            top_k,
            hidden,
            intermediate,
        )
