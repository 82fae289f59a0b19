"""`segship serve`: a package behind HTTP, with a page to try it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import click

from segship.cli.options import PRECISION_HELP, with_engine
from segship.errors import UsageError
from segship.serve.options import ServeOptions

_DEFAULT = ServeOptions()


@click.command()
@click.argument("package", type=click.Path())
@click.option("--host", default=_DEFAULT.host, show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=int, default=_DEFAULT.port, show_default=True, help="0 takes a free one.")
@click.option("--precision", default="fp32", show_default=True, help=PRECISION_HELP)
@click.option(
    "--queue", type=int, default=_DEFAULT.queue, show_default=True, help="Requests that may wait; 429 beyond."
)
@click.option("--timeout", type=float, default=_DEFAULT.timeout, show_default=True, help="Seconds for an answer; 503.")
@click.option(
    "--upload-timeout", type=float, default=_DEFAULT.upload_timeout, show_default=True, help="Seconds for a body; 408."
)
@click.option(
    "--max-bytes",
    type=int,
    default=_DEFAULT.max_bytes,
    show_default=True,
    help="Refuse larger files while they arrive.",
)
@click.option(
    "--max-pixels", type=int, default=_DEFAULT.max_pixels, show_default=True, help="Refuse larger images undecoded."
)
@click.option("--max-matting-pixels", type=int, default=_DEFAULT.max_matting_pixels, show_default=True)
@click.option(
    "--max-held-bytes", type=int, default=_DEFAULT.max_held_bytes, show_default=True, help="Of all uploads together."
)
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
    """
    try:
        from segship.serve.server import serve as run
    except ModuleNotFoundError as error:
        raise UsageError(f"the server needs {error.name}; type: pip install 'segship[serve]'") from None
    from segship.inference.images import DEFAULT_LIMITS
    from segship.inference.predictor import Predictor

    options = ServeOptions(**{field.name: rest.pop(field.name) for field in fields(ServeOptions)})
    limits = replace(DEFAULT_LIMITS, max_pixels=options.max_pixels, max_bytes=options.max_bytes)
    rest["streams"] = rest["streams"] or 1
    if not options.loopback:
        click.echo(
            f"warning: {options.host} can be reached from other machines and this server asks nobody for a password; "
            "put a proxy with TLS and a login before it",
            err=True,
        )
    with Predictor.open(package, precision=precision, limits=limits, **rest) as predictor:

        def listening(address: str) -> None:
            if not quiet:
                what = f"{predictor.manifest.name} ({predictor.precision}, {predictor.engine})"
                click.echo(f"{what} at {address} - a page to try it, and the API; Ctrl-C stops", err=True)

        run(predictor, options, listening)
    return 0
