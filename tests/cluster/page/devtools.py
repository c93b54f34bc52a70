"""A headless browser of a test's own, driven by the DevTools protocol: as much of it as a look at one page needs.

Fails loudly: what the page throws or writes to its console as an error is kept in `problems`, a condition that does not
come true names itself and shows the page's text, and a browser that does not start shows what it said.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
from websockets.sync.client import ClientConnection, connect

NAMES: Final = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER: Final = os.environ.get("NIGHTJAR_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
WITHIN_S: Final = 30.0
EVERY_S: Final = 0.05

T = TypeVar("T")


class Page:
    """One tab. Every method fails the test that calls it where the browser refuses."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """One command and its result; what happened in between is looked at for problems."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message: dict[str, Any] = json.loads(self._socket.recv(timeout=WITHIN_S))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result
            self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, method: str, what: dict[str, Any]) -> None:
        """The browser itself logs every answer other than 200; that is no problem of the page's."""
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(what["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and what["type"] in {"error", "warning", "assert"}:
            self.problems.append(json.dumps(what["args"]))
        elif method == "Log.entryAdded" and what["entry"]["level"] in {"error", "warning"} and what["entry"]["source"] != "network":
            self.problems.append(what["entry"]["text"])

    def open(self, url: str) -> None:
        """Go to an address and wait until its document is there."""
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"
        self.wait_for(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The JSON value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Ask until the expression gives something true, and return that."""
        return until(lambda: self.evaluate(expression), lambda: f"{expression}\n{self.evaluate('document.body.innerText')}")

    def text(self, selector: str) -> str:
        """What a person reads in the first element of a selector."""
        words: str = self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
        return words

    def type(self, selector: str, words: str) -> None:
        """Put the focus on a field and type."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=words)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key where the focus is."""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text if kind == "keyDown" else ""
            )

    def resize(self, width_px: int, height_px: int = 900) -> None:
        """Look through a window of this size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width_px, height=height_px, deviceScaleFactor=1, mobile=False)

    def prefer(self, scheme: str) -> None:
        """`dark` or `light`, as the person's system says."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def roles(self) -> list[str]:
        """Roles of everything that a screen reader is told of."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [node["role"]["value"] for node in nodes if not node["ignored"]]

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]))


@contextlib.contextmanager
def running_browser(folder: Path) -> Iterator[str]:
    """A browser with a profile below `folder`; gives the address of its DevTools. No proxy: what it opens is on this machine."""
    assert BROWSER, "no browser: run `make page`"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--hide-scrollbars",
        "--no-proxy-server",
    ]
    command = [BROWSER, *options, "--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}", "about:blank"]
    port_file = folder / "profile" / "DevToolsActivePort"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)

    def port() -> str:
        assert process.poll() is None, (folder / "log").read_text()
        lines = port_file.read_text().splitlines() if port_file.exists() else []
        return lines[0] if len(lines) > 1 else ""

    try:
        yield f"http://127.0.0.1:{until(port, lambda: 'the browser listens')}"
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextlib.contextmanager
def new_page(devtools_url: str) -> Iterator[Page]:
    """A tab of its own, closed at the end."""
    made = httpx.put(f"{devtools_url}/json/new?about:blank", trust_env=False, timeout=WITHIN_S).raise_for_status().json()
    with connect(made["webSocketDebuggerUrl"], max_size=None, proxy=None) as socket:
        yield Page(socket)
    httpx.get(f"{devtools_url}/json/close/{made['id']}", trust_env=False, timeout=WITHIN_S).raise_for_status()


def until(condition: Callable[[], T], what: Callable[[], str]) -> T:
    """Ask until the condition gives something true, and return that; at the end of WITHIN_S say what did not come."""
    deadline_s = time.monotonic() + WITHIN_S
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"not within {WITHIN_S} s: {what()}"
        time.sleep(EVERY_S)
    return value
