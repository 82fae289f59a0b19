"""How a U²-Net is used, as a manifest says it. The weights do not: the same file is run in four ways.

    upstream        u2net_test.py with a scikit-image of today: anti-aliased resize
    upstream-0.14   the same with the scikit-image that upstream pins: no anti-aliasing
    rembg           danielgatis/rembg, sessions/u2net.py: Lanczos before and after, EXIF rotation applied
    portrait        u2net_portrait_test.py: 512×512, the map turned round
    custom          upstream's chain with parts of it replaced

Sources: xuebinqin/U-2-Net (u2net_test.py, data_loader.py) and danielgatis/rembg (sessions/base.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from segship.errors import UsageError
from segship.families import Alternative, OptionValue, Source
from segship.families.common import COLORS, IMAGENET_MEAN, IMAGENET_STD, channel_constants, class_labels
from segship.families.u2net_options import RECIPES
from segship.manifest import (
    Argmax,
    Channel,
    Channels,
    Decode,
    DivideByMaximum,
    ImageInput,
    Label,
    Metric,
    Network,
    Normalize,
    Output,
    Recipe,
    Resize,
    Saliency,
    Step,
)

OPEN = ("upstream", "upstream-0.14", "rembg")
"""those that the same weights are used with"""
BLACK = 1e-6
"""an all-black picture is divided by this instead of by 0, which gave upstream NaN (rembg's rule)"""
THRESHOLD = 0.5
"""where a decision is asked of a map (labels, overlays); upstream's author names 0.5"""
CUSTOM_ONLY = ("resize", "mean", "std", "polarity", "restore")
INPUT = "input"
SMALLEST_OPENVINO = 17
"""shortest side that OpenVINO's processor plugin runs: 17 halves, rounded up, to 2 before the last pooling"""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One way of use. Sizes are (height, width), constants per channel in 0..1."""

    recipe: str
    size: tuple[int, int]
    resize: str
    restore: str
    inverted: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rotate: bool
    alpha_in_maximum: bool
    min_max: bool

    @property
    def reader(self) -> str:
        return "skimage" if self.resize.startswith("skimage:") else "pillow:rgb"


def default_size(recipe: str, classes: int) -> tuple[int, int]:
    """What the released weights were trained at; 768 is rembg's clothes model, the only one of several classes."""
    if recipe == "portrait":
        return 512, 512
    return (768, 768) if classes > 1 and recipe == "rembg" else (320, 320)


def build_chain(recipe: str, options: Mapping[str, OptionValue], classes: int) -> Chain:
    """The chain of a recipe with the options that change it. UsageError for options that do not go together."""
    given = {name for name, value in options.items() if value is not None}
    for name in CUSTOM_ONLY:
        if name in given and recipe != "custom":
            raise UsageError(f"--{name} belongs to --recipe custom; --recipe {recipe} says it already")
    resize = "pillow:lanczos" if recipe == "rembg" else "skimage:linear-antialias"
    resize = "skimage:linear" if recipe == "upstream-0.14" else str(options.get("resize") or resize)
    restore = str(options.get("restore") or ("pillow:lanczos" if recipe == "rembg" else "pillow:bilinear"))
    normalization = str(options.get("normalization") or "rgb")
    if "normalization" in given and given & {"mean", "std"}:
        raise UsageError("--normalization names constants, and so do --mean and --std; give one or the other")
    # The portrait demo feeds RGB with upstream's constants in BGR order.
    step = -1 if normalization == "portrait-demo" else 1
    chain = Chain(
        recipe=recipe,
        size=_size(options.get("input_size"), default_size(recipe, classes)),
        resize=resize,
        restore=restore,
        inverted=recipe == "portrait" or options.get("polarity") == "inverted",
        mean=channel_constants(options.get("mean"), IMAGENET_MEAN[::step], 3, "--mean"),
        std=channel_constants(options.get("std"), IMAGENET_STD[::step], 3, "--std", positive=True),
        rotate=options.get("exif", "apply" if resize.startswith("pillow:") else "ignore") == "apply",
        alpha_in_maximum=options.get("alpha") == "in-max",
        min_max=options.get("min_max") != "no",
    )
    if chain.alpha_in_maximum and chain.reader != "skimage":
        raise UsageError("--alpha in-max is what upstream's reader did; it needs a recipe that resizes as scikit-image")
    return chain


def _size(given: OptionValue, default: tuple[int, int]) -> tuple[int, int]:
    if isinstance(given, tuple) and len(given) == 2:
        return int(given[0]), int(given[1])
    return default


def build_recipe(
    name: str,
    chain: Chain,
    *,
    architecture: str,
    parameters: int,
    classes: int,
    outputs: int,
    record: Mapping[str, Any],
    label: str = "object",
    class_names: str | None = None,
    values: Any = "probabilities",
) -> Recipe:
    """Everything that a manifest says of such a network but its variants; ``outputs`` 1 (d0 alone) or 7."""
    return Recipe(
        name=name,
        family="u2net",
        description=f"{architecture}, recipe {chain.recipe}: {_what(chain, classes)}",
        options={**describe(chain), **record},
        input=_input(chain),
        preprocess=_steps(chain),
        network=Network(
            architecture=architecture,
            parameters=parameters,
            input_name=INPUT,
            layout="NCHW",
            input_channels=3,
            size=chain.size,
            size_multiple=(1, 1),
            outputs=tuple(Output(name=f"d{k}", channels=classes, values=values) for k in range(outputs)),
            members=("model",),
        ),
        decode=_decode(chain, classes),
        labels=_labels(classes, label, class_names),
        metric=_metric(classes),
    )


def _what(chain: Chain, classes: int) -> str:
    if classes > 1:
        return "one class a pixel"
    drawn = "a drawing's lightness, 1 − d0" if chain.inverted else "a map of the salient object"
    return f"{drawn}, {'min-max of each picture' if chain.min_max else 'as the network gives it'}"


def describe(chain: Chain) -> dict[str, str | int | float | bool | None]:
    """The chain's choices as plain words, for the manifest's ``options``."""
    swapped = chain.mean == IMAGENET_MEAN[::-1] and chain.std == IMAGENET_STD[::-1]
    ours = chain.mean == IMAGENET_MEAN and chain.std == IMAGENET_STD
    return {
        "recipe": chain.recipe,
        "input_size": f"{chain.size[0]}x{chain.size[1]}",
        "resize": chain.resize,
        "restore": chain.restore,
        "polarity": "inverted" if chain.inverted else "as-is",
        "normalization": "portrait-demo" if swapped else "rgb" if ours else "own",
        "alpha": "in-max" if chain.alpha_in_maximum else "drop",
        "exif": "apply" if chain.rotate else "ignore",
        "min_max": "yes" if chain.min_max else "no",
    }


def _input(chain: Chain) -> ImageInput:
    skimage = chain.reader == "skimage"
    return ImageInput(
        reader="skimage" if skimage else "pillow:rgb",
        channels=tuple(Channel(name=letter) for letter in "RGB"),
        channel_order="rgb",
        exif_rotation="apply" if chain.rotate else "ignore",
        grey="keep" if skimage else "expand",
        alpha="keep" if chain.alpha_in_maximum else "drop",
    )


def _steps(chain: Chain) -> tuple[Step, ...]:
    height, width = chain.size
    method: Any = chain.resize
    steps: tuple[Step, ...] = (
        Resize(height=height, width=width, method=method),
        DivideByMaximum(floor=BLACK, dtype="float64"),
        Normalize(subtract=chain.mean, multiply=tuple(1 / s for s in chain.std), dtype="float64"),
    )
    # A grey picture is normalised once, with red's constants, and then used three times; alpha has done its work.
    return (*steps, Channels(count=3)) if chain.reader == "skimage" else steps


def _decode(chain: Chain, classes: int) -> Decode:
    if classes > 1:
        # rembg enlarges the class numbers themselves with Lanczos, which invents classes along every border.
        return Decode(
            activation="none", decision=Argmax(), restore_what="probabilities", restore_method="opencv:linear"
        )
    method: Any = chain.restore
    return Decode(
        activation="none",
        decision=Saliency(
            min_max=chain.min_max,
            polarity="inverted" if chain.inverted else "as-is",
            to_uint8="truncate",
            threshold=THRESHOLD,
        ),
        restore_what="decision",
        restore_method=method,
    )


def _labels(classes: int, label: str, names: str | None) -> tuple[Label, ...]:
    if classes == 1:
        return class_labels(1, names, [label])
    default = ["background", *(f"class{index}" for index in range(1, classes))]
    found = class_labels(classes, names, default)
    return tuple(
        Label(id=index, name=one.name, color=(0, 0, 0) if index == 0 else COLORS[(index - 1) % len(COLORS)])
        for index, one in enumerate(found)
    )


def _metric(classes: int) -> Metric:
    if classes > 1:
        return Metric(name="mIoU", scorer="mmseg", higher_is_better=True, grid="input")
    return Metric(name="MAE", scorer="sod", higher_is_better=False, grid="input")


def readings(source: Source, remake: Callable[[str], Recipe]) -> tuple[Alternative, ...]:
    """The recipes that the weights leave open, for a score on the user's own data to tell apart.

    ``remake`` gives the recipe by its name. None where portrait or custom was chosen: those are no guess.
    """
    chosen = source.recipe.options["recipe"]
    if chosen not in OPEN:
        return ()
    found = []
    for name in OPEN:
        try:
            recipe = remake(name)
        except UsageError:  # an option that this one has no use for
            continue
        load = partial(replace, source, recipe=recipe)
        found.append(Alternative(name=f"recipe={name}", chosen=name == chosen, load=load))
    return tuple(found)


def choose_recipe(options: Mapping[str, OptionValue], stem: str, default: str) -> tuple[str, str]:
    """(recipe, where it was found): the option, else a file name that says portrait, else the default."""
    if options.get("recipe") is not None:
        return str(options["recipe"]), "option"
    return ("portrait", "file name") if "portrait" in stem.lower() else (default, "default")


def label_name(stem: str) -> str:
    """What the map is of, by the released files' names."""
    lowered = stem.lower()
    return "person" if "human" in lowered else "drawing" if "portrait" in lowered else "object"


def usage_warnings(recipe: str, found_in: str, size: tuple[int, ...], classes: int) -> list[str]:
    warnings = []
    if found_in == "file name":
        warnings.append(
            "the file's name says portrait, so recipe portrait was taken; --recipe upstream takes it otherwise"
        )
    elif found_in == "default":
        warnings.append(
            f"the weights do not say how they are used: took recipe {recipe}; the mask moves by several percent between "
            f"the recipes ({', '.join(RECIPES[:-1])}), so name the one whose masks you expect with --recipe"
        )
    wanted = default_size(recipe, classes)
    if size != wanted and recipe != "custom":
        warnings.append(
            f"released weights of recipe {recipe} were trained at {wanted[0]}x{wanted[1]}, this package uses "
            f"{size[0]}x{size[1]}: compare its masks"
        )
    return warnings


def unable(size: tuple[int, ...]) -> dict[str, str]:
    """Engines that cannot run the network at this size."""
    if min(size) >= SMALLEST_OPENVINO:
        return {}
    return {
        "openvino": f"OpenVINO cannot run this network at {size[0]}x{size[1]}: below {SMALLEST_OPENVINO} pixels a side a "
        "pooling meets a size of 1"
    }
