"""`segship inspect`, `verify`, `doctor`: what is in a package, is it whole, what can this machine do."""

from __future__ import annotations

from typing import Any

import click

from segship.cli.options import cell, print_json, with_engine, with_output


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
@with_engine
@with_output
def verify(package: str, precisions: tuple[str, ...], as_json: bool, quiet: bool, verbose: bool, **engine: Any) -> int:
    """Check PACKAGE's hashes, then run its own golden sample here and compare every stage. Exit code 3 if it fails."""
    from segship.inference.verify import verify_package
    from segship.measure.tables import columns

    rows = verify_package(package, precisions=precisions or None, **{k: v for k, v in engine.items() if v is not None})
    failed = [row for row in rows if not row.passed]
    if as_json:
        print_json({"passed": not failed, "rows": [row.as_dict() for row in rows]})
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


@click.command()
@with_output
def doctor(as_json: bool, quiet: bool, verbose: bool) -> None:
    """List engines, devices and precisions of this machine, and what to install for the others."""
    from segship.engines import doctor as examine

    if as_json:
        print_json(examine.as_dict())
    elif not quiet:
        click.echo(examine.as_text())
