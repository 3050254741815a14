"""Tests what config.json says of each matrix of a quantised checkpoint, beside the tensors that the files hold."""

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.model.config_file import ModelError
from octavo.model.loading.quantised import trial
from octavo.model.loading.quantised.awq import Awq
from octavo.model.loading.quantised.bitsandbytes import EightBits, FourBits
from octavo.model.loading.quantised.compressed_tensors import Whole
from octavo.model.loading.quantised.exclusions import Match, match
from octavo.model.loading.quantised.fp8 import Fp8
from octavo.model.loading.quantised.gptq import Gptq
from octavo.model.loading.quantised.mxfp4 import Mxfp4
from octavo.model.loading.quantised.recognise import Quantisation, check_not_quantised, description_of

LAYER = "model.layers.0"
Q, GATE_PROJ = f"{LAYER}.self_attn.q_proj", f"{LAYER}.mlp.experts.3.gate_proj"
ROUTER, HEAD = f"{LAYER}.mlp.gate", "lm_head"

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def compressed(weights: dict[str, Any] | None = None, stored: str = "pack-quantized", **more: Any) -> dict[str, Any]:
    args = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True} | (weights or {})
    group = {"targets": ["Linear"], "weights": args, "input_activations": None}
    common = {"quant_method": "compressed-tensors", "format": stored, "config_groups": {"group_0": group}}
    return common | {"ignore": [HEAD]} | more


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def write(directory: Path, values: dict[str, Any], file: str = "config.json") -> Path:
    """Writes the values where a checkpoint has them: in config.json, or alone in a file beside it."""
    inside = {"quantization_config": values} if file == "config.json" else values
    (directory / "config.json").write_text("{}")
    (directory / file).write_text(json.dumps(inside))
    return directory


def quantisation(directory: Path, values: dict[str, Any], *names: str, file: str = "config.json") -> Quantisation:
    description = description_of(write(directory, values, file))
    assert description is not None
    return description.over(names)


def test_a_plain_checkpoint_is_not_quantised(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": null, "compression_config": {}}')
    assert description_of(tmp_path) is None
    check_not_quantised(tmp_path, [f"{Q}.weight", f"{Q}.bias"])
    with pytest.raises(ModelError, match=r"q_proj\.qweight in .* is quantised"):
        check_not_quantised(tmp_path, [f"{Q}.qweight"])


@pytest.mark.parametrize(
    ("values", "mark", "expected"),
    [
        (GPTQ, "qweight", Gptq(4, 128, 1, False, True)),
        (GPTQ | {"group_size": -1, "bits": 8, "sym": False}, "qweight", Gptq(8, 0, 1, False, False)),
        (GPTQ | {"checkpoint_format": "gptq_v2", "desc_act": True}, "qweight", Gptq(4, 128, 2, True, True)),
        (GPTQ | {"pack_dtype": None, "dynamic": None}, "qweight", Gptq(4, 128, 1, False, True)),
        (without(GPTQ, "sym"), "qweight", Gptq(4, 128, 1, False, None)),
        (AWQ, "qweight", Awq(128, True)),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"}, "qweight", Awq(64, True)),
        (AWQ | {"zero_point": False}, "qweight", Awq(128, False)),
        (compressed(), "weight_packed", Whole(4, "group", 128, True, True, False)),
        (compressed({"actorder": "group"}), "weight_packed", Whole(4, "group", 128, True, True, True)),
        (compressed({"actorder": "weight"}), "weight_packed", Whole(4, "group", 128, True, True, False)),
        (
            compressed({"num_bits": 8, "strategy": "channel", "group_size": None, "symmetric": False}),
            "weight_packed",
            Whole(8, "channel", 0, False, True, False),
        ),
        (
            compressed({"num_bits": 8, "strategy": "channel", "group_size": None}, "int-quantized"),
            "weight_scale",
            Whole(8, "channel", 0, True, False, False),
        ),
        (
            compressed({"num_bits": 8, "type": "float", "strategy": "tensor", "group_size": None}, "float-quantized"),
            "weight_scale",
            Fp8(None),
        ),
        (
            compressed(
                {
                    "num_bits": 8,
                    "type": "float",
                    "strategy": "block",
                    "group_size": None,
                    "block_structure": [128, 128],
                },
                "float-quantized",
            ),
            "weight_scale",
            Fp8((128, 128)),
        ),
        (FP8, "weight_scale", Fp8(None)),
        (FP8 | {"weight_block_size": [128, 128]}, "weight_scale_inv", Fp8((128, 128), "weight_scale_inv")),
        (BNB, "weight.absmax", FourBits("nf4", False)),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "SCB", EightBits()),
    ],
)
def test_each_format_is_recognised(tmp_path: Path, values: dict[str, Any], mark: str, expected: object) -> None:
    found = quantisation(tmp_path, values, f"{Q}.{mark}", f"{Q}.weight", f"{ROUTER}.weight", f"{HEAD}.weight")
    assert found.of(Q) == expected
    assert found.of(ROUTER) is None
    assert found.of(HEAD) is None


def test_nested_statistics_and_experts_in_one_tensor_are_found_by_their_names(tmp_path: Path) -> None:
    nested = (f"{Q}.weight", f"{Q}.weight.absmax", f"{Q}.weight.nested_absmax")
    assert quantisation(tmp_path, BNB, *nested).of(Q) == FourBits("nf4", True)
    experts = f"{LAYER}.mlp.experts.down_proj"
    values = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    found = quantisation(tmp_path, values, f"{experts}_blocks", f"{experts}_scales", f"{Q}.weight", f"{HEAD}.weight")
    assert (found.of(experts), found.of(Q), found.of(HEAD)) == (Mxfp4(), None, None)
    found = quantisation(tmp_path, FP8 | {"weight_block_size": [128, 128]}, experts, f"{experts}_scale_inv")
    assert found.of(experts) == Fp8((128, 128), "weight_scale_inv")


def test_files_beside_config_json_count_where_it_says_nothing(tmp_path: Path) -> None:
    names = (f"{Q}.qweight",)
    auto = {"bits": 4, "group_size": 32, "desc_act": True, "sym": True}
    assert quantisation(tmp_path, auto, *names, file="quantize_config.json").of(Q) == Gptq(4, 32, 1, True, True)
    (tmp_path / "quantize_config.json").unlink()
    values = {"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"}
    assert quantisation(tmp_path, values, *names, file="quant_config.json").of(Q) == Awq(128, True)
    (tmp_path / "config.json").write_text(json.dumps({"compression_config": without(compressed(), "quant_method")}))
    description = description_of(tmp_path)
    assert description is not None
    assert isinstance(description.over([f"{Q}.weight_packed"]).of(Q), Whole)


@pytest.mark.parametrize(
    ("entry", "module", "expected"),
    [
        ("gate", ROUTER, Match.YES),
        ("gate", GATE_PROJ, Match.PERHAPS),
        ("gate", Q, Match.NO),
        ("mlp", ROUTER, Match.PERHAPS),  # transformers converts it, AutoAWQ does not
        (ROUTER, ROUTER, Match.YES),
        ("model.layers.1", "model.layers.1.mlp.gate", Match.YES),
        ("model.layers.1", "model.layers.11.mlp.gate", Match.PERHAPS),
        ("*.gate", ROUTER, Match.YES),
        ("*.gate", GATE_PROJ, Match.NO),
        ("model.layers.*.self_attn", Q, Match.YES),
        (r"re:.*\.gate$", ROUTER, Match.YES),
        (r"re:.*\.gate$", GATE_PROJ, Match.NO),
        (r"re:.*gate", ROUTER, Match.YES),
        (r"re:.*gate", GATE_PROJ, Match.PERHAPS),  # such a search may end before the name does
        (r"re:gate", ROUTER, Match.NO),  # but begins with it
    ],
)
def test_lists_match_names(entry: str, module: str, expected: Match) -> None:
    assert match(entry, module) is expected


@pytest.mark.parametrize(
    "values",
    [
        AWQ | {"modules_to_not_convert": ["gate"]},
        FP8 | {"ignored_layers": ["gate"]},
        compressed(ignore=["re:.*gate", HEAD]),
        BNB | {"llm_int8_skip_modules": ["gate"]},
    ],
)
def test_a_router_that_is_named_does_not_catch_gate_proj(tmp_path: Path, values: dict[str, Any]) -> None:
    marks = ("qweight", "weight_packed", "weight_scale", "weight.absmax")
    quantised = [f"{GATE_PROJ}.{mark}" for mark in marks]
    found = quantisation(tmp_path, values, *quantised, f"{ROUTER}.weight")
    assert found.of(GATE_PROJ) is not None
    assert found.of(ROUTER) is None
    # AutoAWQ's own search would have left it as it was, and the files show that.
    assert quantisation(tmp_path, values, f"{GATE_PROJ}.weight").of(GATE_PROJ) is None
    strange = [f"{ROUTER}.{mark}" for mark in marks]
    with pytest.raises(ModelError, match=r"says that model\.layers\.0\.mlp\.gate is stored as it is, but the files"):
        quantisation(tmp_path, values, *strange).of(ROUTER)


def test_gptq_takes_the_first_exception_that_matches(tmp_path: Path) -> None:
    dynamic = {r"-:.*q_proj": {}, r"+:.*\.0\.": {"bits": 8, "group_size": 32}, r".*\.1\.": {"group_size": -1}}
    other = "model.layers.1.mlp.up_proj"
    k = f"{LAYER}.self_attn.k_proj"
    names = (f"{Q}.weight", f"{k}.qweight", f"{other}.qweight")
    found = quantisation(tmp_path, GPTQ | {"dynamic": dynamic}, *names)
    assert found.of(Q) is None
    assert found.of(k) == Gptq(8, 32, 1, False, True)
    assert found.of(other) == Gptq(4, 0, 1, False, True)
    with pytest.raises(ModelError, match="dynamic says that .*q_proj is stored as it is"):
        quantisation(tmp_path, GPTQ | {"dynamic": dynamic}, f"{Q}.qweight").of(Q)


def test_gptq_says_whether_the_head_is_quantised(tmp_path: Path) -> None:
    assert quantisation(tmp_path, GPTQ | {"lm_head": True}, "lm_head.qweight").of(HEAD) is not None
    with pytest.raises(ModelError, match="lm_head says that lm_head is quantised, but the files hold it as it was"):
        quantisation(tmp_path, GPTQ | {"lm_head": True}, "lm_head.weight").of(HEAD)
    with pytest.raises(ModelError, match=r"lm_head is stored as it is, but the files hold lm_head\.qweight"):
        quantisation(tmp_path, GPTQ, "lm_head.qweight").of(HEAD)


def test_the_surest_target_of_compressed_tensors_counts(tmp_path: Path) -> None:
    def group(bits: int, *targets: str) -> dict[str, Any]:
        weights = {"num_bits": bits, "strategy": "channel"}
        return {"targets": list(targets), "weights": weights, "format": "pack-quantized"}

    groups = {"a": group(8, "Linear"), "b": group(4, r"re:.*self_attn\.\w_proj$"), "c": group(8, Q)}
    values = compressed(stored="mixed-precision", config_groups=groups)
    k, up = f"{LAYER}.self_attn.k_proj", f"{LAYER}.mlp.up_proj"
    found = quantisation(tmp_path, values, *(f"{module}.weight_packed" for module in (Q, k, up)))
    assert [found.of(module) for module in (Q, k, up)] == [
        Whole(bits, "channel", 0, True, True, False) for bits in (8, 4, 8)
    ]
    with pytest.raises(ModelError, match="config_groups says that .*q_proj is quantised, but the files"):
        quantisation(tmp_path, values, f"{Q}.weight").of(Q)
    only_q = compressed(config_groups={"c": group(8, Q)})
    with pytest.raises(ModelError, match="config_groups has no target for it, so that .*k_proj is stored as it is"):
        quantisation(tmp_path, only_q, f"{k}.weight_packed").of(k)


def test_scales_of_activations_and_of_the_cache_are_passed_over(tmp_path: Path) -> None:
    values = FP8 | {"activation_scheme": "static", "kv_cache_scheme": "static"}
    attention = f"{LAYER}.self_attn"
    extra = (f"{Q}.input_scale", f"{attention}.k_scale", f"{attention}.kv_scale", f"{Q}.act_scale")
    found = quantisation(tmp_path, values, f"{Q}.weight", f"{Q}.weight_scale", *extra)
    assert found.passed_over() == set(extra)
    assert [note.split()[0] for note in found.description.notes] == ["The", "kv_cache_scheme"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"bits": 4}, "quant_method is missing"),
        ({"quant_method": "hqq"}, "quant_method is 'hqq', and HQQ keeps weights as pickles"),
        ({"quant_method": "aqlm"}, "quant_method is 'aqlm', which is not known; take the checkpoint in GPTQ, AWQ"),
        ({"quant_method": ["gptq"]}, r"quant_method is \['gptq'\], which is not known"),
        (GPTQ | {"bits": 3}, "bits is 3, and only 4 and 8 are known"),
        (GPTQ | {"bits": 2}, "bits is 2, and only 4 and 8 are known"),
        (GPTQ | {"bits": "4"}, "bits is '4', not a positive integer"),
        (without(GPTQ, "bits"), "bits is missing"),
        (without(GPTQ, "group_size"), "group_size is missing"),
        (GPTQ | {"group_size": 0}, "group_size is 0, neither a number of inputs nor -1"),
        (GPTQ | {"group_size": 48}, "group_size is 48, and only multiples of 32 can be held"),
        (GPTQ | {"group_size": 10**30 * 32}, "group_size is 3200.*000, and no matrix has so many inputs"),
        (GPTQ | {"desc_act": "yes"}, "desc_act is 'yes', neither true nor false"),
        (GPTQ | {"sym": 1}, "sym is 1, neither true nor false"),
        (GPTQ | {"is_marlin_format": True}, "packed for marlin"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin', and only 'gptq' and 'gptq_v2'"),
        (GPTQ | {"pack_dtype": "int16"}, "pack_dtype is 'int16'"),
        (GPTQ | {"dynamic": {"-:(": {}}}, r"dynamic has '\(', which is not a regular expression"),
        (GPTQ | {"dynamic": [1]}, r"dynamic is \[1\], not an object of objects"),
        (GPTQ | {"dynamic": {"+:a": {"bits": 3}}}, "bits is 3"),
        (AWQ | {"version": "gemv_fast"}, "version is 'gemv_fast', and only 'gemm' is known"),
        (AWQ | {"version": "exllama"}, "version is 'exllama'"),
        (AWQ | {"bits": 8}, "bits is 8, and AWQ has only 4 here"),
        (AWQ | {"modules_to_not_convert": "gate"}, "modules_to_not_convert is 'gate', not a list of names"),
        (AWQ | {"modules_to_not_convert": [1]}, r"modules_to_not_convert is \[1\], not a list of names"),
        (compressed({"num_bits": 3}), "num_bits is 3 with strategy 'group', and only 4 and 8 bits"),
        (compressed({"num_bits": "4"}), "num_bits is '4', not a positive integer"),
        (compressed({"strategy": "spiral"}), "strategy is 'spiral', which is not known"),
        (compressed({"group_size": None}), "group_size is missing"),
        (compressed({"type": "float"}), "type is 'float' in the format pack-quantized"),
        (compressed(stored="nvfp4-pack-quantized"), "format of group_0 is 'nvfp4-pack-quantized', which is not known"),
        (compressed(stored="marlin-24"), "format of group_0 is 'marlin-24', which is not known"),
        (compressed(config_groups={}), "config_groups is {}, not an object of objects"),
        (compressed(config_groups={"a": {"weights": {}}}), "a has no targets"),
        (compressed(ignore=["re:["]), r"ignore has '\[', which is not a regular expression"),
        (compressed(sparsity_config={"format": "sparse-24-bitmask"}), "sparse weights are not known"),
        (compressed(transform_config={"config_groups": {}, "a": 1}), "transform_config is set"),
        (compressed({"type": "float", "num_bits": 4}, "float-quantized"), "num_bits is 4 with strategy 'group'"),
        (FP8 | {"activation_scheme": "odd"}, "activation_scheme is 'odd', neither 'static' nor 'dynamic'"),
        (FP8 | {"weight_block_size": [128]}, r"weight_block_size is \[128\], not two positive integers"),
        (FP8 | {"weight_block_size": [128, 48]}, "only blocks of multiples of 32 inputs"),
        (FP8 | {"weight_block_size": [10**30, 32]}, "and no matrix is as large"),
        (FP8 | {"fmt": "e5m2"}, "fmt is 'e5m2', and only 'e4m3' is known"),
        (FP8 | {"expert_dtype": "fp4"}, "expert_dtype is 'fp4', and only 'fp8' is known"),
        (BNB | {"bnb_4bit_quant_type": "af4"}, "bnb_4bit_quant_type is 'af4', neither 'nf4' nor 'fp4'"),
        (BNB | {"load_in_8bit": True}, "load_in_4bit and load_in_8bit are both set"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_sentence(tmp_path: Path, values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        description_of(write(tmp_path, values))
    message = str(caught.value)
    assert message.startswith(f"Cannot serve {tmp_path}: in config.json, ") and message.endswith(".")


ENDLESS = "(.*)*(.*)*(.*)*x"


@pytest.mark.parametrize(
    "values",
    [
        GPTQ | {"dynamic": {"+:.*mlp": {}, f"-:{ENDLESS}": {}}},
        AWQ | {"modules_to_not_convert": [f"re:{ENDLESS}"]},
        FP8 | {"ignored_layers": [f"re:{ENDLESS}"]},
        BNB | {"llm_int8_skip_modules": [f"re:{ENDLESS}"]},
        {"quant_method": "mxfp4", "modules_to_not_convert": [f"re:{ENDLESS}"]},
        compressed(ignore=["re:.*gate$", f"re:{ENDLESS}"]),
        compressed(config_groups={"a": {"targets": [f"re:{ENDLESS}"], "weights": {"group_size": 32}}}),
    ],
)
def test_a_regular_expression_that_does_not_end_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.5)
    found = quantisation(tmp_path, values)
    with pytest.raises(ModelError, match=r"the regular expression '\(\.\*\)\*\(.* takes too long"):
        found.try_expressions([Q, GATE_PROJ])


def test_other_regular_expressions_are_fine(tmp_path: Path) -> None:
    values = compressed(ignore=["re:.*gate$", r"re:^(?!.*\.experts\.).*", HEAD])
    quantisation(tmp_path, values).try_expressions([Q, GATE_PROJ, ROUTER, "a name \ud800 that JSON must carry"])


def test_embeddings_are_a_class_of_their_own(tmp_path: Path) -> None:
    table = "model.embed_tokens"
    group = {"targets": ["Embedding"], "weights": {"num_bits": 8, "strategy": "channel"}}
    linear = compressed()["config_groups"]["group_0"]
    both = quantisation(tmp_path, compressed(config_groups={"a": linear, "b": group}), f"{table}.weight_packed")
    assert both.of(table) == Whole(8, "channel", 0, True, True, False)
    assert both.of(Q) == Whole(4, "group", 128, True, True, False)
    with pytest.raises(ModelError, match=f"no target for it, so that {table} is stored as it is"):
        quantisation(tmp_path, compressed(), f"{table}.weight_packed").of(table)


def test_hqqs_pickles_mlx_and_what_is_no_object_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": [4]}')
    with pytest.raises(ModelError, match=r"quantization_config is \[4\], not an object"):
        description_of(tmp_path)
    (tmp_path / "config.json").write_text('{"quantization": {"bits": 4, "group_size": 64}}')
    with pytest.raises(ModelError, match="quantization is MLX's, whose layout is not read; take the checkpoint"):
        description_of(tmp_path)
    (tmp_path / "qmodel.pt").touch()
    with pytest.raises(ModelError, match="HQQ keeps weights as pickles"):
        description_of(tmp_path)
