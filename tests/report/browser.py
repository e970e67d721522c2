"""A page in headless Chromium, asked through the pipe of its debugging protocol: no driver and no network."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
"""The browser that the environment variable names, or an installed one."""
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")
SECONDS = 300
"""How long the browser may be silent while it is asked something."""


class Browser:
    """A context in which one page is open.

    Parameters
    ----------
    path : Path
        Of the page's file.
    size : (int, int)
        Width and height of the window, in pixels.
    """

    def __init__(self, path: Path, size: tuple[int, int] = (1400, 1000)) -> None:
        self._address, self._size, self._numbers = path.absolute().as_uri(), size, itertools.count(1)
        self.events: list[dict[str, Any]] = []
        self._unread = b""

    def __enter__(self) -> Browser:
        self._start()
        try:
            self._open()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _start(self) -> None:
        assert CHROMIUM is not None
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        line = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        window = f"--window-size={self._size[0]},{self._size[1]}"
        chromium = [CHROMIUM, *FLAGS, window, f"--user-data-dir={self._home.name}", "about:blank"]
        command = ["bash", "-c", line, "bash", *chromium]  # sh takes pipes of one digit alone
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), **quiet)  # type: ignore[call-overload]
        os.close(theirs_in), os.close(theirs_out)
        self._to, self._from = os.fdopen(ours_out, "wb", buffering=0), os.fdopen(ours_in, "rb", buffering=0)

    def _open(self) -> None:
        attached = self.ask("Target.attachToTarget", targetId=self._page(), flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")
        self.ask("Page.setLifecycleEventsEnabled", enabled=True)
        loaded = {"loaderId": self.ask("Page.navigate", url=self._address)["loaderId"], "name": "load"}
        while not any(loaded.items() <= event["params"].items() for event in self._lives()):
            self._read()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._to.close(), self._from.close()
        self._home.cleanup()

    def ask(self, method: str, **parameters: Any) -> Any:
        """The answer to a call of the debugging protocol."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if hasattr(self, "_session") else {}
        self._to.write(json.dumps({"id": number, "method": method, "params": parameters, **session}).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of some JavaScript, once it is there."""
        found = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """A key, as a keyboard sends it."""
        code = {"Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}[key]
        named: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **named, **({"text": "\r"} if key == "Enter" else {}))
        self.ask("Input.dispatchKeyEvent", type="keyUp", **named)

    def picture(self, path: Path) -> None:
        """A PNG of the whole page."""
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def _page(self) -> str:
        """The identifier of the first page, once there is one."""
        while True:
            for target in self.ask("Target.getTargets")["targetInfos"]:
                if target["type"] == "page":
                    return str(target["targetId"])
            time.sleep(0.01)

    def _lives(self) -> list[dict[str, Any]]:
        """The events of documents; the empty document before a page has another loader."""
        return [event for event in self.events if event["method"] == "Page.lifecycleEvent"]

    def _read(self) -> Any:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], SECONDS)
            assert ready, f"the browser sent nothing for {SECONDS} seconds"
            letters = self._from.read(2**16)
            assert letters, "the browser has ended"
            self._unread += letters
        line, _, self._unread = self._unread.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message
