"""``polyptych parity`` and ``reproduce``: against published code, and against a base."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from polyptych.cli.common import example, hide_bars
from polyptych.errors import PolyptychError

commands = typer.Typer()

_REPRODUCTIONS = ("sam", "cheetah", "camml", "adapters", "sima")


@commands.command(epilog=example("polyptych parity sam golden/sam --case a"))
def parity(
    method: Annotated[str, typer.Argument(help="sam, cheetah, camml, sima or imagebind.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with its golden data.")],
    case: Annotated[str, typer.Option(help="The golden case in it.")] = "a",
    dump: Annotated[
        Path | None, typer.Option(help="Write our values as safetensors under the golden names.")
    ] = None,
) -> None:
    """Compare a method with outputs of its published code.

    Every tensor is compared; exit code 0 only if none differs.
    """
    home = Path(__file__).parents[1] / "methods"
    names = sorted(file.parent.name for file in home.glob("*/parity.py"))
    known = {name: f"polyptych.methods.{name}.parity" for name in names}
    known["imagebind"] = "polyptych.retrieval.imagebind_parity"
    if method not in known:
        raise PolyptychError(f"no golden comparison for {method!r}; known: {', '.join(known)}")
    module = importlib.import_module(known[method])
    report = module.run(folder, case, dump)
    typer.echo(str(report))
    if not report.passed:
        raise typer.Exit(1)


@commands.command(epilog=example("polyptych reproduce sam --quick"))
def reproduce(
    method: Annotated[
        str, typer.Argument(help="The study: sam, cheetah, camml, adapters or sima.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for runs and results; default: runs/METHOD."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One seed only: a first look.")] = False,
    real: Annotated[
        Path | None,
        typer.Option(help="Folder of real data sets; repeats the comparison over these."),
    ] = None,
) -> None:
    """Repeat a method's comparison in the small.

    Finished runs are kept, so that it can be stopped and started again.
    """
    if method not in _REPRODUCTIONS:
        raise PolyptychError(f"no reproduction of {method!r}; known: {', '.join(_REPRODUCTIONS)}")
    hide_bars()
    main = importlib.import_module(f"polyptych.reproduce.{method}.main").main
    results = main(out or Path("runs", method), quick=quick, real=real)
    typer.echo(f"results in {results}")
