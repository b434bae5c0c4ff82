"""Measures how fast the library is, against what one would otherwise use.

    make bench                                   everything, about twenty minutes on two cores
    make bench ARGS="--only update --json FILE"  one part of it, and the table as JSON

Every ratio is taken in one run, the two sides in turn; docs/performance.md says what is measured and what bounds it.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from benchmarks import acting, collect, compiling, histories, models, moe, parts, planning, stepping, update, windows
from benchmarks.measure import CLOCKS, Row, use_clock

PARTS: dict[str, Callable[[bool], Iterable[Row]]] = {
    "step": stepping.rows,
    "collect": collect.rows,
    "histories": histories.rows,
    "update": update.rows,
    "parts": parts.rows,
    "acting": acting.rows,
    "planning": planning.rows,
    "models": models.rows,
    "moe": moe.rows,
    "windows": windows.rows,
    "compile": compiling.rows,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the parts that were asked for, and prints each row as soon as it is known."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that it runs; the figures mean nothing"
    )
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu counts processor seconds, for a machine that others use too",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also writes the rows there")
    args = parser.parse_args(argv)
    use_clock(args.clock)
    console = Console()
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    console.print(f"devices: {devices}" + ("; tiny sizes, the figures mean nothing" if args.quick else ""))
    rows = []
    for name in args.only:
        with console.status(f"measuring: {name}"):
            for row in PARTS[name](args.quick):
                rows.append(row)
                console.print(f"{row.what}: {_line(row)}", highlight=False, soft_wrap=True)
    console.print(table(rows))
    if args.json:
        args.json.write_text(json.dumps({"devices": devices, "rows": [row._asdict() for row in rows]}, indent=1) + "\n")


def table(rows: Sequence[Row]) -> Table:
    """All rows, and below each what there is to say about it."""
    found = Table(title="icrl_jax benchmarks")
    for column in ("what", "ours", "theirs", "ratio", "aim", "met"):
        found.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        met = {True: "yes", False: "no", None: ""}[row.met]
        what = f"{row.what}\n  [dim]{row.note}[/dim]" if row.note else row.what
        found.add_row(what, row.ours, row.theirs, ratio, row.aim, met)
    return found


def _line(row: Row) -> str:
    theirs = f" against {row.theirs}, ratio {row.ratio:.3g}" if row.ratio is not None else ""
    return f"{row.ours}{theirs}" + (f" (aim {row.aim})" if row.aim else "") + (f"; {row.note}" if row.note else "")


if __name__ == "__main__":
    sys.exit(main())
