"""`segship serve`: a package behind HTTP, with a page to try it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segship.cli.options import PRECISION_HELP, FloatList, with_engine
from segship.errors import UsageError
from segship.serve.options import ServeOptions, VolumeServeOptions

if TYPE_CHECKING:
    from segship.inference.predictor import Predictor

_PICTURES, _VOLUMES = ServeOptions(), VolumeServeOptions()


def _both(name: str) -> str:
    """The default of an option that differs between the kinds of packages."""
    return f"[{getattr(_PICTURES, name):g}; volumes: {getattr(_VOLUMES, name):g}]"


@click.command()
@click.argument("package", type=click.Path())
@click.option("--host", default=_PICTURES.host, show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=int, default=_PICTURES.port, show_default=True, help="0 takes a free one.")
@click.option("--precision", default="fp32", show_default=True, help=PRECISION_HELP)
@click.option(
    "--tta",
    type=click.Choice(["1.x", "0.x"]),
    is_flag=False,
    flag_value="1.x",
    help="mmseg: average several sizes and mirrorings of every picture, as `segship predict --tta` does.",
)
@click.option("--tta-ratios", type=FloatList(), help="mmseg: the sizes of --tta, such as 0.5,1,1.5 [the package's].")
@click.option("--queue", type=int, help=f"Requests or jobs that may wait; 429 beyond {_both('queue')}.")
@click.option("--timeout", type=float, help=f"Pictures: seconds for an answer; 503 [{_PICTURES.timeout:g}].")
@click.option("--upload-timeout", type=float, help=f"Seconds for a body; 408 {_both('upload_timeout')}.")
@click.option("--max-bytes", type=int, help="Refuse larger files while they arrive [32 MiB; volumes: 1 GiB].")
@click.option(
    "--max-pixels", type=int, help="Refuse images of more pixels undecoded, volumes of more voxels [50 million; 2^29]."
)
@click.option("--max-matting-pixels", type=int, help="Pictures: for matting [4 million].")
@click.option(
    "--max-held-bytes", type=int, help="Of all uploads; volumes: on disk, with the results [256 MiB; volumes: 16 GiB]."
)
@click.option(
    "--memory", metavar="SIZE", help="Volumes: refuse cases that need more, e.g. 6G [what is free at the start]."
)
@click.option("--keep", type=int, help=f"Volumes: finished jobs that are kept [{_VOLUMES.keep}].")
@click.option("--keep-seconds", type=float, help=f"Volumes: how long each of them is [{_VOLUMES.keep_seconds:g}].")
@click.option("--previous-stage", metavar="PACKAGE", help="Volumes: a cascade's first stage [the one beside PACKAGE].")
@click.option("--allow-host", "allow_hosts", multiple=True, help="A further name that loopback answers to (a proxy's).")
@click.option("--allow-origin", "allow_origins", multiple=True, help="A web page elsewhere that may call (CORS).")
@with_engine
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Log every request.")
def serve(package: str, precision: str, quiet: bool, verbose: bool, **rest: Any) -> int:
    """Answer HTTP requests with PACKAGE until stopped (Ctrl-C or SIGTERM), and show a page to try it.

    \b
    curl -F file=@photo.jpg http://127.0.0.1:8000/v1/predict -o mask.png
    curl -F file=@photo.jpg -F output=cutout http://127.0.0.1:8000/v1/predict -o cutout.png
    curl -F file=@ct_0000.nii.gz http://127.0.0.1:8000/v1/jobs
    """
    try:
        from segship.serve.server import serve as run
    except ModuleNotFoundError as error:
        raise UsageError(f"the server needs {error.name}; type: pip install 'segship[serve]'") from None
    from segship.inference.images import DEFAULT_LIMITS
    from segship.inference.predictor import Predictor
    from segship.package import open_package

    names = {field.name for kind in (ServeOptions, VolumeServeOptions) for field in fields(kind)}
    given = {name: value for name in sorted(names) if (value := rest.pop(name)) is not None}
    previous = rest.pop("previous_stage")
    if rest["tta_ratios"] and rest["tta"] is None:
        raise UsageError("--tta-ratios are the sizes of --tta; add that")
    opened = open_package(package)
    options = _build(VolumeServeOptions if opened.manifest.input.kind == "volume" else ServeOptions, given)
    limits = replace(DEFAULT_LIMITS, max_pixels=options.max_pixels, max_bytes=options.max_bytes)
    rest["streams"] = rest["streams"] or 1
    if not options.loopback:
        click.echo(
            f"warning: {options.host} can be reached from other machines and this server asks nobody for a password; "
            "put a proxy with TLS and a login before it",
            err=True,
        )
    with Predictor.open(opened, precision=precision, limits=limits, **rest) as predictor:
        if previous is not None:
            _continue(predictor, Path(previous))

        def listening(address: str) -> None:
            if not quiet:
                what = f"{predictor.manifest.name} ({predictor.precision}, {predictor.engine})"
                click.echo(f"{what} at {address} - a page to try it, and the API; Ctrl-C stops", err=True)

        run(predictor, options, listening)
    return 0


def _continue(predictor: Predictor, path: Path) -> None:
    """Name the package of a cascade's first stage; UsageError for a package that continues none."""
    from segship.inference.volume_predictor import VolumePredictor

    if not isinstance(predictor, VolumePredictor) or predictor.manifest.previous_stage is None:
        raise UsageError(f"package '{predictor.manifest.name}' continues no other; leave out --previous-stage")
    if not path.exists():
        raise UsageError(f"there is no package {path}; --previous-stage names the first stage's")
    predictor.previous_package = path


def _build(
    kind: type[ServeOptions] | type[VolumeServeOptions], given: dict[str, Any]
) -> ServeOptions | VolumeServeOptions:
    """Options of one kind; UsageError for those of the other, which would have no effect."""
    from segship.inference.volume_cost import parse_bytes

    own = {field.name for field in fields(kind)}
    for name in given:
        if name not in own:
            here, there = ("volumes", "pictures") if kind is VolumeServeOptions else ("pictures", "volumes")
            raise UsageError(f"--{name.replace('_', '-')} is for packages of {there}, and this one takes {here}")
    return kind(**given | ({"memory": parse_bytes(given["memory"])} if "memory" in given else {}))
