"""The command line: ``atbook train key=value ...`` and ``atbook runs FOLDER``. Torch is imported when it is needed."""

from pathlib import Path
from typing import Annotated

import typer

from atbook.names import TEACHERLESS
from atbook.recipes import Recipe

app = typer.Typer(help="Attention transfer that people can run.", no_args_is_help=True, add_completion=False)


def _fields() -> str:
    """The recipe's fields for the help page."""
    lines = [f"{name}={field.default}  {field.description}" for name, field in Recipe.model_fields.items()]
    return "Fields (with defaults):\n\n" + "\n\n".join(lines)


def _fail(error: Exception) -> typer.Exit:
    typer.echo(f"atbook: {error}", err=True)
    return typer.Exit(2)


@app.command(epilog=_fields())
def train(
    fields: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE ...", show_default=False)] = None,
    out: Annotated[Path, typer.Option(help="the run's folder; an unfinished run there is resumed")] = Path("run"),
    root: Annotated[Path | None, typer.Option(help="where the images are")] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="compile the networks: faster from a few epochs on")
    ] = False,
) -> None:
    """Train one network; teacher=FOLDER names a finished run."""
    try:
        pairs = dict(_pair(field) for field in fields or [])
        teacher = pairs.pop("teacher", None)
        recipe = Recipe.from_strings(pairs)
        if (recipe.method not in TEACHERLESS) != (teacher is not None):
            raise ValueError(
                f"method={recipe.method} " + ("needs" if teacher is None else "takes no") + " teacher=RUN_FOLDER"
            )
        from atbook.train import train as run_training

        run = run_training(recipe, out, root, teacher, compile)
    except (ValueError, OSError, FloatingPointError) as error:
        raise _fail(error) from None
    except KeyboardInterrupt:
        typer.echo(f"\natbook: stopped; the same command goes on from the last epoch in {str(out)!r}", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"test error {run.test_error:.2f} % after {len(run.history)} epochs, in {str(out)!r}")


def _pair(field: str) -> tuple[str, str]:
    name, equals, value = field.partition("=")
    if not equals:
        raise ValueError(f"{field!r} is not KEY=VALUE: write for example epochs=3")
    return name, value


@app.command("runs")
def show(folder: Annotated[Path, typer.Argument(help="where the runs are")]) -> None:
    """Print the receipts below a folder as a table."""
    from atbook.runs import load_runs, table

    try:
        found = load_runs(folder)
    except (ValueError, OSError) as error:
        raise _fail(error) from None
    typer.echo(table(found).to_string(index=False) if found else f"no runs in {str(folder)!r}")


if __name__ == "__main__":
    app()
