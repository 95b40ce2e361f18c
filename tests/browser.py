"""A headless Chromium on this machine, driven through its DevTools protocol over two pipes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 60


def chromium() -> str | None:
    """The browser's path, if one is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page; `problems` are what it wrote to the console as a warning or an error, and threw."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read, self.number, self.rest = write, read, 0, b""
        self.session: str | None = None
        self.problems: list[str] = []
        self.loaded = 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result
        raise TimeoutError(method)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            more = os.read(self.read, 1 << 20)
            assert more, "the browser has gone"
            self.rest += more
        text, _, self.rest = self.rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(text)
        self._note(answer.get("method", ""), answer.get("params", {}))
        return answer

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.problems.append(str(told["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.problems.append(str(told["args"]))
        elif event == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.problems.append(str(told["entry"]))
        elif event == "Network.requestWillBeSent":
            address = told["request"]["url"]
            if not address.startswith(("file:", "data:")):
                self.problems.append(f"asked the network for {address}")
        elif event == "Page.loadEventFired":
            self.loaded += 1

    def go(self, address: str) -> None:
        """Open an address and wait until it is loaded."""
        self._loading("Page.navigate", url=address)

    def reload(self) -> None:
        """Load the page again, by its address."""
        self._loading("Page.reload")

    def _loading(self, method: str, **parameters: Any) -> None:
        before = self.loaded
        self.call(method, **parameters)
        while self.loaded == before:
            self._next()

    def run(self, script: str) -> Any:
        """The value of an expression in the page; what it throws fails."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True,
            userGesture=True,
        )  # fmt: skip
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str, code: int = 0, text: str = "") -> None:
        """Press and release one key."""
        facts = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **facts)
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """A browser with its profile in `folder`, ended with the block. Raises FileNotFoundError."""
    name = chromium()
    if name is None:
        raise FileNotFoundError(f"no Chromium is installed, by no name of {', '.join(NAMES)}")
    theirs, write = os.pipe()
    read, ours = os.pipe()
    # The protocol is on descriptors 3 and 4.
    script = f'exec "$0" "$@" 3<&{theirs} 4>&{ours}'
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--remote-debugging-pipe",
        # A picture that moves, in the place of a camera, and nobody has to allow it.
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--user-data-dir={folder}",
    ]
    child = subprocess.Popen(
        ["bash", "-c", script, name, *options],
        pass_fds=(theirs, ours), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs)
    os.close(ours)
    try:
        tab = Tab(write, read)
        yield tab
        tab.session = None
        tab.call("Browser.close")
    finally:
        os.close(write)
        os.close(read)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
