"""The command line: ``atbook train``, ``atbook runs`` and ``atbook check``. Torch is imported when it is needed."""

from pathlib import Path
from typing import Annotated

import typer

from atbook import protocols
from atbook.names import TEACHERLESS
from atbook.recipes import Recipe

app = typer.Typer(help="Attention transfer that people can run.", no_args_is_help=True, add_completion=False)


def _fields() -> str:
    """The recipe's fields for the help page."""
    lines = [f"{name}={field.default}  {field.description}" for name, field in Recipe.model_fields.items()]
    named = [
        f"protocol={name}  " + ", ".join(f"{field}={value}" for field, value in values.items())
        for name, values in protocols.PROTOCOLS.items()
    ]
    return "Fields (with defaults):\n\n" + "\n\n".join(lines + named)


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
    again: Annotated[
        Path | None, typer.Option("--from", help="a recorded run's folder: train it again, as its receipt says")
    ] = None,
) -> None:
    """Train one network; teacher=FOLDER names a finished run, start=FOLDER_OR_FILE pretrained weights,
    protocol=NAME sets several fields at once."""
    try:
        if again is not None:
            if fields:
                raise ValueError("--from takes the whole recipe from the receipt: leave out KEY=VALUE")
            run = _train_again(again, out, root)
        else:
            recipe, teacher, start = _recipe(fields or [])
            from atbook.train import train as run_training

            run = run_training(recipe, out, root, teacher, compile, start=start)
    except (ValueError, OSError, FloatingPointError) as error:
        raise _fail(error) from None
    except KeyboardInterrupt:
        typer.echo(f"\natbook: stopped; the same command goes on from the last epoch in {str(out)!r}", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"test error {run.test_error:.2f} % after {len(run.history)} epochs, in {str(out)!r}")


def _recipe(fields: list[str]) -> tuple[Recipe, str | None, str | None]:
    """The recipe, the teacher's folder and where the weights start from, out of what was typed."""
    pairs = dict(_pair(field) for field in fields)
    teacher, protocol, start = (pairs.pop(name, None) for name in ("teacher", "protocol", "start"))
    recipe = Recipe.from_strings(pairs, protocol and protocols.fields(protocol))
    if (recipe.method not in TEACHERLESS) != (teacher is not None):
        needs = "needs" if teacher is None else "takes no"
        raise ValueError(f"method={recipe.method} {needs} teacher=RUN_FOLDER")
    return recipe, teacher, start


def _train_again(folder: Path, out: Path, root: Path | None):
    """Train what a receipt describes, and say whether the first epoch came out the same."""
    import torch

    from atbook.runs import Run, start_of, teacher_of
    from atbook.train import train as run_training

    old = Run.load(folder)
    if torch.get_num_threads() != old.provenance["threads"]:
        torch.set_num_threads(old.provenance["threads"])  # sums in another order have other last digits
    run = run_training(old.recipe, out, root, teacher_of(old), old.provenance["compiled"], start=start_of(old))
    losses = [{k: v for k, v in r.history[0].items() if k != "seconds"} for r in (old, run)]
    same = "the same to the last digit" if losses[0] == losses[1] else f"{losses[1]}, not {losses[0]}"
    typer.echo(f"first epoch: {same}")
    return run


def _pair(field: str) -> tuple[str, str]:
    name, equals, value = field.partition("=")
    if not equals:
        raise ValueError(f"{field!r} is not KEY=VALUE: write for example epochs=3")
    return name, value


@app.command("runs")
def show(
    folder: Annotated[Path | None, typer.Argument(help="where the runs are; the book's if left out")] = None,
    against: Annotated[
        str | None, typer.Option("--table", help="beside a table of the paper: paper1, paper2 or groups")
    ] = None,
) -> None:
    """Print the receipts below a folder as a table."""
    from atbook.runs import beside_paper, book_runs, load_runs, table

    try:
        found = load_runs(folder or (book_runs() if against is None else book_runs() / "cifar10-short"))
        shown = table(found) if against is None else beside_paper(found, against)
    except (ValueError, OSError) as error:
        raise _fail(error) from None
    typer.echo(shown.to_string(index=False, na_rep="") if found else f"no runs in {str(folder)!r}")


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="where the runs are")],
    root: Annotated[Path | None, typer.Option(help="where the images are")] = None,
) -> None:
    """Recompute the test error of every weight file below a folder, and compare with its receipt."""
    from atbook.check import recheck

    try:
        wrong = recheck(folder, root, typer.echo)
    except (ValueError, OSError) as error:
        raise _fail(error) from None
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    app()
