"""The report: one file, nothing loaded, every number from the run, hostile names harmless."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_package import cell_folder, tiny_package

from segship.errors import InputError, UsageError
from segship.measure import story
from segship.measure.benchmark import benchmark
from segship.measure.evaluate import evaluate
from segship.measure.figures import Point, drop_plot, pareto, score_histogram, speed_plot
from segship.measure.report import gather, report
from segship.measure.rundir import run_summary, write_run_summary

PARITY = [
    {"stage": "read", "max_abs": 0.0, "mean_abs": 0.0, "label_agreement": None, "tolerance": 0.0, "shared_code": True},
    {"stage": "network", "max_abs": 1.5e-5, "mean_abs": 2e-7, "label_agreement": None, "tolerance": 2e-4},
    {"stage": "decoded", "max_abs": 0.0, "mean_abs": 0.0, "label_agreement": 0.999996},
]
VOID = {"meta", "img", "br", "path", "use", "rect", "hr", "link", "input"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run folder of the tiny network, made once."""
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSHIP_CACHE_DIR", str(root / "cache"))
        package = tiny_package(root / "net.segship")
        cells = cell_folder(root / "cells", 8)
        evaluation = evaluate(package, cells, precision=("fp32", "int8"), output=root / "evaluation")
        timed = benchmark(evaluation.package, cells / "images", batch=(1, 8), warmup=0, iterations=1, repeat=1)
    write_run_summary(root, evaluation.package, evaluation=evaluation, benchmark=timed, parity=PARITY, notes=["a note"])
    report(root)
    return root


class Page(HTMLParser):
    """Collects what a browser would act upon, and checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.attributes if name == tag]


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


# --- the page -----------------------------------------------------------------------------------------------


def test_the_page_stands_alone(run: Path, page: Page) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    assert not page.all("script")
    assert not page.all("link")
    for _, attributes in page.attributes:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            target = attributes.get(name) or "#"
            assert target.startswith(("data:", "#")), target
        assert not [name for name in attributes if name.startswith("on")], "no event handlers"
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, "names of formats only"
    assert len(text) < 3_000_000


def test_the_page_reads_on_a_phone_in_the_dark_and_aloud(run: Path, page: Page) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "prefers-color-scheme: dark" in text
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("img")
    assert all(image["alt"] and image["width"] and image["height"] for image in page.all("img"))
    plots = [svg for svg in page.all("svg") if "plot" in (svg.get("class") or "")]
    assert plots
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in plots)
    assert all(not re.search(r"#0[1-5]0[2-6]0[3-7]", svg) for svg in [text]), "no placeholder colour is left"
    ids = [attributes["id"] for _, attributes in page.attributes if "id" in attributes]
    assert len(ids) == len(set(ids))
    headings = [name for name, _ in page.attributes if name in ("h1", "h2", "h3")]
    assert headings.count("h1") == 1
    assert headings[0] == "h1"


def test_the_page_says_the_runs_numbers(run: Path, page: Page) -> None:
    summary = json.loads((run / "summary.json").read_text())
    fp32, int8 = summary["variants"]
    assert f"At fp32 it scores iou {fp32['value']:.4f} on cells (8 cases)." in page.text.replace(" .", ".")
    assert f"{int8['value']:.4f}" in page.text
    assert story.signed(int8["drop"]) in page.text
    assert "0.99999" in page.text, "0.999996 is not rounded up to 1"
    assert "1.5 × 10⁻⁵" in page.text
    assert "our code on both sides" in page.text
    assert "f32 100%" in page.text
    assert "int8 was asked for, but 100% of convolution time ran as f32" in page.text
    assert "8 cases are few" in page.text
    assert "a note" in page.text
    assert summary["dataset"]["dataset_sha256"] in page.text
    assert summary["package"]["sha256"] in page.text
    assert summary["environment"]["processor"] in page.text
    for heading in (
        "Accuracy and speed",
        "What executed",
        "Predictions",
        "Worst cases",
        "Parity with the source network",
    ):
        assert heading in page.text


def test_summary_joins_accuracy_and_speed(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["metric"] == {"name": "iou", "higher_is_better": True}
    assert [row["stage"] for row in summary["parity"]] == ["read", "network", "decoded"]
    for row in summary["variants"]:
        assert {"precision", "engine", "executed", "value", "drop"} <= set(row)
        assert set(row["latency_ms"]) == set(row["images_per_second"]) == {"1", "8"}
    assert summary["variants"][0]["drop"] == 0.0
    assert summary["environment"]["cores"] >= 1


def test_a_summary_of_nothing_measured_has_no_numbers(tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "net.segship")
    summary = run_summary(package)
    assert summary["variants"] == []
    write_run_summary(tmp_path, package)
    text = Page(report(tmp_path).read_text(encoding="utf-8")).text
    assert "Its accuracy was not measured in this run." in text
    assert "Its speed was not measured in this run." in text
    assert "agreement with its source was not measured" in text


def test_an_evaluation_alone_has_a_page(run: Path, tmp_path: Path) -> None:
    page = Page(report(run / "evaluation", tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Its speed was not measured in this run." in page.text
    assert "Worst cases" in page.text


def test_hostile_names_stay_text(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "evaluation").mkdir(parents=True)
    bad = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    summary = json.loads((run / "summary.json").read_text())
    summary["notes"] = [bad]
    summary["dataset"]["dataset"] = bad
    summary["metric"]["name"] = bad
    summary["variants"][1]["drop_detail"]["worst_case"] = bad
    (copy / "summary.json").write_text(json.dumps(summary))
    page = Page(report(copy).read_text(encoding="utf-8"))
    assert not page.all("script")
    assert not page.all("img")
    assert bad in page.text


def test_pictures_are_read_from_the_run_only(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "evaluation" / "pictures").mkdir(parents=True)
    (copy / "summary.json").write_text((run / "summary.json").read_text())
    entry = {"case": "a", "size_hw": [1, 1], "score": 0.5, "panels": {"input": "../../../../etc/hostname"}}
    (copy / "evaluation" / "pictures.json").write_text(json.dumps({"precision": "fp32", "examples": [entry]}))
    with pytest.raises(InputError, match="hostname is missing"):
        report(copy)


def test_what_cannot_be_reported(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run folder"):
        report(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"has no summary\.json"):
        report(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary\.json cannot be read"):
        report(tmp_path)
    (tmp_path / "summary.json").write_text((run / "summary.json").read_text())
    (tmp_path / "net.segship").write_text("not a package")
    with pytest.raises(InputError, match=r"net\.segship"):
        report(tmp_path)


def test_importing_the_measures_brings_no_heavy_library() -> None:
    code = (
        "import sys; import segship.measure.report, segship.measure.evaluate, segship.measure.benchmark; "
        "print([m for m in ('torch', 'matplotlib', 'jinja2', 'onnx', 'pandas', 'openvino') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- plots ----------------------------------------------------------------------------------------------------


POINTS = st.lists(
    st.builds(lambda s, v: Point(name=f"{s}", speed=s, value=v), st.floats(0.1, 1e4), st.floats(0, 1)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=50, deadline=None)
@given(POINTS, st.booleans())
def test_pareto_front_is_what_no_other_beats(points: list[Point], higher: bool) -> None:
    front = pareto(points, higher)
    sign = 1 if higher else -1

    def beaten(p: Point) -> bool:
        return any(
            o.speed >= p.speed and sign * o.value >= sign * p.value and (o.speed, o.value) != (p.speed, p.value)
            for o in points
        )

    assert {(p.speed, p.value) for p in front} == {(p.speed, p.value) for p in points if not beaten(p)}
    assert [p.speed for p in front] == sorted(p.speed for p in front)


def test_plots_fit_wide_and_narrow_pages() -> None:
    points = [
        Point(name="fp32", speed=20, value=0.83),
        Point(name="int8", speed=90, value=0.829, low=0.827, high=0.831),
    ]
    speed = speed_plot(points, metric="iou", speed_label="images per second")
    assert set(speed) == {"wide", "narrow"}
    assert "fp32: iou 0.8300 at 20.0 images per second" in speed["wide"]
    for svg in (*speed.values(), *score_histogram([0.1, 0.9, 0.8], metric="iou").values()):
        assert svg.startswith("<svg")
        assert "var(--accent)" in svg
        assert "<style" not in svg
        assert "font-family" not in svg
    assert "mean +0.0050" in drop_plot([0.02, -0.01], metric="iou", precision="int8")["half"]
    assert speed_plot(points, metric="iou", speed_label="images per second") == speed, "equal runs give equal pages"


@pytest.mark.parametrize("slow", [0.5, 5.8, 20.0, 48.0])
@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_names_in_the_plot_hide_no_point(slow: float, size: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from segship.measure import figures

    points = [
        Point(name="fp32", speed=slow + 1.6, value=0.84502),
        Point(name="fp16", speed=slow, value=0.84493),
        Point(name="int8", speed=51.4, value=0.84484),
    ]
    figure = Figure(figsize=figures._SIZES[size], layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    axes.plot([p.speed for p in points], [p.value for p in points], "o", ms=7)
    axes.set_xlim(0, 60)
    axes.set_ylim(0.8437, 0.8459)
    figures._label_points(axes, points)
    canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    dots = axes.transData.transform([(p.speed, p.value) for p in points])
    assert not any(box.contains(x, y) for box in boxes for x, y in dots)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box.x0 >= axes.bbox.x0 for box in boxes)


# --- words ----------------------------------------------------------------------------------------------------


def row(
    precision: str, speed: float | None = None, drop: float | None = None, engine: str = "openvino"
) -> dict[str, Any]:
    return {
        "precision": precision,
        "engine": engine,
        "value": None if drop is None else 0.8 - drop,
        "drop": drop,
        "files_per_second": {} if speed is None else {"8": speed},
    }


def test_the_variant_shown_is_the_fastest_within_budget() -> None:
    fp32, int8 = row("fp32", 20, 0.0), row("int8", 90, 0.001)
    assert story.shown_variant([fp32, int8]) is int8
    assert story.shown_variant([fp32, row("int8", 90, 0.05)]) is fp32, "too lossy to be shown off"
    assert story.shown_variant([fp32, row("int8", 90)]) is fp32, "never measured"
    assert story.shown_variant([fp32, row("int8", 99, 0.0, "onnxruntime")]) is fp32
    assert story.shown_variant([]) is None


@pytest.mark.parametrize(
    ("precision", "share", "expected"),
    [
        ("int8", {"i8": 0.97, "f32": 0.03}, None),
        ("fp32", {"f32": 1.0}, None),
        ("fp16", {"f32": 1.0}, "fp16 was asked for and ran as f32"),
        ("int16", {"f32": 1.0}, "16-bit rounding around f32"),
        ("fp32", {"bf16": 0.9, "f32": 0.1}, "90% of convolution time ran as bf16"),
    ],
)
def test_other_arithmetic_than_asked_for_is_said(precision: str, share: dict[str, float], expected: str | None) -> None:
    found = story.executed_instead({"precision": precision, "executed": {"convolution_share": share}})
    assert found is None if expected is None else expected in (found or "")


@pytest.mark.parametrize(
    ("rounding", "said"),
    [
        ("weights", "f32 100%, weights alone rounded to int16"),
        ("activations and weights", "f32 100%, activations and weights rounded to int16"),
    ],
)
def test_the_column_of_what_ran_names_the_roundings_of_int16(
    run: Path, tmp_path: Path, rounding: str, said: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    summary = json.loads((folder / "summary.json").read_text())
    row = summary["variants"][1]
    row["precision"] = "int16"
    row["executed"] |= {"convolution_share": {"f32": 1.0}, "rounding": rounding}
    (folder / "summary.json").write_text(json.dumps(summary))
    page = Page(report(folder).read_text(encoding="utf-8"))
    assert page.text.count(said) == 2, "in the table and in its bar"
    assert [bar["aria-label"] for bar in page.all("dd") if "rounded" in (bar.get("aria-label") or "")] == [said]
    assert page.text.count("rounded to int16") == 2, "fp32 has no such words"


def test_what_ran_on_another_device_stands_beside_what_ran() -> None:
    record = {
        "engine": "onnxruntime",
        "version": "1",
        "device": "CUDA",
        "processor": "a GPU",
        "convolution_share": {"i8": 0.97, "f32": 0.03},
        "evidence": "profile",
        "elsewhere": "2 of 41 convolutions on CPUExecutionProvider",
    }
    assert story.ran_as(record) == "i8 97% · f32 3%; 2 of 41 convolutions on CPUExecutionProvider"


def test_numbers_are_never_flattered() -> None:
    assert story.agreement_text(0.9999999) == "0.99999"
    assert story.agreement_text(1.0) == "1"
    assert story.share_text(0.001) == "<1%"
    assert story.small_text(0.0) == "0"
    assert story.small_text(0.25) == "0.25"
    assert [story.rate_text(v) for v in (0.123, 9.96, 12.34, 99.6, 1234.5)] == [
        "0.12",
        "10.0",
        "12.3",
        "100",
        "1\u202f234",
    ]
    assert story.signed(-0.001) == "\u22120.0010"


def test_gather_takes_the_first_thread_count(run: Path) -> None:
    data = gather(run)
    assert data["batches"] == [1, 8]
    assert [v["precision"] for v in data["variants"]] == ["fp32", "int8"]


def test_a_resumed_run_gives_the_same_summary(run: Path, tmp_path: Path) -> None:
    """An interrupted run finds its evaluation and benchmark as files, not as results."""
    from segship.package import open_package

    evaluation = json.loads((run / "evaluation" / "summary.json").read_text())
    timed = json.loads((run / "benchmark.json").read_text())
    package = open_package(run / "net.segship")
    again = write_run_summary(
        tmp_path, package, evaluation=evaluation, benchmark=timed, parity=PARITY, notes=["a note"]
    )
    assert again == json.loads((run / "summary.json").read_text())
    assert json.loads((tmp_path / "benchmark.json").read_text()) == timed
