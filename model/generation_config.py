"""Knows what generation_config.json means; nothing else in the house does. It imports no torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octavo.model.config_file import ConfigFile

MOST_TOP_K = 2**31 - 1  # no vocabulary is larger

# What else a generation_config.json may ask for that changes answers, and the values with which it asks for nothing.
_OFF: tuple[Any, ...] = (None, False, [], {})
_PASSED_OVER: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("typical_p", "top_h", "guidance_scale", "num_beams", "encoder_repetition_penalty"), (*_OFF, 1)),
    **dict.fromkeys(
        ("epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size", "min_length", "min_new_tokens"), (*_OFF, 0)
    ),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"), _OFF),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), _OFF),
    **dict.fromkeys(("stop_strings", "penalty_alpha"), _OFF),
}


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """A GenerationConfig holds what generation_config.json recommends; a field that it leaves out is None.

    Each value means what it means to transformers, and one that has no meaning there is refused.
    """

    eos_token_ids: tuple[int, ...] = ()
    temperature: float | None = None  # 0: greedy
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    passed_over: tuple[str, ...] = ()  # what the file asks for besides, and nobody here does

    @classmethod
    def from_pretrained(cls, directory: Path) -> "GenerationConfig":
        """Reads the file; end-of-sequence ids that it lacks come from config.json. Raises ModelError."""
        eos = ConfigFile.read(directory / "config.json").token_ids("eos_token_id")
        fields = ConfigFile.read_if_there(directory / "generation_config.json")
        if fields is None:
            return cls(eos_token_ids=eos)
        always = cls(
            eos_token_ids=fields.token_ids("eos_token_id") or eos,
            repetition_penalty=fields.optional_number("repetition_penalty", 0.01, 100),
            passed_over=tuple(name for name in _PASSED_OVER if fields.values.get(name) not in _PASSED_OVER[name]),
        )
        # Numbers beside "do_sample": false are leftovers: greedy decoding ignores them, and so do we.
        if fields.values.get("do_sample") is False:
            return always
        top_k, top_p = fields.optional_integer("top_k", least=-1), fields.optional_number("top_p")
        return replace(
            always,
            temperature=fields.optional_number("temperature", 0, 100),
            top_k=min(top_k, MOST_TOP_K) if top_k is not None and top_k > 0 else None,  # 0 and -1 keep every token
            top_p=top_p if top_p is not None and top_p < 1 else None,
            min_p=fields.optional_number("min_p", 0, 1),
        )
