import datetime
import io
import json
import sys

import pytest
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError

from grpo_jax.text import render as program
from grpo_jax.text.render import TooLongError, render

ASKED = [{"role": "user", "content": "x"}]


def one(template: str, **variables: object) -> str:
    return render(template, [ASKED], variables, "2024-07-26")[0]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        # A block leaves neither the white space before it nor the end of line behind it.
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "x"),
        ("{{ {'b': '<é>', 'a': 1} | tojson }}", '{"b": "<é>", "a": 1}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, indent=1) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("{{ strftime_now('%Y') }}", "2024"),
        ("{{ dict(a=1).a }}{{ dict.fromkeys([1]) }}", "1{1: None}"),
        ("{% set n = namespace(a=1, self=2) %}{% set n.a = n.a + n.self %}{{ n.a }}", "3"),
        ("{{ bos_token }}{{ missing }}{{ add_generation_prompt is defined }}", "<s>False"),
        ("{{ messages[0]['role'] }}{{ messages[-1].content }}{{ messages[1:] }}", "userx[]"),
    ],
    ids=range(12),
)
def test_the_environment_is_that_of_the_reference(template: str, text: str):
    assert one(template, bos_token="<s>") == text


def test_a_template_may_refuse_a_chat():
    with pytest.raises(TemplateError, match="only users"):
        one("{{ raise_exception('only users') }}")


@pytest.mark.parametrize("name", ["__class__", "_x"])
def test_a_namespace_has_no_names_with_underscores_in_front(name: str):
    with pytest.raises(SecurityError, match=name):
        one(f"{{% set n = namespace({name}=1) %}}")
    with pytest.raises(SecurityError, match=name):
        one(f"{{% set n = namespace() %}}{{% set n.{name} = 1 %}}")


def test_a_long_question_may_make_a_long_chat_and_a_short_one_may_not():
    long = [{"role": "user", "content": "x" * program.LARGEST}]
    twice = "{% for i in range(8) %}{{ messages[0].content }}{% endfor %}"
    assert len(render(twice, [long], {}, "2024-07-26")[0]) == 8 * program.LARGEST
    with pytest.raises(TooLongError, match="a chat of more than 1,048,576 characters"):
        one("{% for i in range(99999) %}" + "x" * 20 + "{% endfor %}")


def said(monkeypatch: pytest.MonkeyPatch, template: str) -> dict:
    request = {"template": template, "chats": [ASKED], "variables": {}, "date": "2024-07-26", "path": sys.path}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request | {"seconds": 5, "megabytes": 64})))
    answer = io.StringIO()
    monkeypatch.setattr(sys, "stdout", answer)
    monkeypatch.setattr(program, "_lower", lambda seconds, megabytes: None)  # these limits would be this process's
    program.main()
    return json.loads(answer.getvalue())


def test_the_program_answers_with_texts_or_with_what_failed(monkeypatch: pytest.MonkeyPatch):
    assert said(monkeypatch, "{{ messages[0].content }}!") == {"texts": ["x!"]}
    assert said(monkeypatch, "{{ 1 / 0 }}") == {"failed": "ZeroDivisionError: division by zero"}


def test_the_clock_of_the_environment_stands():
    made = program.environment(datetime.datetime(2020, 2, 29))
    assert made.from_string("{{ strftime_now('%d.%m.%Y %H:%M') }}").render() == "29.02.2020 00:00"
