"""The fields of a published config.json, taken one by one, so that none is passed over."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from grpo_jax.models.safetensors import brief

REQUIRED = object()
"""In place of a default: the field has to be there."""
MOST = 2**31 - 1

HARMLESS = frozenset(
    (
        "architectures model_type transformers_version torch_dtype dtype _name_or_path name_or_path _commit_hash"
        " use_cache initializer_range return_dict output_hidden_states output_attentions problem_type"
        " finetuning_task task_specific_params tokenizer_class prefix id2label label2id num_labels"
        " bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id"
        " forced_bos_token_id forced_eos_token_id begin_suppress_tokens suppress_tokens bad_words_ids"
        " attn_implementation _attn_implementation _attn_implementation_autoset _attn_implementation_internal"
        " experts_implementation _experts_implementation _experts_implementation_internal"
        " temperature top_k top_p typical_p do_sample num_beams num_beam_groups max_length max_new_tokens min_length"
        " length_penalty repetition_penalty diversity_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size"
        " early_stopping num_return_sequences output_scores return_dict_in_generate remove_invalid_values"
        " exponential_decay_length_penalty renormalize_logits cache_implementation"
        " attention_dropout is_llama_config transformers.js_config unsloth_version unsloth_fixed"
    ).split()
)
"""Fields that say nothing about the logits of a text: who wrote it, with which tokens it begins and ends, how it was
initialised, how one may sample from it; dropout is of a training that is over."""
ONLY: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({}, None),
    "torchscript": (False,),
    "use_bfloat16": (False,),
    "tf_legacy_loss": (False,),
    "quantization_config": (None,),
    "per_layer_config": (None,),
    "auto_map": (None,),
    "partial_rotary_factor": (None, 1.0),
    "use_mrope": (False, None),
    "rope_interleaved": (False, None),
}
"""Field -> the values with which it changes nothing."""
_WHY = {
    "quantization_config": "take the checkpoint that is not quantised",
    "auto_map": "it asks for code of its own, and none is run: take a checkpoint of a known architecture",
}


class Fields:
    """What is left of the fields, and what was wrong with those that were taken.

    A wrong field does not stop the reading: `close` lists all of them at once.
    """

    def __init__(self, content: Mapping[str, Any], *, where: str, prefix: str = "", wrong: list[str] | None = None):
        self._left = dict(content)
        self._where, self._prefix = where, prefix
        self._wrong: list[str] = [] if wrong is None else wrong
        self._known: set[str] = set()

    def inner(self, name: str) -> "Fields | None":
        """The fields of an object inside, whose faults are listed with these; None where it is missing or null."""
        value = self.any(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(name, value, "an object, null")
            value = {}
        return Fields(value, where=self._where, prefix=f"{self._prefix}{name}.", wrong=self._wrong)

    def refuse(self, name: str, got: object, allowed: str) -> None:
        """Note that a field has a value that is not allowed."""
        self._wrong.append(f"{self._prefix}{name}: got {brief(got)}, allowed {allowed}")

    def has(self, name: str) -> bool:
        """Whether a field is there still and is not null."""
        return self._left.get(name) is not None

    def any(self, name: str, default: Any = None) -> Any:
        """The value of a field, whatever it is; `default` where it is missing."""
        self._known.add(name)
        return self._left.pop(name, default)

    def count(self, name: str, default: Any = REQUIRED, *, least: int = 1, most: int = MOST, null: bool = False) -> Any:
        """A whole number; None for null, where that is allowed or the default."""
        value, empty = self._value(name, default, null)
        if empty:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(name, value, f"whole numbers from {least} to {most}")
            return least
        return value

    def amount(self, name: str, default: Any = REQUIRED, *, null: bool = False) -> Any:
        """A finite number from 0 up; None for null, where that is allowed or the default."""
        value, empty = self._value(name, default, null)
        if empty:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e30:
            self.refuse(name, value, "numbers from 0")
            return 1.0
        return float(value)

    def switch(self, name: str, default: Any = REQUIRED) -> bool:
        """True or false."""
        value, _ = self._value(name, default)
        if not isinstance(value, bool):
            self.refuse(name, value, "true, false")
            return False
        return value

    def choice(self, name: str, choices: Mapping[str, Any], default: Any = REQUIRED) -> Any:
        """What `choices` has for the text of a field."""
        value, _ = self._value(name, default)
        if not isinstance(value, str) or value not in choices:
            self.refuse(name, value, ", ".join(choices))
            return next(iter(choices.values()))
        return choices[value]

    def only(self, allowed: Mapping[str, Collection[Any]]) -> None:
        """Take fields that may be missing and else have one of a few values."""
        for name, values in allowed.items():
            self._known.add(name)
            if name not in self._left:
                continue
            value = self._left.pop(name)
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values):
                why = f": {_WHY[name]}" if name in _WHY else ""
                self.refuse(name, value, f"{', '.join(map(brief, values))}{why}")

    def rest(self) -> None:
        """Refuse every field that nobody took."""
        for name in sorted(self._left):
            near = difflib.get_close_matches(name, self._known, n=1, cutoff=0.8)
            meant = f"; {near[0]} is known" if near else ""
            self.refuse(brief(name).strip("'"), self._left[name], f"is to leave this unknown field out{meant}")
        self._left.clear()

    def close(self) -> None:
        """Raise ValueError for all that was wrong and for every field that nobody took and that is not harmless."""
        self.only(ONLY)
        for name in HARMLESS & self._left.keys():
            del self._left[name]
        self.rest()
        if self._wrong:
            raise ValueError(
                f"{self._where} describes what cannot be computed exactly: {'; '.join(self._wrong)}. Use another"
                " checkpoint, or take out the field if you know that it changes nothing."
            )

    def _value(self, name: str, default: Any, null: bool = False) -> tuple[Any, bool]:
        """The value, and whether it is a null that is allowed; None too for a required field that is missing."""
        self._known.add(name)
        present = name in self._left
        value = self._left.pop(name, None if default is REQUIRED else default)
        return value, value is None and (default is None or (null and present))
