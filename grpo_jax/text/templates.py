r"""Templates: fixed text of ours, with special tokens in it, around fields of a user's text, without any.

A template is a string with fields in braces, such as ``"{prompt}\n<think>"``. The fixed parts are encoded with special
tokens recognised, the values never are, whatever they contain.
"""

import difflib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from grpo_jax.text.pretrained import PretrainedTokenizer
from grpo_jax.text.tokenizers import Tokenizer

_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")


def check_template(template: str, fields: tuple[str, ...], name: str) -> None:
    """Raise a ValueError unless every field of `template` is in `fields` and each of `fields` stands in it once."""
    found = _FIELD.findall(template)
    for field in found:
        if field not in fields:
            near = difflib.get_close_matches(field, fields, n=1) or list(fields[:1])
            raise ValueError(f"{name}: unknown field {{{field}}}; allowed are {fields}; did you mean {{{near[0]}}}?")
    for field in fields:
        if found.count(field) != 1:
            raise ValueError(
                f"{name}: field {{{field}}} stands {found.count(field)} times in {template!r}; allowed is exactly once"
            )


def fill(template: str, values: Mapping[str, str], tokenizer: Tokenizer) -> list[int]:
    """Token ids of `template` with its fields replaced; special tokens only from the template, never from a value."""
    return fill_all(template, [values], tokenizer)[0].tolist()


def fill_all(template: str, values: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> list[np.ndarray]:
    """`fill` of one template with many values: i32[tokens] each.

    A published tokenizer is given the whole text of each: where fixed text and value meet, pieces may span both.
    """
    pieces = _FIELD.split(template)
    parts = [[(value[p] if index % 2 else p, index % 2 == 0) for index, p in enumerate(pieces)] for value in values]
    if isinstance(tokenizer, PretrainedTokenizer):
        return tokenizer.encode_parts(parts)
    return [
        np.array([token for text, ours in row for token in tokenizer.encode(text, specials=ours)], np.int32)
        for row in parts
    ]
