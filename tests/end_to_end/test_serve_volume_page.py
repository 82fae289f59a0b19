"""The page for volumes in a real browser: files dropped, the job watched, planes looked at, labels fetched, deleted."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import nibabel
import numpy as np
import pytest
from chromium import Page, program
from phantom import COLORS, SHOWN, chest_package, write_chest
from test_serve_process import serving

pytestmark = pytest.mark.skipif(program() is None, reason="no Chromium is installed")

SHAPE = (64, 64, 40)
PIXELS = """(() => {
  const c = document.querySelector('[data-plane=%s] canvas'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height);
  return [c.width, c.height, Array.from(d.data)];
})()"""


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    with serving(chest_package(tmp_path_factory.mktemp("page") / "chest.segship")) as (address, _):
        yield address


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return write_chest(tmp_path_factory.mktemp("case") / "chest_0000.nii.gz", SHAPE)


def ready(page: Page, address: str, **how: object) -> None:
    page.open("about:blank")
    page.events.clear()
    page.open(address, **how)
    page.wait("document.getElementById('list').children.length > 0")


def shown(page: Page, plane: str) -> np.ndarray:
    width, height, values = page.run(PIXELS % plane)
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def slide(page: Page, id_: str, value: int) -> None:
    page.run(f"(e => {{ e.value = {value}; e.dispatchEvent(new Event('input', {{bubbles: true}})) }})({id_})")


def slice_to(page: Page, plane: str, index: int) -> None:
    slide(page, f"document.getElementById('slice-{plane}')", index)
    page.wait(f"document.querySelector('[data-plane={plane}] canvas').dataset.shown === '{index}'")


def job_of(page: Page, address: str) -> dict:
    return httpx.get(f"{address}/v1/jobs/{page.run('location.hash')[5:]}").json()


def plane_of(address: str, job: dict, plane: str, index: int) -> np.ndarray:
    import cv2

    data = httpx.get(f"{address}{job['links']['planes']}/{plane}/{index}").content
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_a_dropped_case_shows_three_planes_with_its_labels(browser, chest, case):
    ready(browser, chest)
    browser.drop(case)
    browser.wait(SHOWN)
    job = job_of(browser, chest)
    assert job["case"] == "chest"
    assert "chest: 64 × 64 × 40 voxels" in browser.run("document.getElementById('status').textContent")
    slide(browser, "document.getElementById('opacity')", 100)
    for plane in ("axial", "coronal", "sagittal"):
        for index in (11, job["planes"][plane]["start"]):
            slice_to(browser, plane, index)
            expected = plane_of(chest, job, plane, index)
            grey = np.repeat(expected[..., :1], 3, axis=2)
            for number, color in enumerate(COLORS.values(), 1):
                grey[expected[..., 1] == number] = color
            np.testing.assert_array_equal(shown(browser, plane), grey)
        assert len(np.unique(expected[..., 1])) > 1
    slide(browser, "document.getElementById('opacity')", 0)
    slice_to(browser, "axial", 12)
    expected = plane_of(chest, job, "axial", 12)
    np.testing.assert_array_equal(shown(browser, "axial"), np.repeat(expected[..., :1], 3, axis=2))
    assert browser.complaints() == []


def test_a_class_can_be_hidden_and_the_legend_says_how_much_there_is(browser, chest, case):
    ready(browser, chest)
    browser.drop(case)
    browser.wait(SHOWN)
    job = job_of(browser, chest)
    text = browser.run("document.getElementById('legend').innerText")
    for label in job["labels"]:
        assert label["name"] in text
    assert text.count("ml") == 3
    colors = browser.run("[...document.querySelectorAll('.swatch')].map(s => s.style.background)")
    assert colors == [f"rgb({r}, {g}, {b})" for r, g, b in COLORS.values()]
    slide(browser, "document.getElementById('opacity')", 100)
    browser.run("document.querySelector('#legend input').click()")
    index = job["planes"]["axial"]["start"]
    slice_to(browser, "axial", index - 1)
    expected = plane_of(chest, job, "axial", index - 1)
    lung = expected[..., 1] == 1
    assert lung.any()
    drawn = shown(browser, "axial")
    np.testing.assert_array_equal(drawn[lung], np.repeat(expected[lung][:, :1], 3, axis=1))
    assert (drawn[expected[..., 1] == 2] == COLORS["heart"]).all()


def test_downloads_are_the_server_s_files_and_delete_deletes(browser, chest, case):
    ready(browser, chest)
    browser.run("document.getElementById('probabilities').click()")
    browser.drop(case)
    browser.wait(SHOWN)
    job = job_of(browser, chest)
    for id_, link, name in (
        ("getLabels", "labels", "chest.nii.gz"),
        ("getPreview", "preview", "chest.png"),
        ("getProbabilities", "probabilities", "chest.npz"),
    ):
        expected = httpx.get(f"{chest}{job['links'][link]}").content
        target = browser.downloads / name
        target.unlink(missing_ok=True)
        browser.run(f"document.getElementById('{id_}').click()")
        deadline = time.monotonic() + 20
        while not (target.exists() and target.stat().st_size == len(expected)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert target.read_bytes() == expected
    assert nibabel.load(browser.downloads / "chest.nii.gz").shape == SHAPE
    browser.run("document.getElementById('delete').click()")
    browser.wait("document.getElementById('status').textContent === 'Deleted from the server.'")
    assert httpx.get(f"{chest}{job['links']['self']}").status_code == 404
    assert not browser.run("document.getElementById('drop').hidden")
    assert browser.complaints() == []


def test_a_click_in_one_plane_moves_the_others(browser, chest, case):
    ready(browser, chest)
    browser.drop(case)
    browser.wait(SHOWN)
    box = browser.run(
        "(b => [b.left, b.top, b.width, b.height])(document.querySelector('[data-plane=axial] canvas').getBoundingClientRect())"
    )
    x, y = box[0] + box[2] * 0.25, box[1] + box[3] * 0.75
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
    browser.wait("document.getElementById('slice-sagittal').value === '16'")
    assert browser.run("document.getElementById('slice-coronal').value") == "48"


def test_a_page_that_is_opened_again_goes_on_with_its_job(browser, chest, case):
    ready(browser, chest)
    browser.drop(case)
    browser.wait(SHOWN)
    address = browser.run("location.href")
    ready(browser, address)
    browser.wait(SHOWN)
    assert browser.run("document.getElementById('legend').children.length") == 3
    ready(browser, f"{chest}/#job={'0' * 32}")
    browser.wait("!document.getElementById('alert').hidden")
    assert browser.run("document.getElementById('alert').textContent").startswith("there is no such job")


def test_what_is_no_case_is_said_and_the_next_one_works(browser, chest, case, tmp_path):
    (tmp_path / "notes.nii.gz").write_text("no volume")
    (tmp_path / "cut_0000.nii.gz").write_bytes(case.read_bytes()[:-100])
    ready(browser, chest)
    for name, says in (
        ("notes.nii.gz", "notes_0000.nii.gz is no NIfTI file"),
        ("cut_0000.nii.gz", "cannot be unpacked"),
    ):
        browser.drop(tmp_path / name)
        browser.wait(f"document.getElementById('alert').textContent.includes({says!r})")
        assert not browser.run("document.getElementById('drop').hidden")
    values = np.full((20, 20, 20), np.nan, np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "nan_0000.nii.gz")
    browser.drop(tmp_path / "nan_0000.nii.gz")
    browser.wait("document.getElementById('alert').textContent.startsWith('nan holds 8000 NaN or infinite values')")
    assert browser.run("location.hash") == ""
    browser.drop(case)
    browser.wait(SHOWN)
    assert browser.run("document.getElementById('alert').hidden")


def test_the_bar_moves_and_cancel_ends_the_job(browser, tmp_path):
    case = write_chest(tmp_path / "large_0000.nii.gz", (160, 160, 120))
    with serving(chest_package(tmp_path / "slow.segship", step=16)) as (address, _):
        ready(browser, address)
        browser.drop(case)
        browser.wait(
            "document.getElementById('bar').value > 0 && document.getElementById('what').textContent.startsWith('Segmenting')"
        )
        assert "window " in browser.run("document.getElementById('how').textContent")
        assert browser.run("document.getElementById('controls').hidden")
        browser.run("document.getElementById('cancel').click()")
        browser.wait("!document.getElementById('drop').hidden")
        deadline = time.monotonic() + 20
        while 'segship_jobs_total{result="cancelled"} 1.0' not in httpx.get(f"{address}/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert httpx.get(f"{address}/v1/jobs").json() == {"jobs": []}
        assert browser.complaints() == []


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_s_page_fits(browser, chest, case, dark):
    ready(browser, chest, width=390, height=844, phone=True, dark=dark)
    browser.drop(case, x=150, y=250)
    browser.wait(SHOWN)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    widths = browser.run("[...document.querySelectorAll('.view')].map(v => v.getBoundingClientRect().width)")
    assert all(width > 300 for width in widths)


def test_the_keyboard_is_enough(browser, chest, case):
    ready(browser, chest)
    browser.key("Tab", 9)
    assert browser.run("document.activeElement.id") == "choose"
    browser.drop(case)
    browser.wait(SHOWN)
    browser.run("document.getElementById('slice-axial').focus()")
    start = int(browser.run("document.getElementById('slice-axial').value"))
    browser.key("ArrowRight", 39)
    browser.wait(f"document.querySelector('[data-plane=axial] canvas').dataset.shown === '{start + 1}'")


def test_two_channels_have_two_slots(browser, tmp_path):
    from serving_volumes import case_bytes

    with serving(two_channel_package(tmp_path / "two.segship")) as (address, _):
        ready(browser, address)
        assert "Drop 2 NIfTI files here, one a channel" in browser.run("document.getElementById('wanted').textContent")
        files = []
        for number, name in enumerate(("a_0001.nii.gz", "other.nii.gz")):
            files.append(tmp_path / name)
            files[-1].write_bytes(case_bytes(number))
        browser.drop(files[0])
        browser.wait("document.querySelectorAll('#slots .filled').length === 1")
        assert browser.run("document.getElementById('start').disabled")
        assert "a_0001.nii.gz" in browser.run("document.querySelectorAll('#slots button')[1].textContent")
        browser.drop(files[1])
        browser.wait("!document.getElementById('start').disabled")
        browser.run("document.getElementById('start').click()")
        browser.wait(SHOWN)
        assert browser.run("document.getElementById('channel').options.length") == 2
        first = shown(browser, "axial")
        slide(browser, "document.getElementById('channel')", 1)
        deadline = time.monotonic() + 10
        while (shown(browser, "axial") == first).all():
            assert time.monotonic() < deadline
        assert browser.complaints() == []


def two_channel_package(path: Path) -> Path:
    """The tiny package of two channels whose mean decides."""
    from onnx import helper
    from tiny_parts import onnx_bytes, variants, write_tiny
    from volume_recipes import volume_recipe

    from segship.manifest import Channel, Manifest

    data = onnx_bytes(
        [helper.make_node("Conv", ["input", "w", "b"], ["logits"])],
        {"input": ["n", 2, 4, 4, 4]},
        {"logits": ["n", 2, 4, 4, 4]},
        {"w": np.float32([0, 0, 0.05, 0.05]).reshape(2, 2, 1, 1, 1), "b": np.float32([0, -5])},
    )
    recipe = volume_recipe()
    recipe = volume_recipe(
        input=recipe.input.model_copy(update={"channels": (Channel(name="CT"), Channel(name="PET"))}),
        network=recipe.network.model_copy(update={"input_channels": 2}),
    )
    graphs = {"fp32": data}
    return write_tiny(path, Manifest(**recipe.model_dump(), variants=variants(graphs)), graphs).path
