"""`segship inspect`, `verify`, `doctor`: what is in a package, is it whole, what can this machine do."""

from __future__ import annotations

from typing import Any

import click

from segship.cli.options import cell, print_json, with_engine, with_output
from segship.errors import UsageError


@click.command()
@click.argument("package", type=click.Path())
@with_output
def inspect(package: str, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Show what is inside PACKAGE: chain, variants, accuracy, origin. No engine is needed."""
    from segship.measure.inspect import describe, describe_text
    from segship.package import open_package

    opened = open_package(package)
    if as_json:
        print_json(describe(opened))
    elif not quiet:
        click.echo(describe_text(opened))


@click.command()
@click.argument("package", type=click.Path())
@click.option("--precision", "precisions", multiple=True, help="Check these variants [all].")
@click.option(
    "--runner", type=click.Choice(["python", "cpp"]), default="python", show_default=True, help="Who runs the sample."
)
@click.option(
    "--binary", type=click.Path(), default=None, help="The C++ runner [SEGSHIP_RUN, cpp/build/segship-run, PATH]."
)
@with_engine
@with_output
def verify(
    package: str,
    precisions: tuple[str, ...],
    runner: str,
    binary: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **engine: Any,
) -> int:
    """Check PACKAGE's hashes, then run its own golden sample here and compare every stage. Exit code 3 if it fails.

    \b
    segship verify net.segship                    in this Python
    segship verify net.segship --runner cpp       through the binary that `make cpp` builds
    """
    from segship.inference.verify import verify_package, verify_with_runner
    from segship.measure.tables import columns

    given = {k: v for k, v in engine.items() if v is not None}
    if runner == "cpp":
        rows = verify_with_runner(package, binary=binary, precisions=precisions or None, **_of_the_runner(given))
    elif binary is not None:
        raise UsageError("--binary names the C++ runner; say --runner cpp too")
    else:
        rows = verify_package(package, precisions=precisions or None, **given)
    failed = [row for row in rows if not row.passed]
    if as_json:
        print_json({"passed": not failed, "runner": runner, "rows": [row.as_dict() for row in rows]})
    elif not quiet:
        click.echo(
            columns(
                ["precision", "stage", "max |Δ|", "allowed", ""],
                [
                    [r.precision, r.stage, cell(r.max_abs), cell(r.allowed), "ok" if r.passed else "FAILED"]
                    for r in rows
                ],
            )
        )
        click.echo("hashes ok; golden sample " + ("FAILED" if failed else "ok"))
    return 3 if failed else 0


def _of_the_runner(given: dict[str, Any]) -> dict[str, Any]:
    """The engine's options that the C++ runner has; UsageError for others."""
    if given.pop("engine", "openvino") != "openvino" or given.pop("device", "cpu") != "cpu":
        raise UsageError("the C++ runner computes with OpenVINO on the processor; leave out --engine and --device")
    return given


@click.command()
@with_output
def doctor(as_json: bool, quiet: bool, verbose: bool) -> None:
    """List engines, devices and precisions of this machine, and what to install for the others."""
    from segship.engines import doctor as examine

    if as_json:
        print_json(examine.as_dict())
    elif not quiet:
        click.echo(examine.as_text())
