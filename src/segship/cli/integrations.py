"""`segship mmseg-eval-config`: what mmseg's own tester needs to score a package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segship.cli.options import PRECISION_HELP, print_json, with_output
from segship.errors import SourceError


@click.command("mmseg-eval-config")
@click.argument("config", type=click.Path())
@click.argument("package", type=click.Path())
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The config to write; OUT.pth stands beside it.",
)
@click.option("--precision", default="fp32", show_default=True, help=PRECISION_HELP)
@click.option("--engine", default=None, help="openvino (default), onnxruntime, pytorch or an installed one.")
@click.option("--device", default="cpu", show_default=True, help="cpu, gpu, gpu:1, npu, cuda …")
@click.option("--threads", type=click.IntRange(1, 1024), default=None, help="Threads of the engine [its own choice].")
@with_output
def mmseg_eval_config(
    as_json: bool, quiet: bool, verbose: bool, config: str, package: str, output: Path, **rest: Any
) -> None:
    """Write the config with which MMSegmentation 1.x's own tools/test.py scores PACKAGE, and the empty checkpoint it wants.

    CONFIG is the network's own mmseg config: data set, pipelines and metrics stay as they stand there.

    \b
    segship mmseg-eval-config fcn_unet.py unet.segship -o eval_unet.py
    python tools/test.py eval_unet.py eval_unet.pth            (also --tta, --out DIR)
    """
    try:
        from segship.integrations.mmseg_config import write_eval_config
    except ImportError as error:
        raise SourceError(f"this needs {error.name}; type: pip install 'segship[convert]'") from None

    found = write_eval_config(config, package, output, **rest)
    if as_json:
        print_json(found.as_dict())
    elif not quiet:
        click.echo(f"{found.config} and {found.checkpoint} written; where mmseg and segship are installed together:")
        click.echo(f"  {found.command}")
