from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library

from grpo_jax.text import PretrainedTokenizer
from tests.text import published

PLAIN = ["", "What is 12 + 34?", "  two  spaces\n\n\nand lines\t", "été 漢字 🙂", "a<b|c>d <|im_", "x" * 300]


@pytest.fixture(scope="module", params=sorted(published.STYLES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.write(tmp_path_factory.mktemp("published") / request.param, request.param)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PretrainedTokenizer:
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
