"""A page opened in headless Chromium: what stands in it after its script, what it asked for, what was refused to it."""

import json
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

SECONDS = 120
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=5000"
).split()
NOBODY = "--host-resolver-rules=MAP * ~NOTFOUND"


@dataclass
class Element:
    """A tag with its attributes, and all text inside."""

    tag: str
    attributes: dict[str, str | None]
    text: str = ""


@dataclass
class Opened:
    """A page as the browser had it in the end."""

    elements: list[Element] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)  # addresses beyond the file itself that the page asked for
    console: str = ""

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """Elements with this tag and these attributes (`data_run` for data-run)."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [e for e in self.elements if e.tag == tag and wanted.items() <= e.attributes.items()]

    def one(self, tag: str, **attributes: str) -> Element:
        """The only one of them."""
        (element,) = self.all(tag, **attributes)
        return element


class _Tree(HTMLParser):
    VOID = frozenset("area base br col embed hr img input link meta source track wbr".split())

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.elements.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop().tag != tag:
            pass

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data


def program() -> str:
    """Where Chromium is; without it a test fails and says what to install."""
    found = shutil.which("chromium")
    if found is None:
        pytest.fail("no program `chromium`: install the Debian package of that name (apt-get install chromium)")
    return found


def opened(page: Path, folder: Path, *flags: str, fragment: str = "") -> Opened:
    """The page after its script ran, by a browser of its own whose files are in `folder` and which finds no host."""
    folder.mkdir()
    log = folder / "net.json"
    private = [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", NOBODY]
    address = page.resolve().as_uri() + (f"#{fragment}" if fragment else "")
    process = subprocess.Popen(
        [program(), *FLAGS, *private, *flags, "--dump-dom", address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "HOME": str(folder)},
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, errors = process.communicate()
        pytest.fail(f"chromium did not end within {SECONDS} s: {errors[-2000:].decode(errors='replace')}")
    assert process.returncode == 0, errors[-2000:].decode(errors="replace")
    lines = [line for line in errors.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return Opened(_Tree(out.decode("utf-8")).elements, _asked(log), "\n".join(lines))


def _asked(log: Path) -> list[str]:
    """Addresses of requests that began in a page, but for the file: those of the browser itself have no origin."""
    record = json.loads(log.read_text("utf-8"))
    started = record["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [
        event["params"] for event in record["events"] if event["type"] == started and "url" in event.get("params", {})
    ]
    return [
        request["url"]
        for request in asked
        if request.get("initiator") != "not an origin" and urlsplit(request["url"]).scheme not in ("file", "data")
    ]
