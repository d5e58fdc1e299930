"""Logs of other trainers, made into run directories with what they contain.

Nothing is computed that was not measured: a log without entropies after the update gives no dH.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from entropy_lab.adapters.importers import (
    generic,
    nemo_rl,
    openrlhf,
    prime_rl,
    slime,
    verl_jsonl,
)
from entropy_lab.adapters.importers.response import (
    Response,
    sample_rows,
    step_means,
    token_rows,
)
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.record import RunWriter, create_run
from entropy_lab.record.schema import did_you_mean

# name: module with SOURCE, LACKS and read(folder[, mapping]) -> (step, responses) ascending.
FORMATS: dict[str, ModuleType] = {
    "prime-rl": prime_rl,
    "slime": slime,
    "nemo-rl": nemo_rl,
    "openrlhf": openrlhf,
    "verl": verl_jsonl,
    "generic": generic,
}


def import_run(
    form: str,
    source: Path | str,
    out: Path | str,
    *,
    mapping: Path | str | None = None,
    temperature: float | None = None,
) -> dict[str, Any]:
    """Make the run directory `out` of the log `source`, and say what it holds.

    Steps are numbered from 0 without gaps; `source_step` in metrics.jsonl is the log's own
    number. Every token row has flag 64 (imported). Returns {steps, responses, tokens, columns,
    lacks}. temperature: of the logged log-probabilities, 1 where nothing says otherwise.
    Raises ConfigError for an unknown format or a wrong mapping, RunError for what cannot be read
    (`out` is then absent, or left with status "failed").
    """
    if form not in FORMATS:
        hint = did_you_mean(form, FORMATS) or f"one of {', '.join(FORMATS)}"
        raise ConfigError(f"unknown format {form!r}: {hint}")
    if (mapping is None) == (form == "generic"):
        raise ConfigError("format 'generic' needs --map FILE.toml, and no other takes one")
    reader, source = FORMATS[form], Path(source)
    if form == "generic":
        rules = generic.read_mapping(Path(str(mapping)))
        steps: Iterable[tuple[int, list[Response]]] = generic.read(source, rules)
        temperature = rules.temperature if temperature is None else temperature
    else:
        steps = reader.read(source)
    told = {"format": form, "source": reader.SOURCE, "lacks": reader.LACKS}
    return _write(steps, Path(out), told, 1.0 if temperature is None else temperature)


def _write(
    steps: Iterable[tuple[int, list[Response]]], out: Path, told: dict[str, Any], temperature: float
) -> dict[str, Any]:
    iterator = iter(steps)
    first = next(iterator, None)  # a log that cannot be read leaves no directory behind
    if first is None:
        raise RunError("the log holds no step")
    config = {"run": {"name": out.name}}
    create_run(out, config, seeds={}, extra={"imported": told, "temperature": temperature})
    meta = {"temperature": str(temperature), "estimators": "", "imported": told["format"]}
    total = {"steps": 0, "responses": 0, "tokens": 0}
    columns = sorted({name for response in first[1] for name in response.columns})
    with RunWriter(out, meta=meta, profile="full", predictors=(), measured=columns) as writer:
        while first is not None:
            number, responses = first
            step = total["steps"]
            rows = token_rows(step, responses, columns)
            if rows is not None:
                writer.tokens(rows)
            writer.samples(sample_rows(step, responses))
            means = step_means(responses)
            shared = {"step": step, "rollout": step, "age": 0, "source_step": number}
            writer.step({**shared, **means, "n_probed": 0 if rows is None else len(rows["step"])})
            writer.commit({**shared, **means})
            total["steps"] += 1
            total["responses"] += len(responses)
            total["tokens"] += 0 if rows is None else len(rows["step"])
            first = next(iterator, None)
    return {**total, "columns": columns, "lacks": told["lacks"]}
