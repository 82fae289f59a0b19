"""Options and small helpers that several verbs share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
Progress = Callable[[int, int, str], None]

PRECISION_HELP = "fp32, fp16, bf16, int8, int16 or auto (the fastest within its recorded drop; never int16)"


def with_output(function: F) -> F:
    """--json, -v, -q."""
    function = click.option("-q", "--quiet", is_flag=True, help="No progress bar, no table: warnings and errors only.")(
        function
    )
    function = click.option("-v", "--verbose", is_flag=True, help="Say more; full traceback on an internal error.")(
        function
    )
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")(function)


def with_engine(function: F) -> F:
    """--engine, --device, --threads, --streams, --cache-dir."""
    options = [
        click.option("--engine", default=None, help="openvino (default), onnxruntime, pytorch or an installed one."),
        click.option(
            "--device",
            default="cpu",
            show_default=True,
            help="cpu, auto; gpu, gpu:1, npu (openvino); cuda, cuda:1 (onnxruntime, pytorch); tensorrt, cann "
            "(onnxruntime). Refused where absent, never replaced.",
        ),
        click.option(
            "--threads", type=click.IntRange(1, 1024), default=None, help="Threads of the engine [its own choice]."
        ),
        click.option(
            "--streams",
            type=click.IntRange(1, 256),
            default=None,
            help="Inferences in flight at once [predict: 2 for many files; else 1].",
        ),
        click.option(
            "--cache-dir", type=click.Path(file_okay=False), default=None, help="Where compiled models are kept."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def with_label_maps(function: F) -> F:
    """How label maps are found and read: --img-dir … --reduce-zero-label. `folder_options` makes one thing of them."""
    options = [
        click.option("--img-dir", default=None, help="mmseg folders: of the pictures, below the root [found]."),
        click.option("--ann-dir", default=None, help="mmseg folders: of the label maps."),
        click.option(
            "--img-suffix", default=None, help="mmseg folders: end of the pictures' names [any picture type]."
        ),
        click.option("--seg-map-suffix", default=None, help="mmseg folders: end of the label maps' names [.png]."),
        click.option("--label-map", default=None, help="Label maps: numbers to replace, OLD:NEW,OLD:NEW …."),
        click.option(
            "--reduce-zero-label", is_flag=True, default=None, help="Label maps: ignore 0 and count classes from 1."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


LABEL_MAP_OPTIONS = ("img_dir", "ann_dir", "img_suffix", "seg_map_suffix", "label_map", "reduce_zero_label")


def folder_options(values: dict[str, Any]) -> Any:
    """Takes the options of `with_label_maps` out of ``values``: FolderOptions, None where none was given."""
    from segship.datasets.label_cases import FolderOptions
    from segship.datasets.label_rules import LabelRules, parse_label_map

    given = {name: values.pop(name) for name in LABEL_MAP_OPTIONS}
    if not any(value is not None for value in given.values()):
        return None
    text, reduced = given.pop("label_map"), bool(given.pop("reduce_zero_label"))
    rules = LabelRules(label_map=parse_label_map(text) if text else {}, reduce_zero_label=reduced)
    return FolderOptions(**given, rules=rules)


class IntList(click.ParamType):
    """'1,4,8' -> (1, 4, 8)"""

    name = "N,N,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(",") if part.strip())
        except ValueError:
            self.fail(f"'{value}' is not a list of whole numbers like 1,4,8", param, ctx)
        if not numbers or min(numbers) < 1:
            self.fail("give positive whole numbers like 1,4,8", param, ctx)
        return numbers


class FloatList(click.ParamType):
    """'0.5,1' -> (0.5, 1.0)"""

    name = "A,B,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in str(value).split(",") if part.strip())
        except ValueError:
            self.fail(f"'{value}' is not a list of numbers like 0.5,1,1.5", param, ctx)
        if not numbers or not all(0 < number < float("inf") for number in numbers):
            self.fail("give positive numbers like 0.5,1,1.5", param, ctx)
        return numbers


class NameList(click.ParamType):
    """'fp32,int8' -> ('fp32', 'int8')"""

    name = "A,B,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(part.strip() for part in str(value).split(",") if part.strip())


class Labels(click.ParamType):
    """'1' -> (1,), '1,2' -> (1, 2), '1+2' -> ((1, 2),): a region that joins both"""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            groups = [tuple(int(n) for n in part.split("+")) for part in str(value).split(",") if part.strip()]
        except ValueError:
            self.fail(f"'{value}' is no label; give whole numbers like 1 2, or 1+2 for a region", param, ctx)
        return tuple(group[0] if len(group) == 1 else group for group in groups)


class Size(click.ParamType):
    """'96x128' -> (96, 128): height x width"""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        parts = str(value).lower().split("x")
        if len(parts) == 1:
            parts *= 2
        try:
            height, width = (int(p) for p in parts)
        except ValueError:
            self.fail(f"'{value}' is not a size like 96x128 (height x width)", param, ctx)
        if min(height, width) < 1:
            self.fail("height and width must be positive", param, ctx)
        return height, width


@contextmanager
def progress_bar(quiet: bool, unit: str = "image") -> Iterator[Progress | None]:
    """A tqdm bar behind the library's progress callback; silent when stderr is not a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    bars: list[Any] = []

    def update(done: int, total: int, text: str) -> None:
        if not bars or bars[0].total != total:
            for bar in bars:
                bar.close()
            bars[:] = [tqdm(total=total, unit=unit, dynamic_ncols=True, leave=False)]
        bars[0].set_description_str(text[:60], refresh=False)
        bars[0].update(done - bars[0].n)

    try:
        yield update
    finally:
        for bar in bars:
            bar.close()


def print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False))


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e-3 and value else f"{value:.4f}"
    return str(value)
