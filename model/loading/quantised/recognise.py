"""Recognises a quantised checkpoint from its JSON files, and says of each matrix how it is stored."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened

from octavo.model.config_file import ConfigFile, ModelError
from octavo.model.loading.quantised import awq, bitsandbytes, compressed_tensors, fp8, gguf, gptq, mxfp4
from octavo.model.loading.quantised.rules import Rules
from octavo.model.loading.quantised.scheme import Scheme
from octavo.model.loading.quantised.trial import endless_one
from octavo.model.prepared.source import DESCRIPTION_FILES, DESCRIPTIONS

METHODS: dict[str, Callable[[ConfigFile], Rules]] = {
    "gptq": gptq.read_rules,
    "awq": awq.read_rules,
    "compressed-tensors": compressed_tensors.read_rules,
    "compressed_tensors": compressed_tensors.read_rules,
    "fp8": fp8.read_rules,
    "fbgemm_fp8": fp8.read_rules,
    "bitsandbytes": bitsandbytes.read_rules,
    "mxfp4": mxfp4.read_rules,
    "gguf": gguf.read_rules,
}
KNOWN = "GPTQ, AWQ, compressed-tensors, FP8, bitsandbytes or MXFP4"
HQQ = "HQQ keeps weights as pickles, which can run code when they are read"

# Names of scales that belong to activations or to the cache, and to no weight.
PASSED_OVER = tuple(
    f".{name}"
    for name in (
        *("input_scale", "act_scale", "activation_scale", "input_zero_point", "input_scale_ub", "input_global_scale"),
        *("output_scale", "kv_scale", "q_scale", "k_scale", "v_scale", "prob_scale", "k_zero_point", "v_zero_point"),
    )
)
MARKS = (".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".weight.absmax", ".SCB", "_blocks")


@dataclass(frozen=True, slots=True)
class Description:
    """A Description is what the JSON files say about a quantised checkpoint."""

    fields: ConfigFile
    rules: Rules

    @property
    def notes(self) -> tuple[str, ...]:
        """Returns sentences for the log: what the checkpoint asks for besides, and nobody here does."""
        return self.rules.notes

    @property
    def is_exact(self) -> bool:
        """Says whether kinds of a CPU hold all of it as it is; else it is decoded."""
        return self.rules.is_exact

    def over(self, names: Collection[str]) -> "Quantisation":
        """Returns the same beside the names of the tensors that the files hold."""
        return Quantisation(self, frozenset(names))


@dataclass(frozen=True, slots=True)
class Quantisation:
    """A Quantisation says of each matrix of a checkpoint how it is stored."""

    description: Description
    names: frozenset[str]

    def of(self, module: str) -> Scheme | None:
        """Returns how a matrix is stored; None: as it is, in 16 or 32 bits.

        A module is the name of a tensor without ".weight". Where the config leaves it open, as formats do for routers
        and heads, the files decide. Raises ModelError where they contradict each other.
        """
        declared = self.description.rules.declared(module, self.names)
        mark = next((name for name in self._marks(module) if name in self.names), None)
        if mark is not None and declared.scheme is None:
            raise self._error(f"{declared.reason} {module} is stored as it is, but the files hold {mark}")
        if mark is not None:
            return declared.scheme
        plain = module in self.names or f"{module}.weight" in self.names
        if plain and declared.certain and declared.scheme is not None:
            raise self._error(f"{declared.reason} {module} is quantised, but the files hold it as it was")
        return None if plain else declared.scheme

    def try_expressions(self, modules: Collection[str]) -> None:
        """Raises ModelError for a regular expression that takes too long to compare with these modules."""
        endless = endless_one(self.description.rules.expressions, modules)
        if endless is not None:
            raise self.description.fields.error(
                f"the regular expression {shortened(endless)} takes too long to compare with the model's names; write "
                "it without repetitions within repetitions"
            )

    def passed_over(self) -> frozenset[str]:
        """Returns the names of tensors that say nothing about weights: scales of activations and of the cache."""
        return frozenset(name for name in self.names if name.endswith(PASSED_OVER))

    def _marks(self, module: str) -> tuple[str, ...]:
        """Returns the names that only a quantised module has; an expert's in one tensor have no ".weight"."""
        return tuple(f"{module}{mark}" for mark in (*self.description.rules.marks, "_scale_inv"))

    def _error(self, what: str) -> ModelError:
        return self.description.fields.error(f"{what}; use the config.json that belongs to these weights")


def description_of(directory: Path) -> Description | None:
    """Returns what the JSON files say; None: the checkpoint is not quantised. Raises ModelError.

    The first of config.json, quantize_config.json and quant_config.json that says something counts.
    """
    if (directory / "qmodel.pt").exists():
        raise ModelError(f"Cannot serve {directory}: {HQQ}; take the checkpoint in {KNOWN}.")
    config = ConfigFile.read(directory / "config.json")
    if isinstance(config.values.get("quantization"), dict):
        raise config.error(f"quantization is MLX's, whose layout is not read; take the checkpoint in {KNOWN}")
    for field in DESCRIPTIONS:
        values = config.values.get(field)
        if values is not None and not isinstance(values, dict):
            raise config.error(f"{field} is {shortened(values)}, not an object")
        if values:
            return _described(ConfigFile(config.path, values), default=None)
    for name, method in DESCRIPTION_FILES.items():
        fields = ConfigFile.read_if_there(directory / name)
        if fields is not None:
            return _described(fields, default=method)
    return None


def check_not_quantised(directory: Path, names: Collection[str]) -> None:
    """Raises ModelError for quantised tensors that no JSON file describes."""
    strange = next((name for name in sorted(names) if name.endswith(MARKS)), None)
    if strange is not None:
        raise ModelError(
            f"The tensor {strange} in {directory} is quantised, and neither config.json nor quantize_config.json says "
            "how; download the files again that lie beside the weights."
        )


def _described(fields: ConfigFile, default: str | None) -> Description:
    method = fields.values.get("quant_method") or default
    if method is None and ("load_in_4bit" in fields.values or "load_in_8bit" in fields.values):
        method = "bitsandbytes"
    if method is None and "config_groups" in fields.values:
        method = "compressed-tensors"
    if method is None:
        raise fields.error("quant_method is missing")
    if method == "hqq":
        raise fields.error(f"quant_method is 'hqq', and {HQQ}; take the checkpoint in {KNOWN}")
    if not isinstance(method, str) or method not in METHODS:
        raise fields.error(f"quant_method is {shortened(method)}, which is not known; take the checkpoint in {KNOWN}")
    return Description(fields, METHODS[method](fields))
