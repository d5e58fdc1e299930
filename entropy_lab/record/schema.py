"""The columns of a run's Parquet files: names, types, units, meanings and encodings.

A column is born here; every field carries {unit, meaning} as Parquet metadata. Signs: dH > 0
means that entropy rose. Entropies and log-probabilities are in nats, per token, of
softmax(logits / temperature).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION = 1
ROW_GROUP_ROWS = 256 * 1024
FOOTER = "entropy_lab."  # prefix of our keys in the Parquet footer

Profile = Literal["core", "full"]
CORE_PREDICTORS = ("cov", "steer", "softmax", "softmax_state")
FULL_PREDICTORS = (*CORE_PREDICTORS, "steer_released", "discriminant")
SORT_KEYS = ("step", "micro", "uid", "pos")

_FLAGS = (
    "bits: 1 clipped high, 2 clipped low, 4 dual-clipped, 8 selected by the method, "
    "16 truncated response, 32 held out, 64 imported, 128 not scorable"
)
# name: (type, unit, meaning)
TOKEN_KEYS: dict[str, tuple[pa.DataType, str, str]] = {
    "step": (pa.int32(), "steps", "optimizer step"),
    "micro": (pa.int16(), "", "micro-batch within the step"),
    "uid": (pa.int64(), "", "response: rollout << 32 | prompt * G + sample"),
    "pos": (pa.int32(), "tokens", "response position that predicts token_id"),
    "token_id": (pa.int32(), "", "sampled token"),
    "state": (pa.int64(), "", "hash of the prompt and of the response tokens before pos"),
    "age": (pa.uint8(), "steps", "optimizer steps since the rollout"),
    "flags": (pa.uint8(), "", _FLAGS),
}
CORE_FLOATS: dict[str, tuple[str, str]] = {
    "advantage": ("", "advantage of the token"),
    "old_logp": ("nats", "log-probability under the policy that generated"),
    "logp": ("nats", "log-probability just before the step"),
    "entropy": ("nats", "entropy just before the step"),
    "weight": ("", "factor of the method on the token's policy-gradient loss"),
    "grad_logp": ("1/nats", "-dL/dlogp: above 0 the loss pushes the token up"),
    "dH": ("nats", "entropy after the step minus before, same rows and layout"),
}
FULL_FLOATS: dict[str, tuple[str, str]] = {
    "old_entropy": ("nats", "entropy of the policy that generated"),
    "rollout_logp": ("nats", "log-probability that the sampler itself reported"),
    "m0": ("", "sum of pi^2 over the vocabulary"),
    "m1": ("nats", "sum of pi^2 log pi over the vocabulary"),
    "m2": ("nats^2", "sum of pi^2 (log pi)^2 over the vocabulary"),
    "grad_entropy": ("1/nats", "-dL/dentropy"),
    "dlogp": ("nats", "log-probability after the step minus before"),
    "dH_float32": ("nats", "dH measured again in float32, a few responses a step; else null"),
}
# Logged on deep steps only, null elsewhere.
PATH_PREDICTORS = (
    "head",
    "last_block",
    "jvp",
    "second_order",
    "slope",
    "jvp_grad",
    "jvp_momentum",
    "jvp_decay",
)
DEEP_FLOATS: dict[str, tuple[str, str]] = {
    "slope_error": ("nats", "estimated error of dH_pred_slope, the two-point slope"),
    "influence": ("nats", "what the token's push added to the mean entropy in this step"),
    "influence_marginal": ("nats", "change of G.delta per unit of the token's weight"),
}
SAMPLE_COLUMNS: dict[str, tuple[pa.DataType, str, str]] = {
    "step": (pa.int64(), "steps", "first optimizer step of the rollout"),
    "rollout": (pa.int64(), "", "rollout number"),
    "group": (pa.int64(), "", "prompt group, the unit of the advantage"),
    "uid": (pa.int64(), "", "response: rollout << 32 | prompt * G + sample"),
    "prompt_id": (pa.int64(), "", "problem that the prompt states"),
    "reward": (pa.float32(), "", "reward of the response"),
    "accuracy": (pa.float32(), "", "how right the response is, before any shaping of the reward"),
    "note": (pa.string(), "", "why the reward is what it is, empty where nothing is to be said"),
    "advantage": (pa.float32(), "", "advantage of the response"),
    "length": (pa.int32(), "tokens", "response tokens, end token included"),
    "truncated": (pa.bool_(), "", "the response met the length limit"),
    "inclusion_prob": (pa.float32(), "", "chance that its tokens were logged; null: not trained"),
    "trained": (pa.bool_(), "", "has tokens in the loss; false: masked, or its group left out"),
    "minibatch": (pa.int32(), "", "optimizer step within the rollout, of its own loss"),
    "micro": (pa.int32(), "", "micro-batch within that step, with all rows of equal number"),
    "prompt_width": (pa.int32(), "tokens", "prompt columns of that micro-batch, padding included"),
    "response_width": (pa.int32(), "tokens", "its response columns, padding included"),
    "prompt": (pa.string(), "", "prompt text"),
    "response": (pa.string(), "", "response text"),
}
# Null where there is no spread over problems, and in files of versions before these columns.
EVAL_INTERVALS: dict[str, tuple[pa.DataType, str, str]] = {
    f"{name}_{end}": (pa.float64(), "", f"{end} end of the 95 % interval of {name} over problems")
    for name in ("avg_at_k", "pass_at_k")
    for end in ("lo", "hi")
}
EVAL_COLUMNS: dict[str, tuple[pa.DataType, str, str]] = {
    "benchmark": (pa.string(), "", "which problems: <task>_heldout, or the name of a file"),
    "step": (pa.int64(), "steps", "optimizer steps taken before the evaluation"),
    "n": (pa.int64(), "", "problems, the same ones in every evaluation"),
    "k": (pa.int64(), "", "responses of which one has to be right"),
    "avg_at_k": (pa.float64(), "", "share of right responses, over all samples"),
    "pass_at_k": (pa.float64(), "", "mean over problems of 1 - C(samples-c, k)/C(samples, k)"),
    "pass_at_k_se": (pa.float64(), "", "standard error of pass_at_k over problems, null for n = 1"),
    "temperature": (pa.float64(), "", "sampled at; 0: the likeliest token each time"),
    "top_p": (pa.float64(), "", "probability mass they were sampled from"),
    "max_tokens": (pa.int64(), "tokens", "length limit of a response"),
    "samples": (pa.int64(), "", "responses to each problem"),
    "entropy": (pa.float64(), "nats", "token mean of softmax(logits), at temperature 1"),
    **EVAL_INTERVALS,
}
# One row per response of an evaluation.
ANSWER_COLUMNS: dict[str, tuple[pa.DataType, str, str]] = {
    "problem": (pa.int64(), "", "number of the problem within its benchmark"),
    "sample": (pa.int64(), "", "number of the response to it"),
    "prompt_id": (pa.int64(), "", "problem that the prompt states"),
    "reward": (pa.float64(), "", "reward of the response"),
    "accuracy": (pa.float64(), "", "1 where the response is right"),
    "length": (pa.int32(), "tokens", "response tokens, end token included"),
    "truncated": (pa.bool_(), "", "the response met the length limit"),
    "entropy": (pa.float64(), "nats", "sum over its tokens of the entropy of softmax(logits)"),
    "data_source": (pa.string(), "", "where the problem is from, as its row says"),
    "prompt": (pa.string(), "", "prompt text"),
    "answer": (pa.string(), "", "ground truth"),
    "response": (pa.string(), "", "response text"),
}
# Few distinct values: a dictionary beats every other encoding. Anywhere else it costs time and
# bytes (five times slower and a third larger for floats).
_DICTIONARY = frozenset(
    {"micro", "age", "flags", "token_id", "advantage", "weight", "prompt", "reward"}
)
# One page per column and row group is a tenth smaller and faster than pyarrow's 20,000 rows;
# older versions have neither that limit nor the argument.
_LARGE_PAGES = (
    {"max_rows_per_page": ROW_GROUP_ROWS}
    if "max_rows_per_page" in inspect.signature(pq.write_table).parameters
    else {}
)


def profile_predictors(profile: Profile) -> tuple[str, ...]:
    """The closed forms that a profile logs as dH_pred_<name>; ValueError for another profile."""
    if profile not in ("core", "full"):
        raise ValueError(f"unknown profile {profile!r}: use 'core' or 'full'")
    return CORE_PREDICTORS if profile == "core" else FULL_PREDICTORS


def token_schema(
    profile: Profile = "core",
    predictors: Sequence[str] | None = None,
    extra: Sequence[str] = (),
    deep: bool = False,
    measured: Sequence[str] | None = None,
) -> pa.Schema:
    """The schema of tokens/: keys, floats, dH_pred_<name>, then `extra`, in this fixed order.

    deep adds the path forms and the columns of DEEP_FLOATS. `measured` keeps only these floats
    of the profile, for a log that another program made: a column that nobody measured is absent.

    `predictors` None means those of the profile; `extra` are names of further float32 columns.
    """
    names = profile_predictors(profile) if predictors is None else predictors
    fields = [_field(n, t, unit, meaning) for n, (t, unit, meaning) in TOKEN_KEYS.items()]
    floats = CORE_FLOATS | (FULL_FLOATS if profile == "full" else {})
    floats |= DEEP_FLOATS if deep else {}
    if measured is not None:
        floats = {name: said for name, said in floats.items() if name in measured}
    fields += [_field(n, pa.float32(), unit, meaning) for n, (unit, meaning) in floats.items()]
    for name in (*names, *(PATH_PREDICTORS if deep else ())):
        kind = "path form" if name in PATH_PREDICTORS else "closed form"
        meaning = f"dH that the {kind} {name!r} predicts"
        fields.append(_field(f"dH_pred_{name}", pa.float32(), "nats", meaning))
    fields += [_field(n, pa.float32(), "", "extra column") for n in extra]
    schema = pa.schema(fields)
    if len(set(schema.names)) != len(schema.names):
        raise ValueError(f"token columns occur twice: {sorted(schema.names)}")
    return schema


def sample_schema() -> pa.Schema:
    """The schema of samples/: one row per response; further columns may follow."""
    return pa.schema([_field(n, t, u, m) for n, (t, u, m) in SAMPLE_COLUMNS.items()])


def eval_schema() -> pa.Schema:
    """The schema of evals.parquet: one row for each k of an evaluation."""
    fields = [_field(n, t, u, m) for n, (t, u, m) in EVAL_COLUMNS.items()]
    return pa.schema(fields, {f"{FOOTER}schema_version": str(SCHEMA_VERSION)})


def answer_schema() -> pa.Schema:
    """The schema of the responses of an evaluation, one row each."""
    fields = [_field(n, t, u, m) for n, (t, u, m) in ANSWER_COLUMNS.items()]
    return pa.schema(fields, {f"{FOOTER}schema_version": str(SCHEMA_VERSION)})


def _field(name: str, dtype: pa.DataType, unit: str, meaning: str) -> pa.Field:
    return pa.field(name, dtype, metadata={"unit": unit, "meaning": meaning})


def user_field(name: str, dtype: pa.DataType) -> pa.Field:
    """The field of a column that the schema does not name (x_* and the like)."""
    return _field(name, dtype, "", "user column" if name.startswith("x_") else "extra column")


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """How a table of this schema is written: keyword arguments of pyarrow's write_table.

    zstd-1, BYTE_STREAM_SPLIT for floats, DELTA for integers but hashes, dictionaries only where
    values repeat, row groups of 256k rows.
    """
    encoding: dict[str, str] = {}
    for field in schema:
        if field.name in _DICTIONARY:
            continue
        if pa.types.is_float32(field.type) or pa.types.is_float64(field.type):
            encoding[field.name] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_integer(field.type) and field.name != "state":
            encoding[field.name] = "DELTA_BINARY_PACKED"
        else:
            encoding[field.name] = "PLAIN"
    return {
        "row_group_size": ROW_GROUP_ROWS,
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": [n for n in schema.names if n in _DICTIONARY],
        "column_encoding": encoding,
        # Only these prune row groups; minima of float columns would cost time for nothing.
        "write_statistics": [n for n in (*SORT_KEYS, "rollout") if n in schema.names],
        "write_page_checksum": True,
        **_LARGE_PAGES,
    }


def where_logged(name: str, known: Iterable[str]) -> str:
    """What a user can do about a token column that a run lacks, in one clause."""
    form = name.removeprefix("dH_pred_")
    if form != name and form in FULL_PREDICTORS:
        profile = "core" if form in CORE_PREDICTORS else "full"
        return f"profile '{profile}' logs it (or add {form!r} to the run's predictors)"
    if name in FULL_FLOATS:
        return "profile 'full' logs it"
    if name in DEEP_FLOATS or form in PATH_PREDICTORS:
        return "deep steps log it: set probe.deep_every"
    if name in CORE_FLOATS or name in TOKEN_KEYS:
        return "every profile logs it, so this log was imported from another program"
    return did_you_mean(name, known) or "no profile logs it; the user's own columns are named x_*"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest known name as a question, "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""
