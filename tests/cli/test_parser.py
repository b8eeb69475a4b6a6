"""What several commands read in the same way."""

import pytest

from grpo_jax.cli.parser import Parser, choice_flags, names, numbers


def test_texts_with_commas_are_names_and_numbers():
    assert names("a,b,,c") == ["a", "b", "c"] and names("") == [] and names(None) is None
    assert numbers("1,16") == [1, 16]
    with pytest.raises(ValueError, match="invalid literal"):
        numbers("1,x")


def test_settings_are_collected_in_order_and_an_unknown_flag_has_our_code(capsys: pytest.CaptureFixture[str]):
    parser = Parser(prog="some")
    choice_flags(parser)
    parsed = parser.parse_args(["--set", "a=1", "--variant", "v", "--set", "a=2"])
    assert (parsed.settings, parsed.variant) == (["a=1", "a=2"], "v")
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--sit", "a=1"])
    assert end.value.code == 4 and "some: unrecognized arguments: --sit a=1" in capsys.readouterr().err
