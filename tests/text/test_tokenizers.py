import numpy as np
import pytest

from grpo_jax.text import ByteTokenizer, CharacterTokenizer

CHARACTERS = CharacterTokenizer("0123456789+-*=")
BYTES = ByteTokenizer()
TEXTS = ("", "7-7=", "naïve\n\t", "日本語 🙂", "\x00\x7f", "<eos> written by a user", "</answer>")


def test_characters_come_first_and_special_tokens_follow_in_the_order_given():
    tokenizer = CharacterTokenizer("ab", ("<eos>", "<think>"))
    assert tokenizer.vocab_size == 2 + 2
    assert tokenizer.special == {"<eos>": 2, "<think>": 3}
    assert tokenizer.encode("ba<think>", specials=True) == [1, 0, 3]
    assert tokenizer.decode([1, 0, 3, 2]) == "ba<think><eos>"


def test_bytes_come_first_and_special_tokens_follow():
    tokenizer = ByteTokenizer(("<eos>", "<think>"))
    assert tokenizer.vocab_size == 256 + 2
    # U+00E9 is C3 A9 in UTF-8.
    assert tokenizer.encode("Aé<think>", specials=True) == [0x41, 0xC3, 0xA9, 257]


def test_padding_is_its_own_token_or_the_end_token():
    assert (CHARACTERS.pad, CHARACTERS.eos, CHARACTERS.bos) == (14, 15, None)
    assert ByteTokenizer(("<eos>",)).pad == ByteTokenizer(("<eos>",)).eos == 256
    assert ByteTokenizer(("<bos>", "<eos>")).bos == 256


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_make_the_round_trip_of_any_text_whether_special_tokens_are_read_or_not(text: str):
    assert BYTES.decode(BYTES.encode(text)) == text
    assert BYTES.decode(BYTES.encode(text, specials=True)) == text


def test_random_unicode_makes_the_round_trip():
    points = np.random.default_rng(0).integers(0, 0x110000, 2000)
    text = "".join(chr(p) for p in points.tolist() if not 0xD800 <= p < 0xE000)
    assert BYTES.decode(BYTES.encode(text)) == text


def test_text_of_a_user_cannot_contain_a_special_token():
    smuggled = "what is <eos></answer>?"
    assert max(BYTES.encode(smuggled)) < 256
    assert BYTES.special["<eos>"] in BYTES.encode(smuggled, specials=True)
    with pytest.raises(ValueError, match="'<' at position 2"):
        CHARACTERS.encode("1+<eos>")


def test_the_longest_special_name_wins():
    tokenizer = CharacterTokenizer("ab>", ("<a", "<a>", "<eos>"))
    assert tokenizer.encode("<a>b<ab", specials=True) == [4, 1, 3, 1]


def test_an_unknown_character_is_named_with_its_position_in_the_whole_text():
    # "1=" is 2 characters, "<think>" 7, then "x" stands at 9.
    with pytest.raises(ValueError, match=r"'x' at position 9.*add it to the alphabet"):
        CHARACTERS.encode("1=<think>x", specials=True)


def test_bytes_that_are_no_utf8_decode_with_the_replacement_character():
    assert BYTES.decode([0x41, 0xFF, 0x42]) == "A\ufffdB"
    # A special token cuts a character in two: neither half is one.
    assert BYTES.decode([0xC3, BYTES.eos, 0xA9]) == "\ufffd<eos>\ufffd"


def test_a_lone_surrogate_is_refused_with_its_position():
    with pytest.raises(ValueError, match="position 1 is a lone surrogate"):
        BYTES.encode("a\ud800")


@pytest.mark.parametrize("tokenizer", [CHARACTERS, BYTES], ids=["characters", "bytes"])
def test_an_id_below_zero_is_refused_and_one_that_no_token_has_is_a_replacement_character(tokenizer):
    with pytest.raises(ValueError, match=rf"got -1; allowed are 0 to {tokenizer.vocab_size - 1}"):
        tokenizer.decode([-1])
    # A model may have more rows than there are tokens, and draws all of them.
    assert tokenizer.decode([*tokenizer.encode("1"), tokenizer.vocab_size, 10_000]) == "1\ufffd\ufffd"


def test_ids_may_be_a_numpy_array():
    assert CHARACTERS.decode(np.array([7, 11, 7], np.int32)) == "7-7"


@pytest.mark.parametrize("alphabet", ["", "aba"])
def test_an_alphabet_that_is_empty_or_repeats_is_refused(alphabet: str):
    with pytest.raises(ValueError, match="alphabet: got"):
        CharacterTokenizer(alphabet)


@pytest.mark.parametrize("specials", [(), ("<pad>",), ("<eos>", "<eos>"), ("<eos>", ""), ("<eos>", "a")])
def test_special_names_must_be_distinct_and_have_an_end(specials: tuple[str, ...]):
    with pytest.raises(ValueError, match="specials: got"):
        CharacterTokenizer("ab", specials)
