"""The command line: ``atbook train``, ``rerun``, ``sweep``, ``runs``, ``check``, ``doctor``; torch only when needed."""

import os
from pathlib import Path
from typing import Annotated

import typer

from atbook import jobs, protocols
from atbook import sweep as sweeps
from atbook.names import TEACHERLESS, choose
from atbook.recipes import Recipe

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

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
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        raise _fail(error) from None
    except KeyboardInterrupt:
        typer.echo(f"\natbook: stopped; the same command goes on from the last epoch in {str(out)!r}", err=True)
        raise typer.Exit(130) from None
    if os.environ.get("RANK", "0") == "0":  # under torchrun, the first process speaks for all
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
    if not old.history:
        raise ValueError(f"run {str(folder)!r} has no finished epoch to compare with: give another one")
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


@app.command("rerun", add_help_option=False, context_settings={"ignore_unknown_options": True})
def rerun_chapter(
    context: typer.Context,
    typed: Annotated[
        list[str] | None, typer.Argument(metavar="CHAPTER [-p NAME VALUE] ...", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the results; reruns/CHAPTER if left out", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="run it again in that folder, and go on with the trainings there")
    ] = False,
    help: Annotated[bool, typer.Option("--help", help="show this, and the parameters of CHAPTER")] = False,
) -> None:
    """Run a chapter with other parameters: its number (6), its name, or the path of a notebook.

    OUT gets the executed notebook, an HTML page, rerun.json (running, finished or failed, and why) and, from a chapter
    with a parameter "out", the receipts of its trainings, in OUT/runs unless that parameter names another folder.
    """
    from atbook import parameters

    try:
        chapter, values = _chapter_and_values(typed or [])
        if help or chapter is None:
            typer.echo(context.get_help() + ("" if chapter is None else "\n" + parameters.table(chapter)))
            raise typer.Exit(0 if help else 2)
        parameters.checked(chapter, values)  # before anything slow is imported
        from atbook.rerun import rerun

        record = rerun(chapter, values, out or Path("reruns") / parameters.find(chapter).stem, resume)
    except (ValueError, OSError) as error:
        raise _fail(error) from None
    except KeyboardInterrupt:
        typer.echo("\natbook: stopped; the same command with --resume goes on", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{record.status}, in {str(record.folder)!r}" + (f": {record.reason}" if record.reason else ""))
    raise typer.Exit(0 if record.status == "finished" else 1)


def _chapter_and_values(typed: list[str]) -> tuple[str | None, dict[str, str]]:
    """What stands between the options: the chapter, and the pairs after each -p (papermill's form)."""
    rest, chapters, values = iter(typed), [], {}
    for word in rest:
        if word in ("-p", "--parameters"):
            name, value = next(rest, None), next(rest, None)
            if name is None or value is None:
                raise ValueError(f"{word} takes a name and a value: write for example -p epochs 2")
            values[name] = value
        elif word.startswith("-"):
            raise ValueError(f"option {word!r} is unknown: there are -p NAME VALUE, --out, --resume and --help")
        else:
            chapters.append(word)
    if len(chapters) > 1:
        raise ValueError(f"one chapter at a time, not {' and '.join(map(repr, chapters))}: values go after -p NAME")
    return (chapters or [None])[0], values


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
        if found and shown.empty:
            what = f"no finished run in {str(folder)!r} belongs into {against!r}"
            raise ValueError(f"{what}: it is of CIFAR-10, all images, and the paper's networks")
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


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="recipe, grid and seeds, in YAML")],
    out: Annotated[
        Path | None, typer.Option(help="the folder of the runs; finished ones there are skipped [default: sweeps/FILE]")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="runs at once on this machine", show_default="cores")] = CORES,
    engine: Annotated[str, typer.Option(help="local, or ray for a cluster")] = "local",
    address: Annotated[str | None, typer.Option(help="of the Ray cluster")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="of a GPU for each run on Ray, as 0.25")] = None,
    report: Annotated[bool, typer.Option("--report", help="train nothing, only tell what there is")] = False,
) -> None:
    """Train what is missing of a sweep, and write its table as report.csv and report.html into its folder."""
    out = out or Path("sweeps") / file.stem
    try:
        choose("engine", engine, ("local", "ray"))
        described = sweeps.read(file)
        if address and engine == "local":
            raise ValueError("--address belongs to the engine 'ray': add --engine ray")
        if gpus is not None and engine == "local":
            raise ValueError("--gpus belongs to the engine 'ray': add --engine ray, or say how many with --workers")
        planned = jobs.plan(described, out)
        failed = {}
        if not report:
            failed = _finish(planned, engine, workers, address, described.gpus if gpus is None else gpus)
        left = _report(file.stem, planned, described.baseline, failed, out)
    except (ValueError, OSError) as error:
        raise _fail(error) from None
    except KeyboardInterrupt:
        typer.echo(f"\natbook: stopped; the same command goes on from the last epochs in {str(out)!r}", err=True)
        raise typer.Exit(130) from None
    raise typer.Exit(1 if left else 0)


def _finish(planned: list[jobs.Job], engine: str, workers: int, address: str | None, gpus: float) -> dict:
    from atbook import engines
    from atbook.report import Board

    done = sum(job.state().status == "finished" for job in planned)
    with engines.Local(workers) if engine == "local" else engines.Ray(address, gpus) as started:
        with Board(len(planned), done) as board:
            return engines.finish(planned, started, board)


def _report(name: str, planned: list[jobs.Job], baseline: dict, failed: dict, out: Path) -> list[str]:
    """Print and write what came out; returns what is not finished."""
    from atbook import report
    from atbook.runs import write

    table, left = report.aggregate(planned, baseline, failed), report.missing(planned, failed)
    done = f"{len(planned) - len(left)} of {len(planned)} runs are finished"
    typer.echo("\n".join([report.text(table), "", *left, done]))
    write(out / "report.csv", table.to_csv(index=False).encode())
    write(out / "report.html", report.page(name, table, left).encode())
    return left


@app.command("doctor")
def examine() -> None:
    """Say what is installed and found here, what is missing, and the command that mends it."""
    from atbook.doctor import main

    raise typer.Exit(main())


if __name__ == "__main__":
    app()
