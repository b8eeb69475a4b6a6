r"""Templates: fixed text of ours, with special tokens in it, around fields of a user's text, without any.

A template is a string with fields in braces, such as ``"{prompt}\n<think>"``. The fixed parts are encoded with special
tokens recognised, the values never are, whatever they contain.
"""

import difflib
import re
from collections.abc import Mapping

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
    ids: list[int] = []
    for index, piece in enumerate(_FIELD.split(template)):
        if index % 2:
            ids.extend(tokenizer.encode(values[piece], specials=False))
        else:
            ids.extend(tokenizer.encode(piece, specials=True))
    return ids
