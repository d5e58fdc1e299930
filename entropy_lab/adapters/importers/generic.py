"""Any Parquet or JSONL log, by a mapping file that says which of its columns is which.

layout = "responses"      # one row a response with lists; or "tokens": one row a token
step = "global_step"      # column that numbers the optimizer steps
response = "sample_id"    # tokens: the column that tells responses apart
entropy_is = "exact"      # of the full vocabulary; anything else is refused as entropy
[columns]                 # ours = theirs
token_id = "ids"
logp = "logprobs"
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from entropy_lab.adapters.importers.files import floats, integers, json_lines, number
from entropy_lab.adapters.importers.response import FLOATS, Response
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.record.schema import did_you_mean

SOURCE = "a Parquet or JSONL log by a mapping file"
LACKS = "what the mapping file does not name"
_PER_RESPONSE = ("reward", "group", "prompt", "response", "truncated", "prompt_tokens", "micro")
_NAMES = ("token_id", "mask", "flags", *_PER_RESPONSE, *FLOATS)
_KEYS = {"layout", "step", "response", "entropy_is", "temperature", "columns"}
# Where this share of "entropies" is the sampled token's -logp, they are no entropies.
_NLL_SHARE = 0.9


@dataclass(frozen=True)
class Mapping:
    """A checked mapping file."""

    layout: str
    step: str
    response: str | None
    columns: dict[str, str]
    temperature: float


def read_mapping(path: Path) -> Mapping:
    """The mapping file; ConfigError naming what is wrong with it."""
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the mapping {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for key in found.keys() - _KEYS:
        raise ConfigError(f"{path}: unknown key {key!r}; {did_you_mean(key, _KEYS) or 'see docs'}")
    columns = found.get("columns") or {}
    for name in columns.keys() - set(_NAMES):
        hint = did_you_mean(name, _NAMES) or f"known are {', '.join(_NAMES)}"
        raise ConfigError(f"{path}: [columns] has no {name!r}: {hint}")
    layout = found.get("layout", "responses")
    if layout not in ("responses", "tokens"):
        raise ConfigError(f"{path}: layout must be 'responses' or 'tokens', got {layout!r}")
    if layout == "tokens" and not found.get("response"):
        raise ConfigError(f"{path}: layout 'tokens' needs `response`, the column of the response")
    if "step" not in found:
        raise ConfigError(f"{path}: `step` must name the column of the optimizer step")
    entropies = [n for n in ("entropy", "old_entropy", "dH") if n in columns]
    if entropies and found.get("entropy_is") != "exact":
        raise ConfigError(
            f"{path}: {', '.join(entropies)} must be of the full vocabulary; say entropy_is = "
            '"exact" if so, and leave the columns out if they are sampled estimates (-logp, '
            "approx_entropy): an estimate is no entropy"
        )
    temperature = float(found.get("temperature", 1.0))
    return Mapping(layout, found["step"], found.get("response"), columns, temperature)


def read(folder: Path, mapping: Mapping) -> Iterator[tuple[int, list[Response]]]:
    """(step, responses) by step; RunError where a named column is missing or is no entropy."""
    steps: dict[int, list[dict[str, Any]]] = {}
    for path in _files(folder):
        for row in _rows(path):
            missing = [t for t in (mapping.step, *mapping.columns.values()) if t not in row]
            if missing:
                raise RunError(f"{path} has no column {missing[0]!r}; it has {', '.join(row)}")
            steps.setdefault(int(row[mapping.step]), []).append(row)
    for step, rows in sorted(steps.items()):
        if mapping.layout == "tokens":
            rows = _gathered(rows, mapping)
        found = [_response(row, mapping) for row in rows]
        _refuse_estimates(found, folder)
        yield step, found


def _files(folder: Path) -> list[Path]:
    every = [folder] if folder.is_file() else sorted(folder.rglob("*"))
    found = [p for p in every if p.suffix in (".parquet", ".jsonl") and p.is_file()]
    if not found:
        raise RunError(f"{folder} holds no .parquet and no .jsonl file")
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".jsonl":
        yield from json_lines(path)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=4096):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


def _gathered(rows: list[dict[str, Any]], mapping: Mapping) -> list[dict[str, Any]]:
    """One row with lists for each response, tokens in the order of the file."""
    assert mapping.response is not None
    parts: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        if mapping.response not in row:
            raise RunError(f"no column {mapping.response!r}; there are {', '.join(row)}")
        parts.setdefault(row[mapping.response], []).append(row)
    lone = {theirs for ours, theirs in mapping.columns.items() if ours in _PER_RESPONSE}
    names = list(mapping.columns.values())
    return [
        {n: part[0][n] if n in lone else [row[n] for row in part] for n in names}
        for part in parts.values()
    ]


def _response(row: dict[str, Any], mapping: Mapping) -> Response:
    has = {ours: row[theirs] for ours, theirs in mapping.columns.items() if row[theirs] is not None}
    tokens = integers(has["token_id"]) if "token_id" in has else None
    size = 0 if tokens is None else len(tokens)
    return Response(
        tokens=tokens,
        mask=np.asarray(has["mask"], bool) if "mask" in has else None,
        prompt_tokens=integers(has["prompt_tokens"]) if "prompt_tokens" in has else None,
        columns={n: _spread(has[n], size) for n in FLOATS if n in has} if size else {},
        flags=np.asarray(has["flags"], np.uint8) if "flags" in has else None,
        micro=int(has.get("micro", 0)),
        group=has.get("group"),
        reward=number(has.get("reward")),
        truncated=None if "truncated" not in has else bool(has["truncated"]),
        prompt=None if "prompt" not in has else str(has["prompt"]),
        response=None if "response" not in has else str(has["response"]),
    )


def _spread(values: Any, size: int) -> np.ndarray:
    if isinstance(values, (int, float)):  # one advantage for all tokens of a response
        return np.full(size, values, np.float32)
    return floats(values)


def _refuse_estimates(responses: list[Response], where: Path) -> None:
    """RunError where the entropies are the sampled tokens' own surprisals, or negative."""
    both = [r.columns for r in responses if {"entropy", "logp"} <= r.columns.keys()]
    if both:
        entropy = np.concatenate([c["entropy"] for c in both])
        logp = np.concatenate([c["logp"] for c in both])
        open_ = entropy > 1e-3
        same = np.isclose(entropy, -logp, rtol=1e-4, atol=1e-6)[open_]
        if len(same) > 20 and same.mean() > _NLL_SHARE:
            raise RunError(
                f"{where}: the column given as entropy is -logp on {same.mean():.0%} of the "
                "tokens: that is the sampled token's surprisal, no entropy of the policy"
            )
    for response in responses:
        low = np.nanmin([*response.columns.get("entropy", ()), 0.0])
        if low < -1e-3:
            raise RunError(f"{where}: entropy falls to {low:.3g} nats: an entropy is at least 0")
