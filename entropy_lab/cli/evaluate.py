"""The command eval."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from entropy_lab.cli.extra import train_extra
from entropy_lab.errors import ConfigError

FromRun = "default: the run's own, or"


def evaluate(
    target: Annotated[
        Path, typer.Argument(metavar="RUN|CHECKPOINT|MODEL", help="Whose policy is asked.")
    ],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="Further benchmark files.")
    ] = None,
    bench: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE...",
            help='Benchmark files: Parquet, JSON lines or folders, as task "data" reads them. '
            "Without any, what the run itself is evaluated on.",
        ),
    ] = None,
    k: Annotated[
        list[str] | None,
        typer.Option("-k", metavar="K[,K...]", help="The k of pass@k; repeatable."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help=f"Responses to each problem; {FromRun} the largest k.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help=f"{FromRun} 1.".capitalize())] = None,
    top_p: Annotated[float | None, typer.Option(help=f"{FromRun} 1.".capitalize())] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help=f"Of a response; {FromRun} 1024.")
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="One response a problem, of likeliest tokens.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help=f"{FromRun} 0.".capitalize())] = None,
    problems: Annotated[
        int | None,
        typer.Option(min=1, help="At most that many problems of each file; default: all."),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Responses drawn at a time; default: the run's rollout, or 64."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="How files are read (task.*) and graded (reward.*); reward.name=code runs "
            "programs against tests. Repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write; default RUN/eval, or evals/MODEL.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the numbers as one JSON object.")
    ] = False,
) -> None:
    """Ask a policy benchmark problems: avg@k and pass@k with intervals; continues where stopped."""
    from entropy_lab.report.evals import eval_lines

    with train_extra():
        from entropy_lab.train.eval_files import Asked, evaluate_files
    asked = Asked(
        benchmarks=(*(bench or ()), *(more or ())),
        ks=_numbers(k or []),
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        seed=seed,
        batch=batch,
        problems=problems,
        greedy=greedy,
        overrides=tuple(settings or ()),
    )
    with train_extra():
        found = evaluate_files(target, asked, out, _told)
    if as_json:
        print(json.dumps({"out": str(found.out), "rows": found.rows}, indent=2, allow_nan=False))
        return
    print("\n".join(eval_lines(found.rows)))
    print(f"numbers: {found.out / 'evals.parquet'}; responses: {found.out / 'answers'}")


def _numbers(texts: list[str]) -> tuple[int, ...]:
    found = [part.strip() for text in texts for part in text.split(",")]
    for part in found:
        if not part.isdecimal() or not int(part):
            raise ConfigError(f"-k takes whole numbers from 1, such as -k 1,8,32, not {part!r}")
    return tuple(map(int, found))


def _told(benchmark: str, done: int, total: int) -> None:
    end = "\r" if sys.stderr.isatty() and done < total else "\n"
    if sys.stderr.isatty() or done == total:
        print(f"{benchmark}: {done:,} of {total:,} responses", end=end, file=sys.stderr)
