"""What a request can ask for, and its answer's bytes: made by the very code that writes the command line's files."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi.responses import Response

from segship.errors import UsageError
from segship.inference import writers
from segship.inference.containers import inspect_container
from segship.inference.cutout import check, has_background
from segship.inference.options import LABEL_KINDS, STYLES, OutputOptions, parse_color
from segship.inference.prediction import Prediction
from segship.manifest import Recipe, Saliency
from segship.serve import memory
from segship.serve.fields import Field
from segship.serve.jobs import Done
from segship.serve.refused import Refused

if TYPE_CHECKING:
    from segship.serve.service import Service

PICTURES = ("mask", *LABEL_KINDS, "overlay", "cutout", "composite")
OUTPUTS = (*PICTURES, "map", "json", "probabilities")
SCORES = ("map", "probabilities")
"""made of the scores themselves; all others of what was decided by them"""
PNG, JSON, NPZ = "image/png", "application/json", "application/octet-stream"
HEADERS = ("segship-package", "segship-precision", "segship-notes", "server-timing", "content-disposition")
MAX_ERODE = 100


def _whole(name: str, about: str, high: int = 255, default: int | None = None) -> Field:
    return Field(name=name, kind="whole", low=0, high=high, default=default, about=about)


def _flag(name: str, about: str) -> Field:
    return Field(name=name, kind="flag", default=False, about=about)


_OBJECT = "matting: mask levels above it are surely object"
_GROUND = "matting: mask levels below it are surely background"
_ERODE = "matting: side of the square by which both sure areas are first shrunk"
_STYLE = Field(
    name="cutout_style",
    kind="choice",
    choices=STYLES,
    default="straight",
    about="colours as they are, or multiplied by alpha as danielgatis/rembg's default cutout has them",
)

PREDICT_FIELDS = (
    Field(
        name="output",
        kind="choice",
        choices=OUTPUTS,
        default="mask",
        about="PNG as `segship predict --output` writes them: mask (class numbers where classes exclude each other), ids (the "
        "data set's own numbers), color, cityscapes (label ids with a palette, to hand in), overlay, cutout, composite; "
        "map: one class's probability in 8 bits; json: what was found, in numbers; probabilities: float32, as .npz",
    ),
    Field(name="threshold", kind="number", low=0, high=1, about="decide strictly above this value"),
    _flag("clean_mask", "remove lone pixels and ragged edges"),
    _flag("rgb_mask", "the mask in three equal planes"),
    _flag("matting", "estimate hair-fine alpha (slow)"),
    _whole("foreground_threshold", _OBJECT, default=240),
    _whole("background_threshold", _GROUND, default=10),
    _whole("erode", _ERODE, high=MAX_ERODE, default=10),
    Field(
        name="background", kind="text", about="composite: white, #rrggbb or r,g,b[,a]; or a picture as a second part"
    ),
    _STYLE,
    _whole("label", "map: the id of the class [the first that is not 0]", high=65535),
)

REMOVE_FIELDS = (
    Field(name="model", kind="text", about="may name this server's package; there is no other"),
    _flag("a", "alpha matting"),
    _whole("af", _OBJECT, default=240),
    _whole("ab", _GROUND, default=10),
    _whole("ae", _ERODE, high=MAX_ERODE, default=10),
    _flag("om", "only the mask"),
    _flag("ppm", "post-process the mask"),
    Field(name="bgc", kind="text", about="background colour r,g,b[,a]"),
    _STYLE,
)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One request, understood."""

    output: str
    """one of OUTPUTS"""
    options: OutputOptions = field(default_factory=OutputOptions)
    label: int | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    content: bytes
    media_type: str
    file_name: str
    notes: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------- what is asked for


def wanted_by_predict(values: Mapping[str, Any], files: Mapping[str, bytes], service: Service) -> Wanted:
    """Raises Refused and UsageError for what this package cannot give, before any work is done."""
    output = values["output"]
    taken = ("threshold", "clean_mask", "rgb_mask", "matting", "foreground_threshold", "background_threshold", "erode")
    background = _background(values["background"], files, "background")
    options = OutputOptions(
        kind=output if output in PICTURES else "mask",
        background=background,
        cutout_style=values["cutout_style"],
        **{name: values[name] for name in taken},
    )
    check(service.predictor.manifest, options)
    return Wanted(output=output, options=options, label=_label(values["label"], service))


def wanted_by_remove(values: Mapping[str, Any], files: Mapping[str, bytes], service: Service) -> Wanted:
    """rembg's fields. As there, a mask alone is neither matted nor laid over a background."""
    if files.keys() - {"file"}:
        raise Refused(400, "a background picture is not taken here", "use POST /v1/predict with output=composite")
    names = {service.name.casefold(), service.predictor.manifest.network.architecture.casefold()}
    if values["model"] and values["model"].casefold() not in names:
        raise Refused(
            400, f"this server has no model '{values['model'][:40]}', it runs '{service.name}'",
            "leave the field 'model' out, or start another server with that model's package",
        )  # fmt: skip
    color = _background(values["bgc"], {}, "bgc")
    options = OutputOptions(
        kind="mask" if values["om"] else "cutout" if color is None else "composite",
        matting=values["a"] and not values["om"],
        foreground_threshold=values["af"],
        background_threshold=values["ab"],
        erode=values["ae"],
        clean_mask=values["ppm"],
        background=None if values["om"] else color,
        cutout_style=values["cutout_style"],
    )
    check(service.predictor.manifest, options)
    return Wanted(output=options.kind, options=options)


def possible_outputs(recipe: Recipe) -> list[str]:
    """Which of OUTPUTS a package's answer allows: one without a background has nothing to cut out."""
    found = []
    for name in OUTPUTS:
        with contextlib.suppress(UsageError):
            check(recipe, OutputOptions(kind=name if name in PICTURES else "mask"))  # type: ignore[arg-type]
            found.append(name)
    return found


def _background(word: str | None, files: Mapping[str, bytes], name: str) -> Any:
    """A colour as numbers or a picture's bytes, never a word that could be taken for a path."""
    if name in files:
        return files[name]
    if word is None:
        return None
    color = parse_color(word)
    if color is None:
        raise Refused(400, f"field '{name}' is '{word[:40]}', which is no colour", "give white, #rrggbb or r,g,b[,a]")
    return color


def _label(wanted: int | None, service: Service) -> int | None:
    known = {label.id: label.name for label in service.predictor.manifest.labels}
    if wanted is not None and wanted not in known:
        names = ", ".join(f"{number} {name}" for number, name in known.items())
        raise Refused(400, f"there is no label {wanted}", f"this package has: {names}")
    return wanted


# ------------------------------------------------------------------------------------------------- answers


def answer(service: Service, data: bytes, wanted: Wanted) -> Answer:
    """Decode, predict, encode; in a worker's thread. Raises Refused for a picture beyond the limits, InputError for
    one that cannot be read, UsageError where the package's answer does not allow what is wanted."""
    pixels = _check_pixels(data, "the picture", service.options.max_pixels)
    if wanted.options.estimates_alpha and pixels > service.options.max_matting_pixels:
        raise Refused(
            413, f"matting is limited to {service.options.max_matting_pixels:,} pixels, the picture has {pixels:,}",
            "send a smaller one, leave matting out, or start the server with a larger --max-matting-pixels",
        )  # fmt: skip
    if isinstance(wanted.options.background, bytes):
        pixels = max(pixels, _check_pixels(wanted.options.background, "the background", service.options.max_pixels))
    try:
        return _predict(service, data, wanted)
    finally:
        if pixels >= memory.WORTH_PIXELS:
            memory.give_back()


def _predict(service: Service, data: bytes, wanted: Wanted) -> Answer:
    found = service.predictor(service.predictor.read(data, "the picture"), keep_scores=wanted.output in SCORES)
    if wanted.output in PICTURES:
        rendered = found.render(wanted.options)
        return Answer(content=rendered.encode(), media_type=PNG, file_name=f"{wanted.output}.png", notes=rendered.notes)
    found = found.decided(wanted.options)
    if wanted.output == "json":
        content, media_type, suffix = json.dumps(summary(found)).encode(), JSON, "json"
    elif wanted.output == "map":
        content, media_type, suffix = _map(found, wanted.label), PNG, "png"
    else:
        content, media_type, suffix = _npz(found.probabilities), NPZ, "npz"
    return Answer(content=content, media_type=media_type, file_name=f"{wanted.output}.{suffix}", notes=found.notes)


def _check_pixels(data: bytes, name: str, limit: int) -> int:
    container = inspect_container(data, name)
    count = container.height * container.width
    if count > limit:
        raise Refused(
            413, f"{name} has {container.height:,} x {container.width:,} pixels, the limit is {limit:,}",
            "send a smaller one, or start the server with a larger --max-pixels",
        )  # fmt: skip
    return count


def _map(found: Prediction, label: int | None) -> bytes:
    ids = [one.id for one in found.classes]
    first = next((k for k, number in enumerate(ids) if number != 0), 0)
    index = ids.index(label) if label in ids else first
    return writers.encode_png(writers.to_levels(found.probabilities[index]))


def _npz(probabilities: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, probabilities=probabilities)
    return buffer.getvalue()


def summary(found: Prediction) -> dict[str, Any]:
    """Size, notes, and for each class how much of the picture it covers and the box around it (left, top, right,
    bottom; the last two are one beyond). A background is left out; a saliency map has classes only once a threshold
    decides."""
    height, width = found.size_hw
    about: dict[str, Any] = {"height": height, "width": width, "notes": list(found.notes)}
    decision = found.recipe.decode.decision
    if isinstance(decision, Saliency):
        about["mean"] = float(found.probabilities.mean())
        if decision.threshold is None:
            return {**about, "threshold": None, "classes": None}
    threshold = getattr(decision, "threshold", None)
    masks = zip(found.masks, found.classes, strict=True)
    about["threshold"] = threshold
    ground = has_background(found.recipe)
    about["classes"] = [_class(mask, label.id, label.name) for mask, label in masks if label.id != 0 or not ground]
    return about


def _class(mask: np.ndarray, number: int, name: str) -> dict[str, Any]:
    pixels = int(mask.sum())
    box = None
    if pixels:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    return {"id": number, "name": name, "pixels": pixels, "fraction": pixels / mask.size, "box": box}


def respond(service: Service, done: Done[Answer]) -> Response:
    """The answer with what ran and how long it took in its headers."""
    told = done.value
    headers = {
        "content-disposition": f'inline; filename="{told.file_name}"',
        "segship-package": service.sha256,
        "segship-precision": f"{service.precision} {service.engine}",
        "server-timing": f"queue;dur={done.waited * 1000:.1f}, work;dur={done.worked * 1000:.1f}",
    }
    if told.notes:
        headers["segship-notes"] = "; ".join(told.notes).encode("ascii", "replace").decode()
    return Response(told.content, media_type=told.media_type, headers=headers)
