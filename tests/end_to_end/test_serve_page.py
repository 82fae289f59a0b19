"""The server's page in a real browser: a picture dropped, looked at, thresholded, downloaded; on a desk and a phone."""

from __future__ import annotations

import io
import time
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from chromium import SHOWN, Page, program
from made_pictures import picture
from PIL import Image
from serving import argmax_package
from test_serve_process import serving
from tiny_labels import LABELS, label_package, scene
from tiny_saliency import saliency_package

pytestmark = pytest.mark.skipif(program() is None, reason="no Chromium is installed")

CANVAS = """(() => {
  const c = document.getElementById('canvas'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height);
  return [c.width, c.height, Array.from(d.data)];
})()"""


@pytest.fixture(scope="module")
def classes(package):
    with serving(package) as (address, _):
        yield address


@pytest.fixture(scope="module")
def standout(tmp_path_factory):
    package = saliency_package(tmp_path_factory.mktemp("page") / "object.segship", recipe="upstream", size=64)
    with serving(package.path) as (address, _):
        yield address


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    with serving(argmax_package(tmp_path_factory.mktemp("page") / "three.segship").path) as (address, _):
        yield address


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    with serving(label_package(tmp_path_factory.mktemp("page") / "street.segship", int8=False).path) as (address, _):
        yield address


def write(path: Path, image: np.ndarray) -> Path:
    cv2.imwrite(str(path), image)
    return path


def ask(address: str, path: Path, **fields: object) -> bytes:
    return httpx.post(f"{address}/v1/predict", files={"file": ("a", path.read_bytes())}, data=fields).content


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def canvas(page: Page) -> np.ndarray:
    width, height, values = page.run(CANVAS)
    return np.array(values, np.uint8).reshape(height, width, 4)


def view(page: Page, name: str) -> np.ndarray:
    page.run(f"document.querySelector('input[name=view][value={name}]').click()")
    settle(page)
    return canvas(page)


def slide(page: Page, name: str, value: int) -> None:
    page.run(f"(e => {{ e.value = {value}; e.dispatchEvent(new Event('input', {{bubbles: true}})) }})({name})")
    settle(page)


def fetched(page: Page, output: str, name: str) -> bytes:
    """A download's bytes, by its button."""
    page.run(f"document.querySelector('[data-output={output}]').click()")
    target, deadline = page.downloads / name, time.monotonic() + 20
    while not target.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)
    return target.read_bytes()


def settle(page: Page) -> None:
    page.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def ready(page: Page, address: str, **how: object) -> None:
    page.events.clear()
    page.open(address, **how)
    page.wait("document.getElementById('list').children.length > 0")


def test_a_dropped_picture_shows_the_server_s_mask(browser, classes, tmp_path):
    path = write(tmp_path / "cells.png", picture(3))
    rgb = picture(3)[..., ::-1]
    ready(browser, classes)
    browser.drop(path)
    browser.wait(SHOWN)
    mask = decode(ask(classes, path))
    np.testing.assert_array_equal(view(browser, "mask")[..., 0], mask)
    np.testing.assert_array_equal(view(browser, "picture")[..., :3], rgb)
    np.testing.assert_array_equal(view(browser, "cutout")[..., 3], mask)
    overlay = view(browser, "overlay")[..., :3]
    changed = (overlay != rgb).any(axis=2)
    np.testing.assert_array_equal(changed, mask > 0)
    slide(browser, "opacity", 0)
    np.testing.assert_array_equal(canvas(browser)[..., :3], rgb)
    assert browser.complaints() == []


def test_the_threshold_decides_in_the_page_and_in_the_download(browser, classes, tmp_path):
    path = write(tmp_path / "cells.png", cv2.GaussianBlur(picture(4), (0, 0), 3))
    ready(browser, classes)
    browser.drop(path)
    browser.wait(SHOWN)
    for percent in (20, 90):
        slide(browser, "threshold", percent)
        shown = view(browser, "mask")[..., 0]
        map_ = decode(ask(classes, path, output="map"))
        np.testing.assert_array_equal(shown, np.where(map_ > percent * 2.55, 255, 0))
        assert browser.run("document.getElementById('thresholdText').value") == f"{percent / 100:.2f}"
    assert fetched(browser, "mask", "cells_mask.png") == ask(classes, path, threshold=0.9)
    assert browser.complaints() == []


def test_a_saliency_map_is_soft_until_a_threshold_is_wanted(browser, standout, tmp_path):
    path = write(tmp_path / "object.png", cv2.GaussianBlur(picture(5), (0, 0), 4))
    ready(browser, standout)
    browser.drop(path)
    browser.wait(SHOWN)
    soft = decode(ask(standout, path))
    assert len(np.unique(soft)) > 10
    np.testing.assert_array_equal(view(browser, "mask")[..., 0], soft)
    assert browser.run("document.getElementById('threshold').disabled")
    browser.run("document.getElementById('soft').click()")
    settle(browser)
    np.testing.assert_array_equal(canvas(browser)[..., 0], decode(ask(standout, path, threshold=0.5)))


def test_one_class_a_pixel_is_shown_in_the_package_s_colours(browser, three, tmp_path):
    path = write(tmp_path / "cells.png", cv2.GaussianBlur(picture(5), (0, 0), 3))
    ready(browser, three)
    browser.drop(path)
    browser.wait(SHOWN)
    assert browser.run("document.getElementById('thresholdRow').hidden")
    labels = decode(ask(three, path))
    assert set(np.unique(labels)) == {0, 1, 2}
    slide(browser, "opacity", 100)
    shown = canvas(browser)[..., :3]
    np.testing.assert_array_equal(shown[labels == 1], np.broadcast_to((213, 44, 90), shown[labels == 1].shape))
    np.testing.assert_array_equal(shown[labels == 2], np.broadcast_to((30, 90, 220), shown[labels == 2].shape))
    assert browser.complaints() == []


def test_a_street_is_shown_class_by_class_and_its_label_files_downloaded(browser, street, tmp_path):
    path = write(tmp_path / "street.png", scene(5)[0])
    ready(browser, street)
    assert "road, sidewalk" in browser.run("document.getElementById('list').textContent")
    browser.drop(path)
    browser.wait(SHOWN)
    labels = decode(ask(street, path))
    colors = np.array([label.color for label in LABELS], np.uint8)
    np.testing.assert_array_equal(view(browser, "mask")[..., :3], colors[labels])
    view(browser, "overlay")
    slide(browser, "opacity", 100)
    np.testing.assert_array_equal(canvas(browser)[..., :3], colors[labels])
    lines = browser.run("Array.from(document.querySelectorAll('#found li')).map(e => e.textContent)")
    counts = np.bincount(labels.ravel(), minlength=len(LABELS))
    assert lines[0] == f"{LABELS[counts.argmax()].name}{100 * counts.max() / labels.size:.1f} %"
    assert len(lines) == (counts > 0).sum()
    shown = browser.run("Array.from(document.querySelectorAll('#downloads button')).filter(e => e.offsetParent).map(e => e.textContent)")  # fmt: skip
    assert shown == ["Labels", "Label ids", "Colours", "Cityscapes", "Overlay"]
    for output in ("ids", "color", "cityscapes"):
        assert fetched(browser, output, f"street_{output}.png") == ask(street, path, output=output)
    assert browser.complaints() == []


def test_a_rotated_photo_lies_as_its_mask_does(browser, classes, standout, tmp_path):
    """Turned where the package turns it, as its pixels lie where the package looks at them so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.fromarray(picture(6)).save(path, exif=exif, quality=95)
    for address, expected in ((classes, np.rot90(picture(6), -1)), (standout, picture(6))):
        ready(browser, address)
        browser.drop(path)
        browser.wait(SHOWN)
        shown = view(browser, "picture")[..., :3]
        assert shown.shape == expected.shape
        assert np.abs(shown.astype(int) - expected).mean() < 6


def test_what_is_no_picture_is_said_and_the_next_one_works(browser, classes, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    ready(browser, classes)
    browser.drop(tmp_path / "notes.png")
    browser.wait("!document.getElementById('alert').hidden")
    said = browser.run("document.getElementById('alert').textContent")
    assert said.startswith("the picture is not an image")
    assert browser.run("document.getElementById('controls').hidden")
    browser.drop(write(tmp_path / "cells.png", picture(3)))
    browser.wait(SHOWN)
    assert browser.run("document.getElementById('alert').hidden")


def test_a_picture_that_the_browser_cannot_show_still_gets_its_mask(browser, classes, tmp_path):
    path = tmp_path / "cells.tif"
    Image.fromarray(picture(3)).save(path)
    ready(browser, classes)
    browser.drop(path)
    browser.wait(SHOWN)
    np.testing.assert_array_equal(view(browser, "mask")[..., 0], decode(ask(classes, path)))
    assert "cannot show" in browser.run("document.getElementById('status').textContent")


def test_a_pasted_picture_is_taken(browser, classes, tmp_path):
    path = write(tmp_path / "cells.png", picture(3))
    ready(browser, classes)
    values = list(path.read_bytes())
    browser.run(f"""(() => {{
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array({values})], 'pasted.png', {{type: 'image/png'}}));
      document.dispatchEvent(new ClipboardEvent('paste', {{clipboardData: data, bubbles: true}}));
    }})()""")
    browser.wait(SHOWN)


def test_the_keyboard_is_enough(browser, classes, tmp_path):
    ready(browser, classes)
    browser.key("Tab", 9)
    assert browser.run("document.activeElement.id") == "choose"
    browser.drop(write(tmp_path / "cells.png", picture(3)))
    browser.wait(SHOWN)
    browser.run("document.querySelector('input[name=view]:checked').focus()")
    browser.key("ArrowRight", 39)
    settle(browser)
    assert browser.run("document.querySelector('input[name=view]:checked').value") == "mask"
    found = []
    for _ in range(6):
        browser.key("Tab", 9)
        found.append(browser.run("document.activeElement.id || document.activeElement.dataset.output"))
    assert found == ["threshold", "mask", "cutout", "overlay", "another", found[-1]]


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_s_page_fits(browser, classes, tmp_path, dark):
    ready(browser, classes, width=390, height=844, phone=True, dark=dark)
    browser.drop(write(tmp_path / "cells.png", picture(3)), x=150, y=250)
    browser.wait(SHOWN)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert not browser.run("document.getElementById('camera').hidden")
    bottom = browser.run("document.getElementById('thresholdRow').getBoundingClientRect().bottom")
    assert bottom < 844  # the sliders stay in sight with the picture
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in ground[4:-1].split(",")) < 384) is dark


def test_the_page_says_what_runs(browser, classes):
    ready(browser, classes)
    facts = browser.run("document.getElementById('list').textContent")
    for part in ("fp32", "openvino", "convolutions 100 %", "nucleus"):
        assert part in facts
    assert browser.complaints() == []
