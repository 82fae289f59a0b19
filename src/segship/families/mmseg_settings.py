"""How a segmentor is used, out of a configuration of either version: pictures, normalisation, test mode, classes.

0.x: ``img_norm_cfg`` inside ``Normalize`` and sizes in ``MultiScaleFlipAug`` of ``data.test.pipeline``. 1.x: a
``data_preprocessor`` and ``Resize`` in the pipeline of ``test_dataloader``. (open-mmlab/mmsegmentation 0.30, 1.2.2)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segship.errors import SourceError, UsageError
from segship.families import OptionValue
from segship.families.mmseg_config import Config
from segship.families.mmseg_dataset import classes_of, dataset_of, known_classes, reduces_zero, unwrapped
from segship.families.mmseg_known import Classes
from segship.families.mmseg_native import integers, plain_name
from segship.manifest import ImageResize, Resize, ResizeByFactor, ResizeKeepRatio, Tiling

RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""of test-time augmentation, in the base configurations of both versions"""
METHODS: dict[str, ImageResize] = {"bilinear": "opencv:linear", "nearest": "opencv:nearest", "area": "opencv:area"}
NOTHING = {
    "LoadAnnotations", "PackSegInputs", "ImageToTensor", "DefaultFormatBundle", "Collect", "RandomFlip", "ToTensor",
}  # fmt: skip
"""steps that change no pixel of a picture under test"""
Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a manifest needs of a configuration and the network does not hold."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    """in the order of the network's channels; ones and zeros where nothing is normalised"""
    grey: bool
    """pictures are read in one channel"""
    rgb: bool
    """the network takes R, G, B; else B, G, R as OpenCV reads"""
    resize: Resize | ResizeKeepRatio | ResizeByFactor | None
    pad_value: float
    pad_multiple: int
    pad_size: tuple[int, int] | None
    """(height, width) up to which smaller pictures are padded"""
    crop: tuple[int, int] | None
    """(height, width) of the window in slide mode; None: whole"""
    stride: tuple[int, int] | None
    ratios: tuple[float, ...]
    classes: Classes | None
    reduce_zero_label: bool
    threshold: float
    """of a network of one channel"""
    dataset_names: tuple[str, ...] = ()
    """of the data set's type: what the numbers in its label maps stand for, whichever of them the network has"""
    mirror: bool = True
    """test-time augmentation also mirrors each view left to right"""
    notes: tuple[str, ...] = ()

    @property
    def tiling(self) -> Tiling | None:
        """The window of slide mode; logits are averaged with uniform weights."""
        if self.crop is None or self.stride is None:
            return None
        return Tiling(
            window=self.crop, step=self.stride, positions="flush-last", weighting="uniform", pad_mode="none",
            average="logits",
        )  # fmt: skip


def read_settings(config: Config, scale: OptionValue = None) -> Settings:
    """With a ``scale`` ('WxH' to fit pictures into, or 'none') the pipeline's own Resize is left aside and need not be known.

    Raises SourceError for what is missing, malformed, or a step that is not known here, UsageError for another scale.
    """
    pipeline = test_pipeline(config)
    resize, normalize, pad = _walk(pipeline if scale is None else _without_resize(pipeline), config)
    if scale is not None:
        resize = _to_scale(str(scale))
    if resize is not None:
        _check_rounding(pipeline, config)
    if pad is not None and normalize is None:
        raise SourceError(
            f"{config.origin}: its test pipeline pads pictures before they are normalised, which segship does not; pad with "
            "data_preprocessor's test_cfg (size_divisor) instead"
        )
    if normalize is None:
        mean, std, rgb = _preprocessor(config)
    else:
        mean, std = _constants(normalize, config)
        rgb = bool(normalize.get("to_rgb", True))
    value, multiple, size = _padding(config, pad)
    crop, stride = _test_mode(config)
    head = last_head(config)
    dataset = dataset_of(config)
    mirror, flips = _mirror(config)
    grey = any(
        plain_name(step["type"]) == "LoadImageFromFile" and step.get("color_type") == "grayscale" for step in pipeline
    )
    return Settings(
        mean=mean, std=std, grey=grey, rgb=rgb, resize=resize, pad_value=value, pad_multiple=multiple, pad_size=size, crop=crop,
        stride=stride, ratios=_ratios(config), classes=classes_of(dataset, config),
        reduce_zero_label=reduces_zero(dataset, pipeline), dataset_names=known_classes(dataset).names,
        threshold=float(0.3 if head.get("threshold") is None else head["threshold"]), mirror=mirror,
        notes=(*config.notes, *flips),
    )  # fmt: skip


def _to_scale(words: str) -> ResizeKeepRatio | None:
    if words.lower() == "none":
        return None
    parts = words.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and 0 < int(part) <= 65536 for part in parts):
        raise UsageError(f"--scale takes WIDTHxHEIGHT such as 2048x1024, or none, not '{words}'")
    sides = sorted(int(part) for part in parts)
    return ResizeKeepRatio(long_side=sides[1], short_side=sides[0], method="opencv:linear")


def last_head(config: Config) -> Values:
    heads = config.get("model.decode_head")
    head = heads[-1] if isinstance(heads, list | tuple) and heads else heads
    return head if isinstance(head, Mapping) else {}


# ---------------------------------------------------------------------------------------------- the pipeline


def test_pipeline(config: Config) -> list[Values]:
    """The steps that a picture under test goes through. SourceError where there are none."""
    for path in ("test_dataloader.dataset", "data.test", "val_dataloader.dataset", "data.val"):
        dataset = unwrapped(config.get(path))
        if isinstance(dataset.get("pipeline"), list | tuple):
            return _steps(dataset["pipeline"], config)
    found = config.get("test_pipeline")
    if isinstance(found, list | tuple):
        return _steps(found, config)
    raise SourceError(
        f"{config.origin} has no test pipeline (test_dataloader, data.test or test_pipeline); give the whole one"
    )


def _steps(pipeline: Sequence[Any], config: Config) -> list[Values]:
    if not all(isinstance(step, Mapping) and isinstance(step.get("type"), str) for step in pipeline):
        raise SourceError(f"{config.origin}: its test pipeline is no list of steps with a type; correct it")
    return list(pipeline)


def _walk(pipeline: Sequence[Values], config: Config) -> tuple[Any, Values | None, Values | None]:
    """(resize step, Normalize, Pad) of a test pipeline. SourceError for a step that is not known here."""
    resize, normalize, pad = None, None, None
    for step in pipeline:
        kind = plain_name(step["type"])
        if kind == "LoadImageFromFile":
            _check_loading(step, config)
        elif kind in ("MultiScaleFlipAug", "TestTimeAug"):
            inside = _steps(step.get("transforms") or [], config)
            scale = _old_scale(step, config)
            _, normalize, pad = _walk([one for one in inside if plain_name(one["type"]) != "Resize"], config)
            resizes = [one for one in inside if plain_name(one["type"]) == "Resize"]
            if resizes:
                resize = _resize({"scale": scale, **resizes[0]} if scale else resizes[0], config)
        elif kind == "Resize":
            resize = _resize(step, config)
        elif kind == "Normalize":
            normalize = step
        elif kind == "Pad":
            pad = step if normalize is not None or _is_new(config) else None
            if pad is None:
                raise SourceError(
                    f"{config.origin}: its test pipeline pads before Normalize, which segship does not; turn them round"
                )
        elif kind not in NOTHING or (kind == "RandomFlip" and float(step.get("prob") or 0) > 0):
            raise SourceError(
                f"{config.origin}: its test pipeline has the step {kind}, which segship does not know; export with a pipeline of "
                "LoadImageFromFile, Resize, Normalize and Pad"
            )
    return resize, normalize, pad


def _without_resize(pipeline: Sequence[Values]) -> list[Values]:
    kept = [step for step in pipeline if plain_name(step["type"]) != "Resize"]
    return [
        {**step, "transforms": _without_resize(step["transforms"])}
        if isinstance(step.get("transforms"), list)
        else step
        for step in kept
    ]


def _check_rounding(pipeline: Sequence[Values], config: Config) -> None:
    if any(plain_name(one["type"]) == "LoadImageFromFile" and one.get("to_float32") for one in pipeline):
        raise SourceError(
            f"{config.origin}: LoadImageFromFile with to_float32 resizes pictures without rounding them, which segship does not; "
            "leave it out (pixels change by half a level at most) or resize by nothing (--scale none)"
        )


def _check_loading(step: Values, config: Config) -> None:
    kind, backend = step.get("color_type", "color"), step.get("imdecode_backend", "cv2")
    if kind not in ("color", "grayscale") or backend not in ("cv2", "turbojpeg", None):
        raise SourceError(
            f"{config.origin}: LoadImageFromFile reads with {backend} as {kind}; here pictures are read by OpenCV, in colour or "
            "grey, so the answers would differ"
        )


def _old_scale(step: Values, config: Config) -> Any:
    """0.x: the size that MultiScaleFlipAug gives to the Resize inside it."""
    scale: Any = step.get("img_scale")
    ratios = step.get("img_ratios")
    listed = isinstance(scale, list | tuple) and scale and isinstance(scale[0], list | tuple)
    if listed and len(scale) > 1:
        raise SourceError(
            f"{config.origin}: its test pipeline has several scales; give one, and export with --tta for the others"
        )
    scale = scale[0] if listed else scale
    factor = ratios if isinstance(ratios, int | float) else 1.0
    if scale is None:
        return None if factor == 1.0 else factor
    width, height = integers(scale, 2, "img_scale", config)
    return int(width * factor), int(height * factor)


def _resize(step: Values, config: Config) -> Resize | ResizeKeepRatio | ResizeByFactor | None:
    method = METHODS.get(step.get("interpolation", "bilinear"))
    if method is None or step.get("backend", "cv2") != "cv2":
        raise SourceError(
            f"{config.origin}: its Resize uses {step.get('interpolation')} of {step.get('backend', 'cv2')}, not known here"
        )
    scale = next((step[name] for name in ("scale", "img_scale") if step.get(name) is not None), None)
    factor = step.get("scale_factor")
    if isinstance(scale, int) and not isinstance(scale, bool) and _is_new(config):
        scale = (scale, scale)  # 1.x: the side of a square; a number in 0.x is a factor
    if isinstance(scale, int | float) and not isinstance(scale, bool):
        scale, factor = None, scale
    if scale is None and factor is None:
        return None
    if scale is None:
        if isinstance(factor, list | tuple) and len(set(factor)) == 1:
            factor = factor[0]
        if isinstance(factor, list | tuple):
            raise SourceError(f"{config.origin}: a scale_factor for each axis is not known here; give --scale")
        assert factor is not None
        keeps = bool(step.get("keep_ratio", False))
        return None if float(factor) == 1.0 else ResizeByFactor(factor=float(factor), keep_ratio=keeps, method=method)
    if isinstance(scale, list | tuple) and scale and isinstance(scale[0], list | tuple):
        scale = scale[0] if len(scale) == 1 else scale
    width, height = integers(scale, 2, "Resize.scale", config)
    # Upstream's default differs: 0.x keeps the ratio, 1.x does not.
    keeps = step.get("keep_ratio", "img_scale" in step or not _is_new(config))
    if keeps:
        return ResizeKeepRatio(long_side=max(width, height), short_side=min(width, height), method=method)
    return Resize(height=height, width=width, method=method)


def _is_new(config: Config) -> bool:
    """1.x, by the words that only it has."""
    return any(name in config.values for name in ("test_dataloader", "val_dataloader", "data_preprocessor")) or bool(
        config.get("model.data_preprocessor")
    )


def _preprocessor(config: Config) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    values = config.get("model.data_preprocessor") or config.get("data_preprocessor")
    if not isinstance(values, Mapping):
        raise SourceError(
            f"{config.origin} names no normalisation (data_preprocessor, or Normalize in the test pipeline); give the whole one"
        )
    swapped = bool(values.get("bgr_to_rgb")) or bool(values.get("rgb_to_bgr"))
    if values.get("mean") is None:
        return (), (), swapped
    mean, std = _constants(values, config)
    return mean, std, swapped


def _mirror(config: Config) -> tuple[bool, tuple[str, ...]]:
    """Whether test-time augmentation mirrors left to right, and a note on what else it turns over, which is left out."""
    pipeline = config.get("tta_pipeline") or []
    steps = [one for one in pipeline if isinstance(one, Mapping)] if isinstance(pipeline, list | tuple) else []
    groups = [group for step in steps for group in step.get("transforms") or [] if isinstance(group, list | tuple)]
    if not groups:
        return True, ()
    flips = [
        one for group in groups for one in group
        if isinstance(one, Mapping) and plain_name(one.get("type")) == "RandomFlip" and one.get("prob")
    ]  # fmt: skip
    ways = [one.get("direction", "horizontal") for one in flips]
    left_out = [f"tta_pipeline: views turned over {way} are left out" for way in ways if way != "horizontal"]
    return "horizontal" in ways, tuple(left_out)


def _constants(values: Values, config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    found = []
    for name in ("mean", "std"):
        listed = values.get(name)
        numbers = isinstance(listed, list | tuple) and all(isinstance(one, int | float) for one in listed)
        if not numbers or not listed or (name == "std" and min(listed) <= 0):
            raise SourceError(f"{config.origin}: {name} is {listed!r}, which is no normalisation; correct it")
        found.append(tuple(float(one) for one in listed))
    if len(found[0]) != len(found[1]):
        raise SourceError(f"{config.origin}: mean and std are of different length; correct it")
    return found[0], found[1]


def _padding(config: Config, pad: Values | None) -> tuple[float, int, tuple[int, int] | None]:
    """(value, multiple, size) of the padding behind the normalisation."""
    values = config.get("model.data_preprocessor") or config.get("data_preprocessor") or {}
    about = pad or (values.get("test_cfg") if isinstance(values, Mapping) else None) or {}
    value = (pad or values).get("pad_val", 0) if isinstance(values, Mapping) else 0
    value = value.get("img", 0) if isinstance(value, Mapping) else value
    if isinstance(value, list | tuple) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int | float | None):
        raise SourceError(f"{config.origin}: pictures are padded with {value!r}, which is no number; correct pad_val")
    divisor, size = about.get("size_divisor"), about.get("size")
    multiple = integers((divisor,), 1, "size_divisor", config)[0] if divisor else 1
    sides = integers(size, 2, "size", config) if size else None
    return float(value or 0), multiple, None if sides is None else (sides[0], sides[1])


# ------------------------------------------------------------------------------------ test mode, data set


def _test_mode(config: Config) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    values = config.get("model.test_cfg") or config.get("test_cfg") or {}
    mode = values.get("mode", "whole") if isinstance(values, Mapping) else "whole"
    if mode == "whole":
        return None, None
    if mode != "slide":
        raise SourceError(f"{config.origin}: test_cfg.mode is {mode!r}; known are whole and slide")
    pair = []
    for name in ("crop_size", "stride"):
        given = values.get(name)
        listed = (
            (given, given) if isinstance(given, int) else given
        )  # upstream's UNet base files have whole numbers here
        sides = integers(listed, 2, f"test_cfg.{name}", config)
        pair.append((sides[0], sides[1]))
    if pair[1][0] > pair[0][0] or pair[1][1] > pair[0][1]:
        raise SourceError(
            f"{config.origin}: test_cfg.stride {pair[1]} is larger than crop_size {pair[0]}, which leaves gaps; correct it"
        )
    return pair[0], pair[1]


def _ratios(config: Config) -> tuple[float, ...]:
    """Of test-time augmentation: those of tta_pipeline or img_ratios, else the base configurations'."""
    pipeline = config.get("tta_pipeline") or []
    for step in pipeline if isinstance(pipeline, list | tuple) else []:
        for group in step.get("transforms") or [] if isinstance(step, Mapping) else []:
            kinds = [one for one in group if isinstance(one, Mapping)] if isinstance(group, list | tuple) else []
            found = _positive([one.get("scale_factor") for one in kinds if plain_name(one.get("type")) == "Resize"])
            if found:
                return found
    return _positive(config.get("img_ratios")) or RATIOS


def _positive(values: Any) -> tuple[float, ...]:
    """Numbers above 0; none where something else is among them."""
    listed = values if isinstance(values, list | tuple) else ()
    if all(isinstance(one, int | float) and one > 0 for one in listed):
        return tuple(float(one) for one in listed)
    return ()
