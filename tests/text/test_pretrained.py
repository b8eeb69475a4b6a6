import json
import random
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

from grpo_jax.objectives import describe
from grpo_jax.text import PretrainedTokenizer, Tokenizer
from tests.text import published

PLAIN = ["", "What is 12 + 34?", "  two  spaces\n\n\nand lines\t", "été 漢字 🙂", "a<b|c>d <|im_", "x" * 300]


@pytest.fixture(scope="module", params=sorted(published.STYLES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.write(tmp_path_factory.mktemp("published") / request.param, request.param)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PretrainedTokenizer:
    return PretrainedTokenizer(str(folder))


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    return published.write(tmp_path / "qwen", "qwen3")


def change(folder: Path, name: str, **fields: object) -> PretrainedTokenizer:
    """The tokenizer after `fields` were written into the file `name`; None takes one out."""
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (content | fields).items() if value is not None}))
    return PretrainedTokenizer(str(folder))


def test_text_without_special_tokens_has_the_ids_that_the_library_gives(tokenizer: PretrainedTokenizer, folder: Path):
    library = Library.from_file(str(folder / "tokenizer.json"))
    for text in PLAIN:
        wanted = library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == tokenizer.encode(text, specials=True) == wanted


def test_text_of_ours_has_special_tokens_and_the_ids_that_the_library_gives(
    tokenizer: PretrainedTokenizer, folder: Path
):
    library = Library.from_file(str(folder / "tokenizer.json"))
    for name, token in tokenizer.special.items():
        text = f"What is {name}12 +\n{name}{name} x"
        ids = tokenizer.encode(text, specials=True)
        assert ids == library.encode(text, add_special_tokens=False).ids
        assert ids.count(token) == 3


def test_text_of_users_never_becomes_a_special_token(tokenizer: PretrainedTokenizer):
    """Names whole, cut, inside each other, with the noncharacters that the changed copy uses, in every surrounding."""
    names = sorted(tokenizer.special)
    special = set(tokenizer.special.values()) - {tokenizer.special.get("<unk>")}  # what no piece can say is unknown
    pieces = [*names, *(name[: len(name) // 2] for name in names), *(name[len(name) // 2 :] for name in names)]
    pieces += ["\ufdd0", "\ufdd1", "\ufdd2", *(f"\ufdd0{token}\ufdd1" for token in (*special, "-")), *PLAIN, "▁", " "]
    draw = random.Random(0)
    texts = [*pieces, *("".join(draw.choices(pieces, k=draw.randint(2, 6))) for _ in range(500))]
    for text, ids in zip(texts, tokenizer.encode_parts([[(text, False)] for text in texts]), strict=True):
        assert not special & set(ids.tolist()), text
        assert not (ids >= tokenizer.vocab_size).any(), text


def test_byte_level_text_makes_the_round_trip_with_the_names_of_special_tokens_in_it(qwen: Path):
    tokenizer = PretrainedTokenizer(str(qwen))
    text = "a<|im_end|>b <think>  \n\n漢字<|im_start|"
    assert tokenizer.decode(tokenizer.encode(text)) == text == tokenizer.decode(tokenizer.encode(text, specials=True))
    # Unicode keeps noncharacters out of texts; the three that the changed copy uses become replacement characters.
    assert tokenizer.decode(tokenizer.encode("\ufdd0\ufdd1\ufdd2\ufdd3")) == "\ufffd\ufffd\ufffd\ufdd3"


def test_parts_are_encoded_as_one_text(qwen: Path):
    tokenizer = PretrainedTokenizer(str(qwen))
    (ids,) = tokenizer.encode_parts([[("<|im_start|>user\n", True), ("\n<|im_end|>", False), ("<|im_end|>", True)]])
    special = tokenizer.special
    assert ids[0] == special["<|im_start|>"] and ids[-1] == special["<|im_end|>"]
    assert ids.tolist().count(special["<|im_end|>"]) == 1
    # A piece may begin in our text and end in the user's, as in the reference.
    (ids,) = tokenizer.encode_parts([[("What i", True), ("s 12", False)]])
    apart = [*tokenizer.encode("What i"), *tokenizer.encode("s 12")]
    assert ids.tolist() == tokenizer.encode("What is 12") != apart


def test_ids_that_no_token_has_decode_to_the_replacement_character(tokenizer: PretrainedTokenizer):
    hello = tokenizer.encode("What is")
    text = tokenizer.decode(hello)
    assert tokenizer.decode([*hello, tokenizer.vocab_size, 10**6, -1]) == text + "\ufffd" * 3
    assert tokenizer.decode([]) == ""


def test_special_tokens_decode_to_their_names_where_they_stand(qwen: Path):
    tokenizer = PretrainedTokenizer(str(qwen))
    a, b, end = *tokenizer.encode("a"), *tokenizer.encode("b"), tokenizer.special["<|im_end|>"]
    assert tokenizer.decode([a, end, b, end]) == "a<|im_end|>b<|im_end|>"
    # The first of the two bytes of é, cut off by a special token.
    first = tokenizer.encode("é")[0] if len(tokenizer.encode("é")) > 1 else tokenizer.encode("漢")[0]
    assert tokenizer.decode([first, end]) == "\ufffd<|im_end|>"


def test_a_tokenizer_is_its_settings(qwen: Path):
    one, other = PretrainedTokenizer(str(qwen)), PretrainedTokenizer(str(qwen))
    plain: Tokenizer = one
    assert plain == other and hash(one) == hash(other)
    assert describe(one) == (
        f"grpo_jax.text.pretrained.PretrainedTokenizer(path={str(qwen)!r}, eos_token=None, pad_token=None,"
        " revision=None)"
    )
    assert one._loaded is other._loaded  # read once


def test_roles_and_stop_tokens(tokenizer: PretrainedTokenizer, folder: Path):
    _, _, _, (bos, eos, pad), stops, _ = published.STYLES[folder.name]
    special = tokenizer.special
    assert tokenizer.eos == special[eos] and tokenizer.pad == special[pad or eos]
    assert tokenizer.bos == (special[bos] if bos else None)
    assert tokenizer.stops[0] == tokenizer.eos and set(tokenizer.stops) == {special[name] for name in (eos, *stops)}
    library = Library.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.vocab_size == max(library.get_vocab(with_added_tokens=True).values()) + 1


def test_padding_may_be_an_ordinary_token_and_is_text_then(qwen: Path):
    found = change(qwen, "tokenizer_config.json", pad_token="!")
    assert found.encode("!") == [found.pad] and "!" not in found.special


def test_roles_come_from_the_configuration_then_from_the_map_then_from_the_model(qwen: Path):
    special = PretrainedTokenizer(str(qwen)).special
    content = {"content": "<|endoftext|>", "lstrip": False, "__type": "AddedToken"}
    assert change(qwen, "tokenizer_config.json", eos_token=content).eos == special["<|endoftext|>"]
    change(qwen, "special_tokens_map.json", eos_token={"content": "<|im_start|>"}, pad_token="<|im_start|>")
    assert PretrainedTokenizer(str(qwen)).eos == special["<|endoftext|>"]
    found = change(qwen, "tokenizer_config.json", eos_token=None, pad_token=None)
    assert found.eos == found.pad == special["<|im_start|>"]
    (qwen / "special_tokens_map.json").unlink()
    found = change(qwen, "generation_config.json", eos_token_id=special["<|im_end|>"], pad_token_id=3)
    assert (found.eos, found.pad, found.stops) == (special["<|im_end|>"], 3, (special["<|im_end|>"],))
    (qwen / "generation_config.json").unlink()
    found = change(qwen, "config.json", eos_token_id=[special["<|endoftext|>"], special["<|im_end|>"]])
    assert found.stops == (special["<|endoftext|>"], special["<|im_end|>"]) and found.pad == found.eos


def test_a_role_can_be_given(tmp_path: Path):
    folder = published.write(tmp_path / "gemma", "gemma")
    given = PretrainedTokenizer(str(folder), eos_token="<end_of_turn>", pad_token="<eos>")
    special = given.special
    assert (given.eos, given.pad) == (special["<end_of_turn>"], special["<eos>"])
    assert given.stops == (special["<end_of_turn>"], special["<eos>"])
    assert given.variables["eos_token"] == "<end_of_turn>"


def test_tokens_that_only_the_configuration_has_are_added(qwen: Path):
    end = PretrainedTokenizer(str(qwen)).vocab_size
    found = change(
        qwen, "tokenizer_config.json", added_tokens_decoder={str(end): {"content": "<tool>", "special": True}}
    )
    assert found.special["<tool>"] == end and found.vocab_size == end + 1
    assert found.encode("a<tool>", specials=True)[-1] == end and end not in found.encode("a<tool>")


def test_names_that_are_only_listed_as_special_are_control_tokens(tmp_path: Path):
    folder = published.write(tmp_path / "qwen", "qwen2.5")
    assert "<tool_call>" not in PretrainedTokenizer(str(folder)).special  # the template does not write it
    found = change(folder, "tokenizer_config.json", additional_special_tokens=["<tool_call>"])
    assert found.special["<tool_call>"] not in found.encode("<tool_call>")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
)
def test_the_digest_covers_every_file_that_decides(qwen: Path, name: str):
    before = PretrainedTokenizer(str(qwen)).digest
    assert PretrainedTokenizer(str(qwen)).digest == before and len(before) == 64
    path = qwen / name
    path.write_bytes(path.read_bytes() + b"\n")
    assert PretrainedTokenizer(str(qwen)).digest != before


def test_what_truncates_pads_or_draws_lots_is_switched_off(qwen: Path):
    content = json.loads((qwen / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.9
    content["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    wanted = PretrainedTokenizer(str(qwen)).encode("What is the question?")
    (qwen / "tokenizer.json").write_text(json.dumps(content))
    assert PretrainedTokenizer(str(qwen)).encode("What is the question?") == wanted


def test_a_lone_surrogate_is_refused(qwen: Path):
    with pytest.raises(ValueError, match="position 1 is a lone surrogate"):
        PretrainedTokenizer(str(qwen)).encode("a\ud800")


@pytest.mark.parametrize(
    ("name", "fields", "complaint"),
    [
        (
            "tokenizer_config.json",
            {"eos_token": "<none>"},
            "eos_token: got '<none>', which is no token of tokenizer.json",
        ),
        ("tokenizer_config.json", {"pad_token": "<none>"}, "pad_token: got '<none>'"),
        (
            "generation_config.json",
            {"eos_token_id": [391, 10**6]},
            "eos_token_id or pad_token_id: got 1000000; allowed are ids of tokens",
        ),
        ("generation_config.json", {"eos_token_id": "x"}, "eos_token_id: got 'x'; allowed are whole numbers"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}, "merges": []}}, "model.vocab: got no tokens"),
        ("tokenizer.json", {"model": None}, "model.vocab: got no tokens"),
        (
            "tokenizer.json",
            {"model": {"type": "None", "vocab": {"a": 0}}},
            "allowed is a file that the library tokenizers",
        ),
        ("tokenizer.json", {"added_tokens": [{"id": 1}]}, "added_tokens: got no list of tokens with id and content"),
        (
            "tokenizer.json",
            {
                "added_tokens": [
                    {
                        "id": 9999,
                        "content": "<|im_end|>",
                        "special": True,
                        "single_word": False,
                        "lstrip": False,
                        "rstrip": False,
                        "normalized": False,
                    }
                ]
            },
            "special token '<|im_end|>': got the ids",
        ),
        ("tokenizer_config.json", {"eos_token": "a"}, "got the special token 'a'; allowed are names of"),
    ],
    ids=range(10),
)
def test_files_that_are_wrong_are_refused_in_words(qwen: Path, name: str, fields: dict, complaint: str):
    with pytest.raises(ValueError, match=re.escape(complaint)) as error:
        change(qwen, name, **fields)
    assert str(qwen) in str(error.value)


def test_without_a_stop_token_anywhere_it_has_to_be_given(qwen: Path):
    (qwen / "generation_config.json").unlink()
    with pytest.raises(ValueError, match="no file names the token that ends a text"):
        change(qwen, "tokenizer_config.json", eos_token=None)
    given = PretrainedTokenizer(str(qwen), eos_token="<|im_end|>")
    assert given.stops == (given.special["<|im_end|>"],) == (given.eos,)


def test_the_library_has_to_be_installed(qwen: Path, monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("grpo_jax.text.renamed.import_module", missing)
    (qwen / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>", "model_max_length": 5}')
    with pytest.raises(ValueError, match=r'pip install "grpo-jax\[hf\]"'):
        PretrainedTokenizer(str(qwen))


def test_what_no_piece_can_say_is_unknown_as_in_the_reference(tmp_path: Path):
    library = Library(models.WordLevel({"<unk>": 0, "ab": 1, "</s>": 2}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.save(str(tmp_path / "tokenizer.json"))
    found = change(tmp_path, "tokenizer_config.json", eos_token="</s>", unk_token="<unk>")
    assert found.encode("ab cd ab") == library.encode("ab cd ab").ids == [1, 0, 1]
    # The name of the end, which here is a word of the vocabulary, is a word that is not known.
    assert found.encode("ab </s>") == [1, 0] and found.encode("ab </s>", specials=True) == [1, 2]
