"""Knows what a config.json says of rotary embeddings: their base, and how they are stretched to longer contexts."""

import math
from dataclasses import dataclass
from reprlib import repr as shortened

from octavo.model.config_file import ConfigFile

MOST_STRETCH = 1_000_000  # how many times longer a wavelength may become
MOST_AMPLITUDE = 1000.0
MOST_TURNS = 1e6  # of a pair, within a context


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Says how Llama 3.1 stretches wavelengths (rope type "llama3"); RotaryEmbedding has the arithmetic."""

    factor: float
    low_freq_factor: float  # turns within the original context, below which a wavelength is stretched in full
    high_freq_factor: float  # turns from which on it stays as it is; more than low_freq_factor
    original_max_position_embeddings: int  # tokens


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """Says how YaRN (https://arxiv.org/abs/2309.00071) stretches wavelengths; RotaryEmbedding has the arithmetic."""

    factor: float
    beta_fast: float  # turns within the original context, from which on a wavelength stays as it is
    beta_slow: float  # turns below which it is stretched in full; less than beta_fast
    original_max_position_embeddings: int  # tokens
    truncate: bool  # whether the bounds are rounded to whole pairs
    amplitude: float  # multiplies cosines and sines


@dataclass(frozen=True, slots=True)
class LongRopeScaling:
    """Says how LongRoPE (https://arxiv.org/abs/2402.13753) stretches wavelengths, for the longest context."""

    factors: tuple[float, ...]  # of each pair
    amplitude: float  # multiplies cosines and sines


RopeScaling = Llama3Scaling | YarnScaling | LongRopeScaling


def read_rope(fields: ConfigFile, head_dim: int) -> tuple[float, RopeScaling | None]:
    """Returns the base of the frequencies and their scaling. Raises ModelError.

    rope_parameters is a newer name of rope_scaling.
    """
    rope = fields.values.get("rope_parameters") or fields.values.get("rope_scaling") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise fields.error("rope_parameters is not one set of numbers for all layers")
    rope = {name: value for name, value in rope.items() if value is not None}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if any(values.get("partial_rotary_factor") not in (None, 1) for values in (rope, fields.values)):
        raise fields.error("partial_rotary_factor is set, and only whole heads are rotated")
    nested = ConfigFile(fields.path, rope)
    theta = nested.number("rope_theta") if "rope_theta" in rope else fields.number("rope_theta")
    if theta < 1 or (theta == 1 and kind == "yarn"):
        raise fields.error(f"rope_theta is {theta!r}, and frequencies need a base of at least 1, for yarn of more")
    match kind:
        case "default":
            return theta, None
        case "llama3":
            return theta, _llama3(nested, fields)
        case "yarn":
            return theta, _yarn(nested, fields)
        case "longrope" | "su":
            return theta, _longrope(nested, fields, head_dim)
    raise fields.error(
        f"the rope type is {shortened(kind)}, and only 'default', 'llama3', 'yarn' and 'longrope' are known"
    )


def _original(rope: ConfigFile, fields: ConfigFile) -> int:
    """Returns the tokens of the context that the model was first trained with."""
    name = "original_max_position_embeddings"
    return fields.optional_integer(name) or rope.integer(name, default=fields.integer("max_position_embeddings"))


def _llama3(rope: ConfigFile, fields: ConfigFile) -> Llama3Scaling:
    scaling = Llama3Scaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position_embeddings=_original(rope, fields),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise rope.error(
            f"high_freq_factor ({scaling.high_freq_factor}) is not more than "
            f"low_freq_factor ({scaling.low_freq_factor})"
        )
    _check_stretch(rope, factor=scaling.factor)
    _check_stretch(rope, least=0, high_freq_factor=scaling.high_freq_factor)
    return scaling


def _yarn(rope: ConfigFile, fields: ConfigFile) -> YarnScaling:
    original = _original(rope, fields)
    given = rope.optional_number("factor")
    factor = fields.integer("max_position_embeddings") / original if given is None else given
    _check_stretch(rope, factor=factor)
    turns = {"least": 1 / MOST_TURNS, "most": MOST_TURNS}
    fast, slow = rope.optional_number("beta_fast", **turns) or 32.0, rope.optional_number("beta_slow", **turns) or 1.0
    if fast <= slow:
        raise rope.error(f"beta_fast ({fast}) is not more than beta_slow ({slow})")
    truncate = rope.values.get("truncate") is None or rope.flag("truncate")
    return YarnScaling(factor, fast, slow, original, truncate, _yarn_amplitude(rope, factor))


def _yarn_amplitude(rope: ConfigFile, factor: float) -> float:
    """Returns attention_factor or, where there is none, what the paper recommends for the factor."""
    given = rope.optional_number("attention_factor", most=MOST_AMPLITUDE)
    if given is not None:
        return given
    mscale, all_dims = (rope.optional_number(name, most=MOST_AMPLITUDE) for name in ("mscale", "mscale_all_dim"))

    def recommended(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1

    return recommended(mscale) / recommended(all_dims) if mscale and all_dims else recommended(1)


def _longrope(rope: ConfigFile, fields: ConfigFile, head_dim: int) -> LongRopeScaling:
    """Takes the long factors if the model is to see more than the original context.

    All tokens of a sequence need the same factors, and a sequence may grow to max_position_embeddings.
    """
    original, longest = _original(rope, fields), fields.integer("max_position_embeddings")
    length = "long" if longest > original else "short"
    factors = rope.values.get(f"{length}_factor")
    if not isinstance(factors, list) or len(factors) != head_dim // 2:
        raise rope.error(f"{length}_factor is not a list of {head_dim // 2} numbers, one for each pair of a head")
    numbers = tuple(ConfigFile(rope.path, {f"{length}_factor": each}).number(f"{length}_factor") for each in factors)
    _check_stretch(rope, least=1 / MOST_STRETCH, **{f"the least of {length}_factor": min(numbers)})
    _check_stretch(rope, least=1 / MOST_STRETCH, **{f"the largest of {length}_factor": max(numbers)})
    if original < 2:
        raise rope.error("original_max_position_embeddings is 1, and no context is as short")
    amplitudes = (rope.optional_number(name, most=MOST_AMPLITUDE) for name in (f"{length}_mscale", "attention_factor"))
    amplitude = next((each for each in amplitudes if each), None)
    if amplitude is None:
        stretch = longest / original
        amplitude = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
    return LongRopeScaling(numbers, amplitude)


def _check_stretch(rope: ConfigFile, least: float = 1, **named: float) -> None:
    for name, value in named.items():
        if not least <= value <= MOST_STRETCH:
            raise rope.error(f"{name} ({value}) is not from 1 to {MOST_STRETCH}")
