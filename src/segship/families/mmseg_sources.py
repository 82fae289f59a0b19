"""Where a checkpoint's settings are found: configuration given, configuration inside, released name, ``--arch``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from segship.errors import SourceError, UsageError
from segship.families import OptionValue
from segship.families.checkpoint import Checkpoint
from segship.families.mmseg_config import Config, parse_text, read_config
from segship.families.mmseg_keys import NotNative
from segship.families.mmseg_known import KNOWN, UNET, known_config, released_name, short_name
from segship.families.mmseg_native import complete
from segship.networks.mmseg_hrnet import HRNetShape
from segship.networks.mmseg_segmentor import NetworkShape

CITYSCAPES_CLASSES = 19


@dataclass(frozen=True, kw_only=True)
class FoundConfig:
    config: Config
    warnings: tuple[str, ...] = ()


def find_config(checkpoint: Checkpoint, options: Mapping[str, OptionValue], shape: NetworkShape | None) -> FoundConfig:
    """The configuration that a checkpoint is used with; ``shape`` is its network where that is defined here.

    Raises SourceError listing what fits the weights where there is none, UsageError for options that name none.
    """
    warnings = _check_hash(checkpoint)
    trust = bool(options.get("trust_config"))
    arch = options.get("arch")
    if options.get("config") is not None:
        if arch is not None:
            raise UsageError("--config says all that --arch would; give one of the two")
        return FoundConfig(config=read_config(Path(str(options["config"])), trust=trust), warnings=warnings)
    if trust:
        raise UsageError("--trust-config is about the file of --config; name it")
    if arch is not None and short_name(str(arch)) is None:
        raise UsageError(f"--arch {arch} is none of the released networks: {', '.join(_fitting(shape) or KNOWN)}")
    inside = _inside(checkpoint)
    if inside is not None:
        ignored = () if arch is None else (f"--arch {arch} was not needed: the checkpoint holds its configuration",)
        return FoundConfig(config=inside, warnings=(*warnings, *ignored))
    name = _released(checkpoint)
    if name is not None and arch is None:
        origin = f"the released file name ({name})"
        return FoundConfig(config=_taken(checkpoint, name, origin, shape, options), warnings=warnings)
    if arch is not None:
        chosen = short_name(str(arch))
        assert chosen is not None
        return FoundConfig(config=_taken(checkpoint, chosen, f"--arch {chosen}", shape, options), warnings=warnings)
    raise SourceError(_open(checkpoint, shape))


def _inside(checkpoint: Checkpoint) -> Config | None:
    """The configuration whose text the checkpoint holds: ``cfg`` in 1.x, ``config`` in 0.x."""
    for key in ("cfg", "config"):
        text = checkpoint.meta.get(key)
        found = parse_text(text, f"the checkpoint's {key} text") if isinstance(text, str) else None
        if found is not None and found.get("model") is not None:
            return found
    return None


def _released(checkpoint: Checkpoint) -> str | None:
    released = released_name(checkpoint.path.stem)
    return short_name(released.config if released is not None else checkpoint.path.stem)


def _taken(
    checkpoint: Checkpoint, name: str, origin: str, shape: NetworkShape | None, options: Mapping[str, OptionValue]
) -> Config:
    """The settings of a released network for these weights. SourceError where they are another network's.

    With names for its classes a network may have learnt others than Cityscapes' 19.
    """
    if shape is None:
        return replace(_known(name, origin), source="flag" if options.get("arch") is not None else "name")
    fitting = _fitting(shape)
    if name not in fitting:
        hint = f"--arch takes {', '.join(fitting)}" if fitting else "give the configuration with --config"
        raise SourceError(f"{checkpoint.path}: its weights are not those of {origin}; {hint}")
    found = _known(name, origin, shape.classes if options.get("class_names") is not None else CITYSCAPES_CLASSES)
    return replace(found, source="flag" if options.get("arch") is not None else "name")


def _known(name: str, origin: str, classes: int = CITYSCAPES_CLASSES) -> Config:
    values = known_config(name)
    heads = values["model"]["decode_head"]
    for head in heads if isinstance(heads, list) else [heads]:
        head["num_classes"] = classes
    return Config(values=values, origin=origin)


def _check_hash(checkpoint: Checkpoint) -> tuple[str, ...]:
    """A warning where a released file's name and its content disagree.

    Names of 1.x carry the hash of another file (the one before it was published), so only those of 0.x tell anything.
    """
    released = released_name(checkpoint.path.stem)
    if released is None or "xb" in released.config or "mmengine_version" in checkpoint.meta:
        return ()
    if checkpoint.sha256.startswith(released.sha256_start):
        return ()
    return (
        f"{checkpoint.path.name} should have a sha256 that begins with {released.sha256_start}, it begins with "
        f"{checkpoint.sha256[:8]}: the file was changed or damaged since it was released",
    )


def _fitting(shape: NetworkShape | None) -> list[str]:
    """Those of KNOWN whose network has these weights."""
    if shape is None:
        return []
    fitting = []
    for name in KNOWN:
        try:
            complete(shape, _known(name, name, shape.classes))
        except (SourceError, NotNative):
            continue
        if _width_fits(name, shape):
            fitting.append(name)
    return fitting


def _width_fits(name: str, shape: NetworkShape) -> bool:
    """What short configurations leave out: the width and blocks of HRNet, the plain or deep stem is in them."""
    backbone = shape.backbone
    if not isinstance(backbone, HRNetShape) or name == UNET:
        return True
    small = backbone.modules != (1, 4, 3)
    return name.split("_")[1] == f"hr{backbone.width}{'s' if small else ''}"


def _open(checkpoint: Checkpoint, shape: NetworkShape | None) -> str:
    fitting = _fitting(shape)
    start = (
        f"{checkpoint.path} does not say how its network is used (dilations, align_corners, test mode, classes are not in the "
        "weights); give its configuration with --config FILE.py"
    )
    if not fitting:
        return start
    names = (
        ""
        if shape is None or shape.classes == CITYSCAPES_CLASSES
        else f" and its {shape.classes} classes with --class-names"
    )
    return f"{start}, or name the released network that it is{names} with --arch: {', '.join(fitting)}"
