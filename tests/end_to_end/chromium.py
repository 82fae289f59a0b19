"""A headless Chromium to drive from a test, over its debugging pipe: no driver and no further library needed.

    python tests/end_to_end/chromium.py http://127.0.0.1:8000 picture.png docs

takes the documentation's pictures of the server's page with a picture dropped on it: serve.png and serve-phone.png.
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)  # fmt: skip


def program() -> str | None:
    """The browser's path, or None where there is none."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Page:
    """One page in a browser of its own. A context manager."""

    def __init__(self, profile: Path, downloads: Path) -> None:
        chromium = program()
        assert chromium is not None
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        # The browser reads commands from file descriptor 3 and answers on 4, each message ended by a zero byte.
        high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 50) for descriptor in (to_read, to_write)]
        start = f"import os, sys; os.dup2({high[0]}, 3); os.dup2({high[1]}, 4); os.execv(sys.argv[1], sys.argv[1:])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", start, chromium, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=high, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for descriptor in high:
            os.close(descriptor)
        os.close(to_read)
        os.close(to_write)
        self._numbers = itertools.count(1)
        self._buffer = b""
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, timeout: float = 60, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout
        while True:
            answer = self._next(deadline)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._from, 1 << 20)
            assert data, "the browser ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(
        self, address: str, width: int = 1280, height: int = 900, *, dark: bool = False, phone: bool = False
    ) -> None:
        scale = 2 if phone else 1
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """A JavaScript expression's value; promises are awaited."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < deadline, f"never true: {condition}"
            time.sleep(0.05)

    def drop(self, path: Path, x: int = 300, y: int = 300) -> None:
        """A file dragged in from outside and let go."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def key(self, name: str, code: int) -> None:
        """One key pressed and let go."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def picture(self, path: Path) -> Path:
        """The whole page as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def complaints(self) -> list[str]:
        """What the page's console said as errors, among it what the content policy stopped."""
        found = []
        for event in self.events:
            about = event.get("params", {})
            if event.get("method") == "Log.entryAdded" and about["entry"]["level"] == "error":
                found.append(about["entry"]["text"])
            elif event.get("method") == "Runtime.exceptionThrown":
                found.append(str(about["exceptionDetails"]))
        return found


SHOWN = (
    "!document.getElementById('controls').hidden && document.getElementById('status').textContent.includes('pixels')"
)


def take_pictures(address: str, picture: Path, folder: Path) -> None:
    """The page on a desk (light) and on a phone (dark), at most 256 colours each."""
    import io
    import tempfile

    from PIL import Image

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, Page(Path(profile), folder) as page:
        for name, how in {
            "serve.png": {"width": 1180, "height": 760},
            "serve-phone.png": {"width": 390, "height": 844, "phone": True, "dark": True},
        }.items():
            page.open(address, **how)  # type: ignore[arg-type]
            page.wait("document.getElementById('list').children.length > 0")
            page.drop(picture, x=150, y=250)
            page.wait(SHOWN)
            page.run("document.activeElement.blur()")
            time.sleep(0.5)
            path = page.picture(folder / name)
            small = io.BytesIO()
            Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
            path.write_bytes(small.getvalue())


if __name__ == "__main__":
    take_pictures(sys.argv[1], Path(sys.argv[2]).resolve(), Path(sys.argv[3]))
