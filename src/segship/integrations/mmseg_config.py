"""The config with which mmseg's ``tools/test.py`` scores a package, and the empty checkpoint that it insists on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segship.errors import SourceError, UsageError
from segship.families.mmseg_config import Config, read_config
from segship.inference.writers import write_bytes
from segship.integrations.mmseg_chain import read_chain
from segship.package import open_package

PLUG_IN = "segship.integrations.mmseg"
TYPE = "SegshipSegmentor"


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The two files that were written."""

    config: Path
    checkpoint: Path

    @property
    def command(self) -> str:
        return f"python tools/test.py {self.config} {self.checkpoint}"

    def as_dict(self) -> dict[str, str]:
        return {"config": str(self.config), "checkpoint": str(self.checkpoint), "command": self.command}


def write_eval_config(
    config: Path | str,
    package: Path | str,
    output: Path | str,
    *,
    precision: str = "fp32",
    engine: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> EvalConfig:
    """Write ``output`` (a config that inherits ``config`` and scores ``package``) and an empty checkpoint beside it.

    Raises SourceError for a config that cannot be inherited, PackageError, UsageError where the two are of different
    networks or ``output`` is no .py file, OutputError.
    """
    base, target = Path(config).resolve(), Path(output)
    if target.suffix != ".py":
        raise UsageError(f"-o names the config to write, such as {target.with_suffix('.py')}, not '{target}'")
    if target.resolve() == base:
        raise UsageError(f"-o would write over {config} itself; give the new config another name")
    inherited = read_for_test(base)
    opened = open_package(package)
    read_chain(opened.manifest)
    _check_classes(inherited, base, opened.manifest.network.outputs[0].channels, str(package))
    arguments: dict[str, Any] = {"package": str(Path(package).resolve()), "precision": precision}
    optional = {"engine": engine, "device": None if device == "cpu" else device, "threads": threads}
    arguments |= {name: value for name, value in optional.items() if value is not None}
    text = config_text(base, arguments, custom_imports(inherited))
    checkpoint = target.with_suffix(".pth")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, text.encode())
    write_bytes(checkpoint, empty_checkpoint())
    return EvalConfig(config=target, checkpoint=checkpoint)


def config_text(base: Path, arguments: dict[str, Any], imports: list[str]) -> str:
    """The config as Python text in mmengine's form; ``base`` is inherited, its data_preprocessor kept as it is."""
    lines = [
        "# Written by `segship mmseg-eval-config`: mmseg's own test of a package. The first lines of `model` may be changed.",
        f"_base_ = [{str(base)!r}]",
        f"custom_imports = dict(imports={imports!r}, allow_failed_imports=False)",
        "model = dict(",
        "    _delete_=True,",
        f"    type={TYPE!r},",
        *(f"    {name}={value!r}," for name, value in arguments.items()),
        "    data_preprocessor={{_base_.model.data_preprocessor}})",
    ]
    return "\n".join(lines) + "\n"


def empty_checkpoint() -> bytes:
    """A checkpoint without weights, which tools/test.py insists on; the package has them."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save({"meta": {}, "state_dict": {}}, buffer)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------- what the config says


def read_for_test(path: Path) -> Config:
    """A config with all that it inherits, nothing of it executed.

    Raises SourceError for a file that cannot be read, mmseg 0.x's dialect, and mmengine's lazy imports.
    """
    config = read_config(path)
    if "read_base" in path.read_text(encoding="utf-8"):
        raise SourceError(
            f"{path} is one of mmengine's lazy-import configs (read_base), which no config file can inherit; dump it first: "
            "Config.fromfile(PATH).dump('flat.py')"
        )
    left_out = [note for note in config.notes if "'custom_imports'" in note]
    if left_out:
        raise SourceError(
            f"{path}: custom_imports is no plain list of names ({left_out[0]}); write it out, or dump the config"
        )
    if config.get("test_dataloader") is None:
        old = config.get("data") is not None
        hint = "it is written for mmseg 0.x; take the same network's config of 1.x" if old else "give a whole one"
        raise SourceError(f"the config {path} has no test_dataloader, so mmseg 1.x cannot test with it; {hint}")
    if config.get("model.data_preprocessor") is None:
        raise SourceError(
            f"the config {path} has no model.data_preprocessor, which normalises in mmseg 1.x; give a whole one"
        )
    return config


def custom_imports(config: Config) -> list[str]:
    """The plug-in first (it makes mmseg importable), then what the config itself imports."""
    given = config.get("custom_imports.imports", [])
    names = [given] if isinstance(given, str) else list(given)
    return [PLUG_IN, *(str(name) for name in names if name != PLUG_IN)]


def _check_classes(config: Config, path: Path, channels: int, package: str) -> None:
    """UsageError where the config itself names another number of classes than the package gives."""
    head = config.get("model.decode_head", {})
    last = head[-1] if isinstance(head, list | tuple) and head else head
    classes = (last.get("out_channels") or last.get("num_classes")) if isinstance(last, dict) else None
    if isinstance(classes, int) and classes != channels:
        raise UsageError(
            f"{path} is a config for {classes} classes and {package} gives {channels}; they are not of one network"
        )
