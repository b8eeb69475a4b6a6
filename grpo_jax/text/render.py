"""A program of its own: renders chat templates, which come with a checkpoint and are not trusted, and nothing else.

It reads one JSON object from standard input and writes one to standard output. The process that runs it lowers its
limits of memory and processor time first, so that a template that never ends, or that fills the memory, ends this
process alone. The environment is that of transformers: jinja's immutable sandbox, its options, filters and globals.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib import import_module
from typing import Any

LARGEST = 1 << 20
"""Characters that rendering may add to those of the messages."""


class TooLongError(ValueError):
    """A chat that is longer than it may be."""


def render(template: str, chats: Sequence[Sequence[Mapping]], variables: Mapping, date: str) -> list[str]:
    """Each of `chats`, lists of messages with role and content, in the words of `template`.

    `variables` are what the template sees besides ``messages``, such as ``bos_token`` and ``add_generation_prompt``;
    ``strftime_now`` tells `date`, written 2024-07-26, and not today. Raises what jinja raises, and TooLongError.
    """
    found = environment(datetime.strptime(date, "%Y-%m-%d")).from_string(template)
    texts = []
    for chat in chats:
        room = LARGEST + 8 * sum(len(str(message.get("content"))) for message in chat)
        parts: list[str] = []
        for part in found.generate(messages=[dict(message) for message in chat], **variables):
            parts.append(part)
            room -= len(part)
            if room < 0:
                raise TooLongError(f"a chat of more than {LARGEST:,} characters beyond those of its messages")
        texts.append("".join(parts))
    return texts


def environment(now: datetime) -> Any:
    """The environment of `apply_chat_template` in transformers, at the time `now`."""
    jinja = import_module("jinja2")
    sandbox, extensions = import_module("jinja2.sandbox"), import_module("jinja2.ext")

    def raise_exception(message: str) -> None:
        raise jinja.TemplateError(message)

    def strftime_now(style: str) -> str:
        return now.strftime(style)

    made = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation(jinja, extensions), extensions.loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": _Dict(),
        "namespace": _namespace(jinja),
    }
    return made


def _tojson(
    x: object, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Dict:
    """`dict` without what its type leads to."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict:
        return dict.fromkeys(*args)


def _namespace(jinja: Any) -> Callable:
    """`namespace` of jinja whose attributes cannot begin with an underscore."""

    def check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja.exceptions.SecurityError(f"an attribute of a namespace may not be called {name!r}")

    class Namespace(jinja.utils.Namespace):
        def __init__(*args: Any, **kwargs: Any) -> None:
            found = dict(*args[1:], **kwargs)
            for name in found:
                check(name)
            jinja.utils.Namespace.__init__(args[0], found)

        def __setitem__(self, name: str, value: object) -> None:
            check(name)
            jinja.utils.Namespace.__setitem__(self, name, value)

    return Namespace


def _generation(jinja: Any, extensions: Any) -> type:
    """The tag ``{% generation %}``, which marks what an assistant said; here it only has to be read."""

    class Generation(extensions.Extension):
        tags = frozenset(["generation"])

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            call = self.call_method("_said")
            return jinja.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _said(self, caller: Callable[[], str]) -> str:
            return caller()

    return Generation


def main() -> None:
    """Answer the one request on standard input."""
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    _lower(request["seconds"], request["megabytes"])
    try:
        said = {
            "texts": render(request["template"], request["chats"], request["variables"], request["date"]),
        }
    except MemoryError:
        said = {"failed": "MemoryError: it takes too much memory"}
    except Exception as error:  # whatever a template makes jinja raise
        said = {"failed": f"{type(error).__name__}: {error}"[:2000]}
    json.dump(said, sys.stdout)


def _lower(seconds: int, megabytes: int) -> None:
    """Limits of processor time and memory for the rest of this process."""
    resource = import_module("resource")
    for what, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, megabytes << 20)):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(what, (most, hard))
        except (OSError, ValueError):  # not every system can limit every thing; the parent has a clock too
            continue


if __name__ == "__main__":
    main()
