"""The page in a real browser, with its server as a process: what a person clicks, step by step."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.browser import Tab, browser

ROOT = Path(__file__).parents[2]
PATIENCE = 90  # seconds for anything to happen on two busy cores


class Session:
    """A person at the page."""

    def __init__(self, tab: Tab, address: str) -> None:
        self.tab, self.address = tab, address

    def open(self, name: str) -> None:
        """Load the page anew, at one of its tabs."""
        self.tab.go("about:blank")
        self.tab.go(f"{self.address}#{name}")
        self.until(f"document.getElementById('tab-{name}').ariaSelected === 'true'")

    def until(self, condition: str) -> Any:
        """Wait until an expression holds; its value."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if value := self.tab.run(f"(one => one instanceof Node ? true : one)({condition})"):
                    return value
            except AssertionError:  # what it looks for is not there yet
                pass
            time.sleep(0.1)
        shown = self.tab.run("document.querySelector('section:not([hidden])').innerText")
        raise AssertionError(f"{condition} does not come true; the page says:\n{shown}")

    def click(self, name: str) -> None:
        """Press a button, once it can be pressed."""
        found = f"document.getElementById('{name}')"
        self.until(f"{found} && !{found}.disabled && !{found}.hidden && ({found}.click(), true)")

    def fill(self, name: str, value: str) -> None:
        """Write into a field or choose an option."""
        self.until(f"document.getElementById({name!r})")
        self.tab.run(f"""{{ const field = document.getElementById({name!r});
            field.value = {value!r};
            for (const kind of ["input", "change"]) field.dispatchEvent(new Event(kind)); }}""")

    def choose(self, name: str, place: str, *, within: bool = False) -> None:
        """Choose a place in the dialog, folder by folder; a folder perhaps from within it."""
        self.click(f"{name}-choose")
        parts = place.split("/")
        for number in range(1, len(parts) + within):
            self._entry("place", "/".join(parts[:number]))
        if within:
            self.until(f"document.getElementById('picker-way').textContent === '{place}'")
            self.click("picker-here")
            return
        chosen = f"document.querySelector('#picker-list [data-choose=\"{place}\"]')"
        self.until(f"{chosen} || document.querySelector('#picker-list [data-place=\"{place}\"]')")
        self._entry("choose" if self.tab.run(f"!!{chosen}") else "place", place)
        self.until("!document.getElementById('picker').open")

    def _entry(self, kind: str, place: str) -> None:
        entry = f"document.querySelector('#picker-list [data-{kind}=\"{place}\"]')"
        self.until(f"{entry} && ({entry}.click(), true)")

    def text(self, name: str) -> str:
        """What an element says."""
        return str(self.tab.run(f"document.getElementById('{name}')?.textContent ?? ''")).strip()

    def step(self) -> int:
        """The training step that the Train tab shows."""
        return int(self.tab.run("document.getElementById('train-progress')?.dataset.step ?? 0"))

    def upload(self, name: str, path: Path) -> None:
        """Choose a file of this computer."""
        document = self.tab.call("DOM.getDocument")["root"]["nodeId"]
        found = self.tab.call("DOM.querySelector", nodeId=document, selector=f"#{name}")
        self.tab.call("DOM.setFileInputFiles", files=[str(path)], nodeId=found["nodeId"])

    def press_on(self, name: str, across: float, down: float) -> None:
        """Click into a picture, at shares of its width and height."""
        self.tab.run(f"document.getElementById('{name}').scrollIntoView({{block: 'center'}})")
        box = f"document.getElementById('{name}').getBoundingClientRect()"
        left, top, width, height = self.tab.run(
            f"(box => [box.left, box.top, box.width, box.height])({box})"
        )
        x, y = left + across * width, top + down * height
        for kind in ("mousePressed", "mouseReleased"):
            self.tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left",
                          clickCount=1)  # fmt: skip

    def photograph(self, path: Path, width: int = 1100, height: int = 800) -> None:
        """Write what the window shows as a JPEG."""
        self.tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                      deviceScaleFactor=1, mobile=False)  # fmt: skip
        time.sleep(0.5)
        found = self.tab.call("Page.captureScreenshot", format="jpeg", quality=82)
        path.write_bytes(base64.b64decode(found["data"]))

    def problems(self) -> list[str]:
        """What the browser complained about, and every address but the page's own."""
        asked = "asked the network for "
        own = tuple(f"{asked}{one}" for one in (self.address, f"blob:{self.address}", "about:"))
        return [one for one in self.tab.problems if not one.startswith(own)]


@contextmanager
def studio(home: Path) -> Iterator[str]:
    """The address of a lisa-studio for one folder, ended with the block as by Ctrl-C."""
    command = [sys.executable, "-P", "-m", "studio.main", str(home), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


@contextmanager
def session(home: Path, profile: Path) -> Iterator[Session]:
    """A browser at the page of a folder."""
    with studio(home) as address, browser(profile) as tab:
        downloads = {"behavior": "allow", "downloadPath": str(profile)}
        tab.call("Browser.setDownloadBehavior", **downloads)
        yield Session(tab, address)
