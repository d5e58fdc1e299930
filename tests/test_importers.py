"""Logs of other trainers: what they hold comes back value by value, what they lack is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import foreign_logs
from entropy_lab import cli, load
from entropy_lab.adapters.importers import FORMATS, import_run
from entropy_lab.analysis import analyze
from entropy_lab.analysis.audit import audit
from entropy_lab.analysis.doctor import doctor
from entropy_lab.errors import ConfigError, EntropyLabError, RunError
from entropy_lab.report import write_report
from entropy_lab.train.launch import run_training
from tiny import TINY

NAMES = ("steer", "quadrant", "entropy_bonus")
KEYS = ["step", "pos", "token_id", "advantage", "old_logp"]
# What is compared, value by value, of each format that logs tokens.
COLUMNS = {
    "prime-rl": [*KEYS, "micro", "logp", "entropy"],
    "slime": [*KEYS, "logp", "entropy"],
    "nemo-rl": [*KEYS, "logp"],
    "openrlhf": [*KEYS, "logp", "entropy"],
    "generic": [*KEYS, "logp", "entropy", "dH"],
}
WRITERS = {
    "prime-rl": foreign_logs.prime_rl,
    "slime": foreign_logs.slime,
    "nemo-rl": foreign_logs.nemo_rl,
    "openrlhf": foreign_logs.openrlhf,
    "generic": foreign_logs.generic_tokens,
    "verl": foreign_logs.verl,
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step a rollout, so that logp is old_logp and the entropy that of both policies."""
    more = ["train.rollouts=4", "train.checkpoint_every=0", "rollout.prompts=8"]
    out = tmp_path_factory.mktemp("ours") / "run"
    return run_training(None, [*TINY, *more, "train.minibatches=1"], out)


@pytest.fixture(scope="module")
def imported(ours: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("theirs")
    runs = {}
    for name, write in WRITERS.items():
        log = write(ours, root / f"{name}-log")
        mapping = log / "map.toml" if name == "generic" else None
        runs[name] = root / name
        found = import_run(name, log, runs[name], mapping=mapping)
        assert found["steps"] == 4
    return runs


@pytest.mark.parametrize("name", COLUMNS)
def test_rows_come_back_as_they_were(name: str, ours: Path, imported: dict[str, Path]) -> None:
    foreign_logs.equal_rows(ours, imported[name], COLUMNS[name])
    samples = load(imported[name]).samples()
    expected = [float(s["reward"]) for _, s, _ in foreign_logs.responses(ours)]
    np.testing.assert_array_equal(samples["reward"], np.float32(expected))


@pytest.mark.parametrize("name", ["prime-rl", "slime", "nemo-rl", "openrlhf", "generic"])
def test_prompt_groups_are_those_of_the_prompts(
    name: str, ours: Path, imported: dict[str, Path]
) -> None:
    expected = pd.Series([(step, s["prompt_id"]) for step, s, _ in foreign_logs.responses(ours)])
    found = load(imported[name]).samples()["group"]
    pairs = pd.DataFrame({"a": pd.factorize(expected)[0], "b": pd.factorize(found)[0]})
    if name == "generic":  # it names our own groups: two may state one problem
        assert pairs.groupby("b")["a"].nunique().max() == 1
    else:
        assert (pairs["a"] == pairs["b"]).all()


def test_equal_states_have_equal_hashes_and_entropies(imported: dict[str, Path]) -> None:
    rows = load(imported["prime-rl"]).tokens(step=0)
    spread = rows.groupby("state")["entropy"].agg(["size", "min", "max"])
    assert (spread["size"] > 1).any() and (spread["max"] - spread["min"]).max() < 1e-4


def test_slimes_older_form_gives_the_same_run(ours: Path, tmp_path: Path) -> None:
    import_run("slime", foreign_logs.slime(ours, tmp_path / "log", version=1), tmp_path / "run")
    foreign_logs.equal_rows(ours, tmp_path / "run", COLUMNS["slime"])


def test_clip_flags_of_prime_rl_are_kept(imported: dict[str, Path]) -> None:
    rows = load(imported["prime-rl"]).tokens()
    assert ((rows["flags"] & 1 > 0) == (rows["pos"] == 0)).all()


@pytest.mark.parametrize("name", WRITERS)
def test_analysis_report_and_doctor_take_what_is_there(
    name: str, imported: dict[str, Path], tmp_path: Path
) -> None:
    found = doctor(imported[name])
    assert found.healthy, "\n".join(found.lines())
    result = analyze([imported[name]], tmp_path / "analysis")
    write_report(result.tables, result.out, "entropy-lab analyze")
    summary = result.tables["summary"].iloc[0]
    assert np.isfinite(summary["reward_first"])
    assert np.isfinite(summary["entropy_first"]) == (name not in ("nemo-rl", "verl"))
    told = "\n".join(result.tables["warnings"]["text"])
    assert (f"lacks {FORMATS[name].LACKS}" in told) == (name != "generic")
    assert "nan" not in "\n".join(summary["verdict"].split()).lower()


def test_methods_are_audited_on_an_imported_log(ours: Path, imported: dict[str, Path]) -> None:
    """c of steer and of grpo differ as on the run itself."""
    tables = []
    for run in (ours, imported["prime-rl"], imported["generic"]):
        found = audit(run, ["steer", "quadrant", "entropy_bonus:beta=0.05"], out=run / "audit")
        table = found.tables["audit"].set_index("method")
        tables.append(table.loc[[m for m in table.index if m.startswith(NAMES)], "distance"])
    for other in tables[1:]:
        np.testing.assert_allclose(other, tables[0], rtol=1e-5)


def test_an_audit_without_entropies_says_what_the_log_lacks(imported: dict[str, Path]) -> None:
    with pytest.raises(RunError, match="no token column 'entropy'.*approx_entropy"):
        audit(imported["nemo-rl"], ["steer"])


def test_the_command(ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = foreign_logs.prime_rl(ours, tmp_path / "log")
    out = tmp_path / "theirs"
    assert cli.run(["import", "prime-rl", str(log), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "4 steps" in said and "it lacks dH" in said and f"analyze {out}" in said
    assert cli.run(["import", "prime-rl", str(log), "--out", str(out)]) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert cli.run(["import", "primerl", str(log), "--out", str(tmp_path / "x")]) == 2
    assert "did you mean 'prime-rl'" in capsys.readouterr().err
    assert cli._FORMATS == tuple(FORMATS)


class Opener:
    def __reduce__(self):  # what a hostile pickle would run
        return (open, ("ran.txt", "w"))


def broken(name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    line = {"token_ids": [1, 2, 3], "loss_mask": [False, True, True], "trainer_logprobs": [0.0, -1]}
    if name == "json":
        (folder / "train_data_step1.jsonl").write_text("{}\nnot json\n")
    elif name == "lengths":
        (folder / "step_1").mkdir()
        (folder / "step_1" / "rank_0.jsonl").write_text(json.dumps(line) + "\n")
    elif name == "positive":
        (folder / "step_1").mkdir()
        line["trainer_logprobs"] = [0.0, 0.2, 1.1]
        (folder / "step_1" / "rank_0.jsonl").write_text(json.dumps(line) + "\n")
    elif name == "field":
        (folder / "1.jsonl").write_text('{"input": "a", "score": 1}\n')
    elif name == "pickle":
        torch.save({"samples": [Opener()]}, folder / "train_1_0.pt")
    elif name == "kind":
        torch.save([1, 2], folder / "train_1_0.pt")


@pytest.mark.parametrize(
    ("name", "form", "words"),
    [
        ("json", "nemo-rl", r"line 2 is no JSON"),
        ("lengths", "prime-rl", r"logp has shape \(1,\) beside 2 response tokens"),
        ("positive", "prime-rl", r"logp reaches 1.1: a log-probability is at most 0"),
        ("field", "verl", r"lacks 'output'; it has input, score"),
        ("pickle", "slime", r"could run code"),
        ("kind", "slime", r"no slime dump: it holds a list"),
        ("empty", "slime", r"does not exist"),
        ("json", "verl", r"holds no file that matches"),
    ],
)
def test_a_log_that_cannot_be_read_is_named_and_leaves_no_run(
    name: str, form: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name != "empty":
        broken(name, tmp_path / "log")
    with pytest.raises(RunError, match=words):
        import_run(form, tmp_path / "log", tmp_path / "run")
    assert not (tmp_path / "run").exists() and not (tmp_path / "ran.txt").exists()


def test_a_torn_last_line_is_left_out(ours: Path, tmp_path: Path) -> None:
    log = foreign_logs.verl(ours, tmp_path / "log")
    last = sorted(log.iterdir())[-1]
    last.write_bytes(last.read_bytes()[:-20])
    whole = len(foreign_logs.responses(ours))
    assert import_run("verl", log, tmp_path / "run")["responses"] == whole - 1


MAP = 'layout = "responses"\nstep = "s"\nentropy_is = "exact"\n[columns]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('step = "s"\n[columns]\nentropy = "h"\n', "full vocabulary; say entropy_is"),
        ('step = "s"\nlayuot = "tokens"\n', "unknown key 'layuot'; did you mean 'layout'"),
        (MAP + 'entrpy = "h"\n', r"no 'entrpy': did you mean 'entropy'"),
        ('layout = "tokens"\nstep = "s"\n', "needs `response`"),
        ("[columns]\n", "`step` must name"),
        ('layout = "rows"\nstep = "s"\n', "'responses' or 'tokens', got 'rows'"),
        ("step = \n", "not valid TOML"),
    ],
)
def test_a_wrong_mapping_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text(text)
    (tmp_path / "log.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=words):
        import_run("generic", tmp_path / "log.jsonl", tmp_path / "r", mapping=tmp_path / "map.toml")


@pytest.mark.parametrize(
    ("entropy", "words"),
    [("surprisal", "-logp on 100% of the tokens"), ("negative", "falls to -0.5 nats")],
)
def test_an_estimate_is_refused_as_entropy(entropy: str, words: str, tmp_path: Path) -> None:
    logp = [-0.1 * i for i in range(1, 40)]
    values = [-x for x in logp] if entropy == "surprisal" else [-0.5] + [1.0] * 38
    row = {"s": 0, "ids": list(range(39)), "lp": logp, "h": values, "r": 1.0}
    (tmp_path / "log.jsonl").write_text(json.dumps(row) + "\n")
    text = MAP + 'token_id = "ids"\nlogp = "lp"\nentropy = "h"\nreward = "r"\n'
    (tmp_path / "map.toml").write_text(text)
    with pytest.raises(RunError, match=words):
        import_run("generic", tmp_path / "log.jsonl", tmp_path / "r", mapping=tmp_path / "map.toml")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"s": 0, "ids": [1]}\n')
    (tmp_path / "map.toml").write_text(MAP + 'token_id = "tokens"\n')
    with pytest.raises(EntropyLabError, match="no column 'tokens'; it has s, ids"):
        import_run("generic", tmp_path / "log.jsonl", tmp_path / "r", mapping=tmp_path / "map.toml")


def test_generic_needs_a_mapping_and_no_other_format_takes_one(tmp_path: Path) -> None:
    for form, mapping in (("generic", None), ("slime", tmp_path / "map.toml")):
        with pytest.raises(ConfigError, match="needs --map"):
            import_run(form, tmp_path, tmp_path / "r", mapping=mapping)
