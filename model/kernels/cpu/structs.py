"""What tensors and weights look like to C: the structs of octavo.h, which point into them and do not own them."""

from ctypes import POINTER, Structure, c_float, c_int64, c_void_p

from model.quantization import ExpertWeights, GroupedWeight, Int4Weight, Weight


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
    def of(cls, weight: Weight) -> "WeightStruct":
        """Valid for as long as the weight lives, which must be a grouped one."""
        assert isinstance(weight, GroupedWeight)
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
    def of(cls, experts: ExpertWeights, top_k: int) -> "ExpertsStruct":
        """Experts, all of grouped weights, whose choice is made elsewhere: without a norm and a router."""
        count = len(experts.down)
        hidden, intermediate = experts.down[0].shape
        gate_up, down = (
            (WeightStruct * count)(*map(WeightStruct.of, side)) for side in (experts.gate_up, experts.down)
        )
        return cls(None, None, gate_up, down, count, top_k, hidden, intermediate)
