"""A page in a headless Chromium, as a person meets it."""

import base64
import io
import json
import shutil
import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE = 60
"""Seconds in which what is waited for must come."""


def require_chromium():
    """Skip a test, or a module that is read, where no Chromium is, or nothing to drive it."""
    for module in ("selenium", "gradio"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            why = f"there is no {program}: apt-get install chromium chromium-driver"
            pytest.skip(why, allow_module_level=True)


class Browser:
    """A window on a page."""

    def __init__(self, driver):
        self.driver = driver

    def run(self, code, *values):
        return self.driver.execute_script(code, *values)

    def all(self, selector):
        from selenium.webdriver.common.by import By

        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector):
        """What such elements say, at one moment: an answer may replace them at any time."""
        return self.run(
            "return [...document.querySelectorAll(arguments[0])].map(x => x.innerText)", selector
        )

    def one(self, selector):
        """The first such element, once it is there and visible or a file input."""
        return self.until(lambda: next(iter(self.all(selector)), None), selector)

    def until(self, found, what):
        """What a function gives, once it gives something."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + PATIENCE
        while True:
            try:
                if value := found():
                    return value
            except StaleElementReferenceException:
                pass  # An answer has just replaced what was looked at.
            assert time.monotonic() < end, f"no {what}: {self.text[:2000]}"
            time.sleep(0.05)

    @property
    def text(self):
        return self.run("return document.body.innerText")

    def said(self, words):
        """Wait until the page says something."""
        return self.until(lambda: words.casefold() in self.text.casefold(), words)

    def size(self, width, height=900, *, dark=False):
        """As a screen of that width has it."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def picture(self, path):
        """The whole page as a PNG file, and its pixels, uint8 [y x 3]."""
        width, height = self.run(
            "const x = document.documentElement; return [x.clientWidth, x.scrollHeight]"
        )
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 2000), "scale": 1}
        options = {"captureBeyondViewport": True, "clip": clip}
        data = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
        path.write_bytes(base64.b64decode(data))
        with Image.open(io.BytesIO(path.read_bytes())) as picture:
            return np.asarray(picture.convert("RGB"))

    def requested(self):
        """Addresses that were asked for since the last call, of the web alone."""
        entries = (json.loads(x["message"])["message"] for x in self.driver.get_log("performance"))
        sent = [x["params"] for x in entries if x["method"] == "Network.requestWillBeSent"]
        # The browser's own first tab asks for things too.
        own = [x["request"]["url"] for x in sent if not x["documentURL"].startswith("chrome")]
        return {x for x in own if x.startswith(("http", "ws"))}

    def unnamed(self):
        """Things that can be used but have no name for a screen reader."""
        tree = self.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        used = (
            "button", "textbox", "spinbutton", "slider", "radio", "combobox", "checkbox", "tab",
            "link", "image",
        )  # fmt: skip
        return [
            x["role"]["value"]
            for x in tree
            if not x["ignored"]
            and x["role"]["value"] in used
            and not x.get("name", {}).get("value", "").strip()
        ]


@contextmanager
def browser(folder):
    """A browser with a profile of its own."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for x in (*OPTIONS, f"--user-data-dir={folder}"):
        options.add_argument(x)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
