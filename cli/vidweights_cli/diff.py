"""`vidweights diff`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from vidweights import compare, formats
from vidweights.compare import TensorDifference
from vidweights_cli.output import json_option, print_json, printable, progress_bar, table


@click.command("diff")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--all", "-a", "show_all", is_flag=True, help="List the equal tensors too.")
@json_option
def command(a: Path, b: Path, show_all: bool, as_json: bool) -> int:
    """Compare the checkpoints A and B tensor by tensor, whatever format and dialect each has.

    Leaves with 0 if all tensors are equal bit for bit, with 1 if not.
    """
    with formats.open_checkpoint(a) as left, formats.open_checkpoint(b) as right, progress_bar() as progress:
        comparison = compare.checkpoints(left, right, progress)
    differences = comparison.tensors
    unequal = [d for d in differences if not d.equal]
    if as_json:
        print_json(
            {
                "a": {"dialect": comparison.a, "format": left.format},
                "b": {"dialect": comparison.b, "format": right.format},
                "equal": len(differences) - len(unequal),
                "total": len(differences),
                "facts": [[f.fact, f.source, f.target] for f in comparison.facts],
                "only_a": comparison.only_a,
                "only_b": comparison.only_b,
                "tensors": [_fields(d) for d in (differences if show_all else unequal)],
            }
        )
        return 0 if comparison.equal else 1
    click.echo(f"A  {comparison.a} ({left.format})  {a}")
    click.echo(f"B  {comparison.b} ({right.format})  {b}")
    for fact in comparison.facts:
        click.echo(f"fact differs: {fact.fact.replace('_', ' ')}\n   A  {fact.source}\n   B  {fact.target}")
    shown = differences if show_all else unequal
    if shown:
        table(("tensor", "A", "B", "max |A-B|", "relative L2"), [_row(d) for d in shown])
    for side, keys in (("A", comparison.only_a), ("B", comparison.only_b)):
        for key in keys:
            click.echo(f"only in {side}, and no tensor of the network: {printable(key)}")
    click.echo(f"{len(differences) - len(unequal)} of {len(differences)} tensors are equal, bit for bit")
    return 0 if comparison.equal else 1


def _row(d: TensorDifference) -> tuple[str, ...]:
    def shape(value: tuple[int, ...] | None) -> str:
        return "absent" if value is None else " x ".join(map(str, value)) or "scalar"

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    return d.name, shape(d.shape_a), shape(d.shape_b), number(d.max_abs), number(d.relative_l2)


def _fields(d: TensorDifference) -> dict[str, Any]:
    return {
        "tensor": d.name,
        "equal": d.equal,
        "shape_a": d.shape_a,
        "shape_b": d.shape_b,
        "max_abs": _finite(d.max_abs),
        "relative_l2": _finite(d.relative_l2),
    }


def _finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None
