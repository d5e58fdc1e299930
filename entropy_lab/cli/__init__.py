"""The command line: train, analyze, audit, eval, plot, doctor, import, list."""

from __future__ import annotations

import json
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from entropy_lab import __version__
from entropy_lab.cli.evaluate import evaluate
from entropy_lab.cli.extra import train_extra
from entropy_lab.errors import ConfigError, EntropyLabError

# Named here, so that --help imports no reader; a test compares them with the readers.
_FORMATS = ("prime-rl", "slime", "nemo-rl", "openrlhf", "verl", "generic")

app = typer.Typer(
    name="entropy-lab",
    help="What did this update do to the policy's entropy, and which tokens did it?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    add_completion=False,
)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr, never a traceback.

    Exit codes: 0 done, 1 a run could not be read or written, 2 wrong usage, 130 Ctrl-C.
    """
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        app(arguments, prog_name="entropy-lab")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except EntropyLabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def _version(asked: bool) -> None:
    if asked:
        print(f"entropy-lab {__version__}")
        raise typer.Exit()


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What did this update do to the policy's entropy, and which tokens did it?"""


@app.command(epilog="Example: entropy-lab train --set method.name=steer --out runs/steer")
def train(
    config: Annotated[
        Path | None, typer.Argument(help="Settings (TOML); without it, the packaged demo.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory; default runs/<run.name>.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out from its checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all of it, say what will happen, stop.")
    ] = False,
) -> None:
    """Train with verifiable rewards and measure every step's entropy change."""
    with train_extra():
        from entropy_lab.train.launch import run_training

        run_dir = run_training(config, settings or [], out, resume=resume, dry_run=dry_run)
    if not dry_run:
        print(f"run: {run_dir}\nnext: entropy-lab analyze {shlex.quote(str(run_dir))}")


@app.command(epilog="Example: entropy-lab analyze runs/demo; several: analyze runs/* --jobs 4")
def analyze(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Run directories.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write; default RUN/analysis, or comparison/ beside the runs."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the numbers as one JSON object.")
    ] = False,
    tokens: Annotated[
        bool,
        typer.Option(
            "--tokens/--no-tokens",
            help="Read the token rows; comparing methods does without them.",
        ),
    ] = True,
    jobs: Annotated[int, typer.Option(help="Processes that read runs at the same time.")] = 1,
) -> None:
    """Measure how well each prediction did and where entropy changed; several runs: compare."""
    from entropy_lab import analysis
    from entropy_lab.report import summary_lines, write_report

    found = analysis.analyze(runs, out, tokens=tokens, jobs=jobs)
    command = ["entropy-lab", "analyze", *map(str, runs)]
    command += ["--out", str(out)] if out is not None else []
    command += [] if tokens else ["--no-tokens"]
    report = write_report(found.tables, found.out, shlex.join(command))
    if as_json:
        print(json.dumps(found.to_json(), indent=2, allow_nan=False))
        return
    print("\n".join(summary_lines(found.tables)))
    print(f"report: {report}")


@app.command(epilog="Example: entropy-lab audit runs/demo --method steer --method mine.py:loss")
def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run directory.")],
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME|FILE.py:CALLABLE[:KEY=VALUE,...]",
            help="A method of `entropy-lab list methods`, a class or object with plan(batch, "
            "stats, state), a policy loss with verl's arguments (old_log_prob, log_prob, "
            "advantages, response_mask, ...), or loss(batch, stats) -> scalar; repeatable. "
            "Without it, the run's own method.",
        ),
    ] = None,
    reference: Annotated[
        str, typer.Option(help="What every method is compared with, written as --method.")
    ] = "grpo",
    out: Annotated[Path | None, typer.Option(help="Where to write; default RUN/analysis.")] = None,
    replay: Annotated[
        bool,
        typer.Option(
            "--replay",
            help="Take each method's own real step from the run's replay points instead "
            "(train.replay_every keeps them); --method all: every method.",
        ),
    ] = False,
    inner: Annotated[int, typer.Option(help="Successive steps of a replay.")] = 1,
    points: Annotated[int, typer.Option(help="Replay points to use, evenly spread; 0: all.")] = 0,
    deep: Annotated[
        bool, typer.Option("--deep/--no-deep", help="Path forms and influence of replayed steps.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the tables as one JSON object.")
    ] = False,
) -> None:
    """What would another method have done to the tokens of this log?"""
    if replay:
        from entropy_lab.report.replayed import replay_and_report

        with train_extra():
            lines = replay_and_report(
                run, methods or [], reference, out, as_json, inner=inner, points=points, deep=deep
            )
        print("\n".join(lines))
        return
    from entropy_lab.analysis.audit import audit as examine
    from entropy_lab.report.audit import audit_lines

    found = examine(run, methods or [], reference=reference, out=out)
    if as_json:
        print(json.dumps(found.to_json(), indent=2, allow_nan=False))
        return
    print("\n".join(audit_lines(found.tables)))
    print(f"tables: {found.out / 'audit*.parquet'}")


app.command(
    "eval", epilog="Example: entropy-lab eval runs/demo --bench aime24.parquet math500.parquet -k 8"
)(evaluate)


@app.command(epilog="Example: entropy-lab plot quadrants --from runs/demo --out figures")
def plot(
    name: Annotated[
        str, typer.Argument(metavar="NAME|all", help="See `entropy-lab list figures`.")
    ],
    source: Annotated[
        list[Path],
        typer.Option(
            "--from", metavar="DIR", help="Analyzed run, or --out of analyze; repeatable."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for <name>.pdf and <name>.png.")],
) -> None:
    """Draw a figure from analysis tables."""
    from entropy_lab.plots import PLOTS, draw

    if name != "all":
        print("\n".join(str(path) for path in draw(name, source, out)))
        return
    skipped: list[EntropyLabError] = []
    for figure in PLOTS:
        try:
            print("\n".join(str(path) for path in draw(figure, source, out)))
        except EntropyLabError as error:
            skipped.append(error)
            print(f"skipped {figure}: {error}", file=sys.stderr)
    if len(skipped) == len(PLOTS):
        raise skipped[0]


@app.command(epilog="Example: entropy-lab doctor runs/demo")
def doctor(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run directory.")],
    model: Annotated[
        bool,
        typer.Option(
            "--model/--no-model", help="Score some rows again with the newest checkpoint."
        ),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as one JSON object.")
    ] = False,
) -> None:
    """Is this log believable? What was seen, what it means, what to do; exit code 1 if not."""
    from entropy_lab.analysis.doctor import doctor as examine
    from entropy_lab.record import open_run

    open_run(run).metrics()  # a wrong directory is an error, not a missing checkpoint
    checkpoint, why_not = _checkpoint(run) if model else (None, "--no-model")
    found = examine(run, checkpoint, why_not)
    print(json.dumps(found.to_json(), indent=2) if as_json else "\n".join(found.lines()))
    if not found.healthy:
        raise typer.Exit(1)


def _checkpoint(run: Path):
    """The newest checkpoint as `doctor` takes it, or why there is none."""
    from entropy_lab.analysis.doctor import Checkpoint

    if not (run / "checkpoints").is_dir():
        return None, "the run has no checkpoint"
    try:
        from entropy_lab.train.rescore import open_rescorer

        return Checkpoint(**open_rescorer(run)._asdict()), ""
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("entropy_lab"):
            raise
        return None, f"it needs {error.name}: pip install 'entropy-lab[train]'"
    except EntropyLabError as error:
        return None, str(error)


@app.command("import", epilog="Example: entropy-lab import prime-rl outputs/run --out runs/theirs")
def import_log(
    form: Annotated[str, typer.Argument(metavar="FORMAT", help=f"One of {', '.join(_FORMATS)}.")],
    source: Annotated[Path, typer.Argument(metavar="LOG", help="Folder (or file) of the log.")],
    out: Annotated[Path, typer.Option(help="Run directory to make.")],
    mapping: Annotated[
        Path | None, typer.Option("--map", help="generic: TOML that says which column is which.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of the logged log-probabilities; default 1.")
    ] = None,
) -> None:
    """Make a run directory of another trainer's log, with what that log contains."""
    from entropy_lab.adapters.importers import import_run

    found = import_run(form, source, out, mapping=mapping, temperature=temperature)
    print(
        f"{out}: {found['steps']} steps, {found['responses']:,} responses, "
        f"{found['tokens']:,} token rows\nit lacks {found['lacks']}\n"
        f"next: entropy-lab analyze {shlex.quote(str(out))}"
    )


class Registry(StrEnum):
    """What `list` can list."""

    METHODS = "methods"
    PREDICTORS = "predictors"
    FIGURES = "figures"
    TASKS = "tasks"


@app.command("list", epilog="Example: entropy-lab list methods")
def list_names(what: Annotated[Registry, typer.Argument(help="Which registry.")]) -> None:
    """List what can be named in settings and commands; methods with source and defaults."""
    from entropy_lab.report.listing import listing

    print("\n".join(listing(what.value)))
