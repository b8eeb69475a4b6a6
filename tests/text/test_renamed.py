import time

import pytest
from tokenizers import Tokenizer as Library

from grpo_jax.text import files, renamed
from tests.text import published


@pytest.fixture(scope="module", params=sorted(published.STYLES))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[renamed.Loaded, Library]:
    folder = published.write(tmp_path_factory.mktemp("published") / request.param, request.param)
    found = files.read(folder)
    library = Library.from_file(str(folder / "tokenizer.json"))
    return renamed.load(renamed.Source(found.digest, frozenset(), found)), library


def test_the_copy_has_the_ids_of_the_original_under_other_names(loaded: tuple[renamed.Loaded, Library]):
    copy, library = loaded
    vocabulary = library.get_vocab(with_added_tokens=True)
    assert {name: token for token, name in copy.names.items()} == vocabulary
    assert copy.beyond == max(vocabulary.values()) + 1
    for name, token in vocabulary.items():
        hidden = renamed.hidden(token) if name in copy.control else name
        assert copy.backend.token_to_id(hidden) == token
        if name in copy.control:
            assert copy.backend.token_to_id(name) is None and vocabulary[name] == copy.control[name] == token


def test_a_control_token_is_found_wherever_it_begins(loaded: tuple[renamed.Loaded, Library]):
    copy, _ = loaded
    for name in copy.control:
        assert copy.every.findall(f"a{name}{name}b") == [name, name]
        broken = copy.starts.sub(rf"\g<0>{renamed.MARK}", f"a{name}b{name}")
        assert copy.every.findall(broken) == [] and broken.replace(renamed.MARK, "") == f"a{name}b{name}"


def test_names_that_overlap_are_all_broken():
    """Breaking the first of two that share characters would leave the second."""
    starts = renamed._any(["aba", "bab"], "{}(?={})")
    assert starts.sub(rf"\g<0>{renamed.MARK}", "ababa").replace(renamed.MARK, "|") == "a|b|a|ba"


def test_of_names_that_begin_at_one_place_the_longest_is_found():
    every = renamed._any(["<a>", "<a><b>", "<", "b", "\n\n", "\n"])
    assert every.findall("x<a><b><a>b<\n\n\n") == ["<a><b>", "<a>", "b", "<", "\n\n", "\n"]
    assert renamed._any([]).findall("abc") == []


def test_thousands_of_names_cost_nothing_where_text_has_none_of_their_first_characters():
    every = renamed._any([f"<unused{k}>" for k in range(6000)])
    start = time.process_time()
    assert every.findall("step by step " * 100_000) == []
    assert time.process_time() - start < 1


def test_merges_that_read_or_make_a_control_token_are_left_out():
    new = {"<s>": "x"}
    pairs = ["< s>", ["<s", ">"], ["<s>", "a"], "a <s>", ["a", "b"], "<s a", 3]
    assert [renamed._makes(pair, new) for pair in pairs] == [True, True, True, True, False, False, False]


def test_what_users_write_has_no_noncharacter_of_ours():
    assert renamed.safe("a\ufdd0\ufdd1\ufdd2\ufdd3") == "a\ufffd\ufffd\ufffd\ufdd3"
    assert renamed.sealed("a\ufdd0\ufdd1\ufdd2") == "a\ufffd\ufffd\ufdd2"
