"""A run's responses and token numbers as the blobs that the token viewer reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from entropy_lab.analysis.tables import HELD_OUT, PREDICTOR_PREFIX
from entropy_lab.errors import RunError
from entropy_lab.record import Run, read_vocab
from entropy_lab.report.viewer.choose import SAMPLE_FIELDS, Choice, choose, survey
from entropy_lab.report.viewer.encode import halves, known, packed, packed_json, planes
from entropy_lab.report.viewer.quantities import QUANTILE, Quantity, kept_columns, quantities

BUDGET = 18_000_000  # characters of the page for one viewer
_PER_VALUE = 1.0  # characters a kept number takes at least; what deflates worse is packed again
_LONGEST_TOKEN = 160  # characters of a token
_LONGEST_TEXT = 20_000  # characters of a prompt or response
_STRONGEST = 40  # tokens named per quantity
_UID_BITS = 32

Slopes = Mapping[tuple[int, str], float]  # (step, predictor): least-squares factor of dH on it


@dataclass
class Packed:
    """meta: what the page reads first; blobs: element id -> packed text."""

    meta: dict[str, Any]
    blobs: dict[str, str]

    @property
    def size(self) -> int:
        return sum(map(len, self.blobs.values()))


def pack_run(run: Run, name: str, slopes: Slopes, budget: int = BUDGET) -> Packed:
    """Everything the viewer shows of a run, in at most about `budget` characters.

    Raises RunError where the run has no token rows of responses in its loss.
    """
    found = survey(run)
    if found.empty:
        raise RunError(f"{name} has no token rows of responses that were trained on")
    columns = kept_columns(run.columns("tokens"))
    seed = int((run.info.get("config") or {}).get("run", {}).get("seed") or 0)
    room = int(budget / (_PER_VALUE * (len(columns) + 1)))
    # Long runs log much that one page cannot hold; how far it deflates is seen afterwards.
    for _ in range(4):
        packed_run = _pack(run, name, choose(found, room, seed), columns, slopes)
        if packed_run.size <= budget or len(packed_run.meta["steps"]) == 0:
            break
        room = int(0.9 * min(room, packed_run.meta["tokens"]) * budget / packed_run.size)
    return packed_run


@dataclass
class _Vocabulary:
    """Token ids in the order they were met; the viewer keeps places in it."""

    place: dict[int, int] = field(default_factory=dict)

    def places(self, ids: np.ndarray) -> np.ndarray:
        unique, back = np.unique(ids, return_inverse=True)
        order = [self.place.setdefault(int(i), len(self.place)) for i in unique]
        return np.array(order, dtype=np.int64)[back]

    def blob(self, texts: list[str | None]) -> str:
        ids = list(self.place)
        known_texts = [texts[i] if 0 <= i < len(texts) else None for i in ids]
        return packed_json({"ids": ids, "texts": [_short_token(t) for t in known_texts]})


def _pack(run: Run, name: str, choice: Choice, columns: list[str], slopes: Slopes) -> Packed:
    responses = choice.responses
    menu = quantities(columns)
    vocabulary, best = _Vocabulary(), _Strongest(menu)
    steps, blobs = [], {}
    wanted = sorted(int(s) for s in responses["step"].unique())
    names = ["uid", "pos", "token_id", "flags", *columns]
    first = 0
    for step, table in run.iter_steps(names, wanted):
        rows = responses[responses["step"] == step]
        data = _ordered(table, rows["uid"].to_numpy())
        kept = [c for c in columns if np.isfinite(data[c]).any()]
        factor = {q.name: slopes.get((step, q.of.removeprefix(PREDICTOR_PREFIX)), np.nan)
                  for q in menu if q.of}  # fmt: skip
        best.add(first, rows["n"].to_numpy(), data, kept, factor)
        steps.append(
            {
                "step": step,
                "first": first,
                "responses": len(rows),
                "columns": kept,
                "regular": bool((data["pos"] == _counted(rows["n"].to_numpy())).all()),
                "slopes": {k: known(v) for k, v in factor.items()},
            }
        )
        blobs[f"step-{len(steps) - 1}"] = packed(_chunk(data, kept, vocabulary, steps[-1]))
        first += len(rows)
    blobs["responses"] = packed_json(_texts(run, responses, wanted))
    texts = read_vocab(run.path)
    blobs["vocabulary"] = vocabulary.blob(texts)
    menu = [q for q in menu if best.seen[q.name]]
    meta = {
        "run": name,
        "how": choice.how,
        "tokens": int(responses["n"].sum()),
        "responses": len(responses),
        "steps": steps,
        "quantities": [{**q.to_json(), "limit": known(best.limit(q))} for q in menu],
        "strongest": {q.name: best.rows(q) for q in menu},
        "named": bool(texts),
    }
    return Packed(meta, blobs)


def _ordered(table: pa.Table, uids: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of the rows in the loss of these responses, in their order, then by pos."""
    uid, flags = table["uid"].to_numpy(), table["flags"].to_numpy()
    place = pd.Series(np.arange(len(uids)), index=uids)
    at = place.reindex(uid).to_numpy()
    own = ((flags & HELD_OUT) == 0) & np.isfinite(at)
    order = np.flatnonzero(own)
    pos = table["pos"].to_numpy()
    order = order[np.lexsort((pos[order], at[order]))]
    return {c: table[c].to_numpy()[order] for c in table.column_names if c != "uid"}


def _counted(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([np.arange(n) for n in sizes]) if len(sizes) else np.zeros(0, int)


def _chunk(
    data: dict[str, np.ndarray], kept: list[str], vocabulary: _Vocabulary, step: dict[str, Any]
) -> bytes:
    """Planes of a step's tokens: columns, token places (3), flags (1), positions (3, if odd)."""
    parts = [halves(data[c]) for c in kept]
    parts += [planes(vocabulary.places(data["token_id"]), 3), planes(data["flags"], 1)]
    parts += [] if step["regular"] else [planes(np.clip(data["pos"], 0, 2**24 - 1), 3)]
    return b"".join(parts)


class _Strongest:
    """The tokens with the largest |x| of each quantity, and where its colours end."""

    def __init__(self, menu: list[Quantity]) -> None:
        self.menu = menu
        self.seen = dict.fromkeys((q.name for q in menu), False)
        self._best: dict[str, list[tuple[float, int, int]]] = {q.name: [] for q in menu}
        self._limits: dict[str, list[tuple[float, int]]] = {q.name: [] for q in menu}

    def add(
        self, first: int, sizes: np.ndarray, data: dict[str, np.ndarray], kept: list[str],
        slopes: dict[str, float],
    ) -> None:  # fmt: skip
        ends = np.cumsum(sizes)
        for q in self.menu:
            if (q.of or q.name) not in kept or (q.of and "dH" not in kept):
                continue
            x = np.abs(q.values(data, slopes.get(q.name, np.nan)) - (q.kind == "weight"))
            x = np.where(np.isfinite(x), x, -1.0)
            if x.max(initial=-1.0) < 0:
                continue
            self.seen[q.name] = True
            self._limits[q.name].append((float(np.quantile(x[x >= 0], QUANTILE)), len(x)))
            top = np.argsort(-x, kind="stable")[:_STRONGEST]
            response = np.searchsorted(ends, top, side="right")
            inside = top - (ends - sizes)[response]
            found = zip(x[top].tolist(), (first + response).tolist(), inside.tolist(), strict=True)
            self._best[q.name] += [f for f in found if f[0] > 0]
            self._best[q.name].sort(key=lambda f: (-f[0], f[1], f[2]))
            del self._best[q.name][_STRONGEST:]

    def limit(self, q: Quantity) -> float:
        """Mean over steps of the quantile of |x|, by tokens."""
        found = self._limits[q.name]
        return sum(v * n for v, n in found) / sum(n for _, n in found) if found else np.nan

    def rows(self, q: Quantity) -> list[list[int]]:
        """[response, token within it] of the strongest, the strongest first."""
        return [[response, token] for _, response, token in self._best[q.name]]


def _texts(run: Run, responses: pd.DataFrame, steps: list[int]) -> dict[str, Any]:
    """The columns of the table of responses, with their texts."""
    texts = _sample_texts(run, responses["uid"].to_numpy())
    prompts: dict[str, int] = {}
    at, said = [], []
    for uid in responses["uid"].tolist():
        prompt, response = texts.get(uid, (None, None))
        at.append(prompts.setdefault(_shortened(prompt) or "", len(prompts)))
        said.append(_shortened(response))
    group = responses.groupby("step")["group"].transform(lambda g: pd.factorize(g, sort=True)[0])
    uid = responses["uid"].to_numpy()
    return {
        "step": np.searchsorted(steps, responses["step"]).tolist(),
        "group": group.astype(int).tolist(),
        "uid": [f"{u >> _UID_BITS}:{u & (2**_UID_BITS - 1)}" for u in uid.tolist()],
        "n": responses["n"].astype(int).tolist(),
        **{name: [known(v) for v in responses[name]] for name in SAMPLE_FIELDS if name != "group"},
        "strength": [known(v) for v in responses["strength"]],
        "prompt": at,
        "response": said,
        "prompts": list(prompts),
    }


def _sample_texts(run: Run, uids: np.ndarray) -> dict[int, tuple[Any, Any]]:
    try:
        have = [c for c in ("prompt", "response") if c in run.columns("samples")]
    except RunError:
        return {}
    if not have:
        return {}
    chosen = ", ".join(map(str, uids.tolist()))
    lazy = run.samples(columns=["uid", *have], lazy=True)
    rows = lazy.filter(f"uid IN ({chosen})").fetchall()
    found = {}
    for uid, *texts in rows:
        named = dict(zip(have, texts, strict=True))
        found[uid] = (named.get("prompt"), named.get("response"))
    return found


def _short_token(text: str | None) -> str | None:
    if text is None or len(text) <= _LONGEST_TOKEN:
        return text
    return f"{text[:_LONGEST_TOKEN]}… [{len(text):,} characters]"


def _shortened(text: str | None) -> str | None:
    if text is None or len(text) <= _LONGEST_TEXT:
        return text
    more = len(text) - _LONGEST_TEXT
    return f"{text[:_LONGEST_TEXT]}… [{more:,} more characters are in the log]"
