"""The harness compares with what it says it does; these tests need no model of the library."""

import numpy as np

from tests.parity import harness
from tests.parity.cases import CASES, LENGTHS, NEW_TOKENS, PROMPTS


def test_every_family_is_there_with_several_models_and_one_of_them_is_quick():
    families = {name.split("-")[0] for name in CASES}
    assert families == {"qwen2", "qwen3", "qwen3moe", "llama", "gemma2", "gemma3", "mistral", "mixtral"}
    for family in families:
        own = [case for name, case in CASES.items() if name.startswith(f"{family}-")]
        assert len(own) >= 3 and sum(case.quick for case in own) == 1


def test_logits_of_the_reference_vary_and_padding_changes_none():
    """Otherwise a test that compares with them could not fail, or would have to."""
    for name, case in CASES.items():
        found = harness.expected(name)
        assert found["padded"].shape == found["alone"].shape == (4, max(LENGTHS), case.settings["vocab_size"])
        assert found["greedy"].shape == found["greedy_logp"].shape == (2, NEW_TOKENS)
        for row, length in enumerate(LENGTHS):
            assert PROMPTS[row] < length and np.std(found["alone"][row, :length]) > 1, name
            if name != "llama-dynamic":  # there the longest row of a batch decides for all
                np.testing.assert_allclose(found["padded"][row, :length], found["alone"][row, :length], atol=3e-5)


def test_the_reference_answers_for_a_folder_as_when_it_made_it():
    name = "qwen2-tied"
    answer = harness.answers({name: harness.made() / name / "model"})[name]
    assert list(answer["complaints"]) == []
    np.testing.assert_allclose(answer["padded"], harness.expected(name)["padded"], atol=1e-6)
    np.testing.assert_array_equal(answer["greedy"], harness.expected(name)["greedy"])
