"""Answers that name one of several options, read without guessing and in time linear in their length.

``B``, ``(b)``, ``B.``, ``option B``, ``the answer is (B)``, the text of an option, ``B) Paris`` where Paris is the text
of option B -> ``"B"``. The whole of an answer has to have such a form: a letter somewhere in a sentence is no choice,
so that the article of "A good answer is ..." is not option A. What names several options, or a letter and the text of
another one, names none.
"""

import string
from collections.abc import Mapping

LONGEST = 4096
"""Characters of an answer; a longer one names nothing."""
OPENING, CLOSING = "([{", ")]}.:,;!"
_AROUND = "*_`$\"' \t\r\n\f\v"
_LEAD = frozenset(
    "the my our final correct right best answer choice option letter is it it's its must be i choose pick select"
    " would".split()
)


def labelled(options: object) -> dict[str, str]:
    """Letter -> text of `options`, which is a list of up to 26 (lettered from A) or a mapping with letters as keys.

    Texts are strings or numbers. Raises ValueError for anything else: the dataset is at fault, not the model.
    """
    if isinstance(options, list | tuple):
        pairs = list(zip(string.ascii_uppercase, options, strict=False)) if len(options) <= 26 else []
    elif isinstance(options, Mapping):
        pairs = [(str(letter).upper(), option) for letter, option in options.items()]
    else:
        pairs = []
    sound = all(len(letter) == 1 and letter in string.ascii_uppercase for letter, _ in pairs)
    texts = all(isinstance(option, str | int | float) and str(option).strip() for _, option in pairs)
    if not pairs or not sound or not texts or len({letter for letter, _ in pairs}) < len(pairs):
        raise ValueError(
            f"options: got {options!r:.80}; allowed is a list of 1 to 26 texts or a mapping of letters A to Z to texts;"
            " correct the line"
        )
    return {letter: str(option) for letter, option in pairs}


def parse_choice(text: str, options: Mapping[str, str] | None = None) -> str | None:
    """The letter of the option that `text` names, or None where that is not clear.

    `options` is what `labelled` gives; with it a letter has to be among its keys. None: any letter from A to Z, and
    nothing but a letter.
    """
    if len(text) > LONGEST:
        return None
    known = dict.fromkeys(string.ascii_uppercase, "") if options is None else options
    plain = {letter: _plain(option) for letter, option in (options or {}).items()}
    texts = {letter: option for letter, option in plain.items() if option}
    words = text.split()
    last = max(len(words) - 1, 0)  # which is never a lead: "I" may be the ninth option
    lead = next((k for k, word in enumerate(words) if word.strip(_AROUND + ":").casefold() not in _LEAD), last)
    whole, rest = _plain(text), _plain(" ".join(words[lead:]))
    found = {letter for letter, option in texts.items() if option in (whole, rest)} | _letters(words[lead:], texts)
    return found.pop() if len(found) == 1 and found <= known.keys() else None


def _letters(words: list[str], texts: Mapping[str, str]) -> set[str]:
    """What the letters of `words` name: all of them are letters, or one is followed by the text of an option."""
    letters = [letter for word in words if (letter := _letter(word)) is not None]
    if len(letters) == len(words):
        return set(letters)
    rest = _plain(" ".join(words[1:]))
    told = {letter for letter, text in texts.items() if text == rest}
    return {letters[0], *told} if told and _letter(words[0]) is not None else set()


def _letter(word: str) -> str | None:
    """The letter that a word like ``b``, ``(B)``, ``B.`` or ``**B**`` is."""
    bare = word.strip(_AROUND).lstrip(OPENING).rstrip(CLOSING).strip(_AROUND)
    return bare.upper() if len(bare) == 1 and bare in string.ascii_letters else None


def _plain(text: str) -> str:
    """`text` without what surrounds it, differences of case and of white space."""
    return " ".join(text.casefold().split()).strip(_AROUND).rstrip(".,;!").strip(_AROUND)
