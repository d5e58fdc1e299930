"""`entropy-lab audit`: how methods are named, its output, its mistakes, and methods with memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from entropy_lab import cli, load
from entropy_lab.analysis.audit import audit
from entropy_lab.analysis.audit.spec import candidate_of, parameters
from entropy_lab.analysis.audit_tables import AUDIT_TABLES
from entropy_lab.analysis.store import read_tables
from entropy_lab.errors import ConfigError, RunError
from entropy_lab.interventions import Grpo, make_method
from toy import Toy, adamw, run_loop

RUNNER = CliRunner()
LOSSES = """
def loss(batch, stats, scale=1.0):
    return -scale * (stats.logp * batch.advantage)[batch.mask].mean()

def required(batch, stats, scale):
    return loss(batch, stats, scale)

def three(batch, stats, other):
    return loss(batch, stats)

def strange(a, b, c, d):
    return a

def lacking(old_log_prob, log_prob, advantages, response_mask, ref_log_prob):
    return log_prob.mean()

number = 3
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "run"
    model = Toy()
    run_loop(model, adamw(model), path, steps=4, size=8)
    return path


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(LOSSES)
    return str(tmp_path / "mine.py")


def test_parameters_are_read_as_toml_with_bare_words() -> None:
    text = "a=0.5, b=linear,c=[1, 2],d='x, y',e=true,f=inf,g={h = 1, i = 2}"
    assert parameters("m", text) == {
        "a": 0.5, "b": "linear", "c": [1, 2], "d": "x, y", "e": True, "f": float("inf"),
        "g": {"h": 1, "i": 2},
    }  # fmt: skip
    assert parameters("m", "") == {}


def test_each_spelling_names_what_it_says(mine: str) -> None:
    found = candidate_of("steer:lambda_min=0.5,mapping=linear")
    assert found.kind == "registry"
    assert found.method == make_method("steer", lambda_min=0.5, mapping="linear")
    assert found.settings["lambda_min"] == 0.5 and found.settings["clip_high"] == 0.28
    found = candidate_of(f"{mine}:loss:scale=2.0")
    assert (found.kind, found.settings) == ("loss", {"scale": 2.0})
    found = candidate_of(f"{mine}:required:scale=2.0")
    assert (found.kind, found.settings) == ("loss", {"scale": 2.0})
    found = candidate_of("entropy_lab.interventions:Steer:lambda_min=0.6")
    assert found.kind == "intervention" and found.method == make_method("steer", lambda_min=0.6)
    assert candidate_of(make_method("grpo")).label == "grpo"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steeer", "unknown method 'steeer': did you mean steer"),
        ("steer:lambda=1", "steer has no parameter 'lambda': did you mean lambda_min"),
        ("steer:lambda_min=2.0", "steer: lambda_min = 2.0 is not valid"),
        ("steer:nonsense", "cannot read 'nonsense' in --method steer:nonsense: write NAME:key"),
        ("entropy_bonus", "entropy_bonus needs beta"),
        ("nowhere.py:loss", "no such file: nowhere.py"),
        ("no_such_module.here:loss", "cannot import 'no_such_module.here' for --method"),
        ("MINE", "names no callable: write"),
        ("MINE:los", "has no 'los': did you mean loss?"),
        ("MINE:number", "is 'int': a method is a class or object with plan, or a loss function"),
        ("MINE:strange", "takes (a, b, c, d): a method has plan(batch, stats, state), a loss"),
        ("MINE:three", "needs other: set it, as in FILE.py:loss:other=1"),
        ("MINE:required:factor=1", "has no parameter 'factor': Valid: scale"),
        ("MINE:loss:factor=1", "has no parameter 'factor'"),
        ("MINE:lacking", "takes 'ref_log_prob', which verl does not pass"),
    ],
)
def test_a_method_that_cannot_be_read_is_named(text: str, message: str, mine: str) -> None:
    with pytest.raises(ConfigError) as caught:
        candidate_of(text.replace("MINE", mine))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(ConfigError, match=r"cannot load .*broken.py: SyntaxError"):
        candidate_of(f"{tmp_path / 'broken.py'}:f")
    (tmp_path / "helper.py").write_text("FACTOR = 2.0\n")
    (tmp_path / "uses.py").write_text(
        "from helper import FACTOR\ndef f(batch, stats):\n    return FACTOR * stats.logp.mean()\n"
    )
    assert candidate_of(f"{tmp_path / 'uses.py'}:f").kind == "loss"


def test_the_command_prints_a_block_a_method_and_writes_the_tables(
    run: Path, mine: str, tmp_path: Path
) -> None:
    arguments = ["audit", str(run), "--method", "steer", "--method", f"{mine}:loss", "--out",
                 str(tmp_path / "out")]  # fmt: skip
    result = RUNNER.invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith("run: 184 training tokens of 4 probed steps")
    assert "steer" in lines and f"{mine}:loss" in lines
    assert lines[-1] == f"tables: {tmp_path / 'out' / 'audit*.parquet'}"
    assert all(len(line) < 240 for line in lines)
    for name, columns in AUDIT_TABLES.items():
        schema = pq.read_schema(tmp_path / "out" / f"{name}.parquet")
        assert schema.names == list(columns)
        assert all(field.metadata[b"meaning"] for field in schema)
    again = read_tables([tmp_path / "out"], ["audit"])["audit"]
    assert list(again["method"]) == ["run", "steer", f"{mine}:loss", "grpo"]


def test_json_is_json_alone(run: Path, tmp_path: Path) -> None:
    arguments = ["audit", str(run), "--method", "steer", "--json", "--out", str(tmp_path)]
    result = RUNNER.invoke(cli.app, arguments)
    data = json.loads(result.output)
    assert set(data) == {"run", *AUDIT_TABLES}
    assert [row["method"] for row in data["audit"]] == ["run", "steer", "grpo"]
    assert data["audit"][2]["explained"] is None or 0 <= data["audit"][2]["explained"] <= 1


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["audit", "nowhere"], 1, "error: nowhere does not exist"),
        (["audit"], 2, "RUN_DIR"),
        (["audit", "RUN"], 2, "does not say which method made it: name what to audit"),
        (["audit", "RUN", "--method", "grpoo"], 2, "error: unknown method 'grpoo'"),
        (["audit", "RUN", "--method", "steer", "--method", "steer"], 2, "steer is named twice"),
        (["audit", "RUN", "--method", "steer", "--reference", "x.py:f"], 2, "no such file: x.py"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(
    arguments: list[str], code: int, text: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([str(run) if word == "RUN" else word for word in arguments]) == code
    output = capsys.readouterr()
    assert text in output.err and "Traceback" not in output.err and not output.out
    if text.startswith("error:"):
        assert len(output.err.splitlines()) == 1


def test_help_has_an_example() -> None:
    result = RUNNER.invoke(cli.app, ["audit", "--help"])
    assert "Example: entropy-lab audit" in " ".join(result.output.split())


def test_a_missing_audit_table_names_its_command(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no audit.parquet: make it with `entropy-lab audit"):
        read_tables([tmp_path], ["audit"])


# --- methods with a memory --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Counting(Grpo):
    """Halves its weight with every step; notes what it is called with."""

    name: ClassVar[str] = "counting"
    calls: list[tuple[Any, ...]] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:  # the list is no setting
        pass

    def initial_state(self) -> dict[str, float]:
        return {"steps": 0.0}

    def begin_rollout(self, batch, stats, state):
        self.calls.append(("begin", batch.mask.sum().item(), dict(state)))
        assert torch.equal(stats.logp, batch.old_logp)
        return {**state, "tokens": float(batch.mask.sum())}

    def plan(self, batch, stats, state=None):
        assert state is not None
        self.calls.append(("plan", batch.step, dict(state)))
        return self._plan(weight=0.5 ** state["steps"])

    def end_step(self, batch, stats, state):
        self.calls.append(("end", batch.step, dict(state)))
        assert stats.logp.shape == batch.mask.shape
        return {**state, "steps": state["steps"] + 1}


def test_the_hooks_run_in_the_order_of_training(run: Path, tmp_path: Path) -> None:
    method = Counting()
    found = audit(run, [method], out=tmp_path)
    tokens = load(run).tokens().groupby("step").size()
    # Planning the step again in parts repeats the call.
    own = list(dict.fromkeys(repr(c) for c in method.calls))
    expected = []
    seen = {"steps": 0.0}
    for step in range(4):  # every step of this loop is a rollout of its own
        expected.append(("begin", int(tokens[step]), dict(seen)))
        seen["tokens"] = float(tokens[step])
        expected += [("plan", step, dict(seen)), ("end", step, dict(seen))]
        seen["steps"] += 1.0
    assert own == [repr(c) for c in expected]
    # c is that of GRPO, halved with every step.
    assert found.tables["audit"].loc[1, "distance"] > 0.3
    assert pd.isna(found.tables["audit"].loc[1, "omega_peak"])


def test_a_memory_with_gaps_is_said(tmp_path: Path) -> None:
    model = Toy()
    run_loop(model, adamw(model), tmp_path / "run", steps=4, size=8, every=3)
    found = audit(tmp_path / "run", [Counting(), "steer"], out=tmp_path / "out").tables["audit"]
    notes = found.set_index("method")["notes"]
    assert notes["Counting"] == "its memory skips the steps that were not probed"
    assert "memory" not in notes["steer"]
