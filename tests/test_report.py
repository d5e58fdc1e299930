"""The report: one file that loads nothing, escapes what runs say, and states the numbers."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from entropy_lab.analysis import analyze
from entropy_lab.analysis.tables import QUADRANTS
from entropy_lab.analysis.verdict import verdict
from entropy_lab.errors import RunError
from entropy_lab.plots.quadrants import LABELS
from entropy_lab.report import summary_lines, write_report
from entropy_lab.report.html import Raw, table
from entropy_lab.report.kinds import signs, strata
from synthetic import PLANTED, write_run

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, pd.DataFrame], Path]:
    path = tmp_path_factory.mktemp("report") / "run & <b>"
    write_run(path, steps=12, method=EVIL)
    found = analyze([path])
    report = write_report(found.tables, found.out, f"entropy-lab analyze {path}")
    return report.read_text(encoding="utf-8"), found.tables, report


class Outline(HTMLParser):
    """Tags that must be closed, in order, and every attribute that could load something."""

    VOID = {"meta", "img", "source", "br", "!doctype"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "srcset", "href", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_well_formed_and_loads_nothing(page) -> None:
    text, _, _ = page
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    inside = [link for link in outline.loads if link.startswith("#")]
    pictures = [link for link in outline.loads if link not in inside]
    assert pictures and all(link.startswith("data:image/") for link in pictures)
    assert inside and all(f'id="{link[1:]}"' in text for link in inside)
    assert outline.tags.count("script") == 1 and "link" not in outline.tags
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    assert not re.search(r"""(src|href|srcset)=["']?https?:""", text)


def test_only_the_page_s_own_script_may_run(page) -> None:
    text, _, _ = page
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.findall('Content-Security-Policy" content="([^"]*)"', text)
    assert policy == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    ]
    assert "innerHTML" not in script and "eval(" not in script and "document.write" not in script


def test_what_a_run_says_is_escaped(page) -> None:
    text, _, _ = page
    assert EVIL not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "run &amp; &lt;b&gt;" in text


def test_the_verdict_comes_first_and_the_command_last(page) -> None:
    text, _, _ = page
    places = [text.index(mark) for mark in ("Entropy collapsed", 'id="h-happened"', "<footer>")]
    assert places == sorted(places)
    assert "entropy-lab analyze" in text[places[-1] :]


def test_every_number_of_the_table_is_shown_with_its_interval(page) -> None:
    text, tables, _ = page
    rows = tables["validation"].query("scope == 'within_step' and stratum == 'all'")
    assert list(rows["predictor"]) == list(PLANTED)
    for _, r in rows.iterrows():
        shown = f"{r['pcc']:.2f} <small>[{r['pcc_lo']:.2f}, {r['pcc_hi']:.2f}]</small>"
        assert shown.replace("-", "−") in text
        ends = f"{100 * r['capture_lo']:.1f}, {100 * r['capture_hi']:.1f}"
        assert f"<td>{r['capture']:.1%} <small>[{ends}]</small></td>" in text
        assert r["capture_lo"] >= 0
    assert f"at most {rows['oracle'].max():.0%} can be held" in text


def test_the_table_of_strata_tells_lone_states_from_shared_ones(page) -> None:
    text, tables, _ = page
    row = tables["strata"].query("kind == 'states' and stratum == '1'").iloc[0]
    cells = text.split(">rows in the same state: 1</th>")[1].split("</tr>")[0]
    assert f"<td>{row['n']:,}</td><td>{row['pcc']:.2f}".replace("-", "−") in cells


def test_the_sign_of_every_form_stands_by_sign_region(page) -> None:
    text, tables, _ = page
    body = text.split("Is the sign right, by sign region")[1].split("</table>")[0]
    for name in QUADRANTS:
        cells = body.split(f">{html.escape(LABELS[name])}</th>")[1].split("</tr>")[0]
        place = tables["quadrants"].query("quadrant == @name and quantity == 'dH'").iloc[0]
        assert cells.startswith(f"<td>{place['n']:,}</td><td>{place['falls']:.0%}</td>")
        rows = tables["validation"].query("scope == 'within_step' and stratum == @name")
        for _, r in rows.iterrows():
            low, high = (f"{100 * r[k]:.0f}" for k in ("sign_lo", "sign_hi"))
            assert f"<td>{r['sign']:.0%} <small>[{low}, {high}]</small></td>" in cells


def test_kinds_of_tokens_under_two_floors_and_reversed_signs_are_marked(page) -> None:
    text, tables, _ = page
    assert "No noise floor was measured (probe.floor_every" in text
    rows = tables["validation"]
    rows = rows.assign(under_floor=0.2, pcc_lo=0.1, pcc_hi=0.3)
    at = rows["stratum"] == "neg_likely"
    rows.loc[at, ["under_floor", "pcc_lo", "pcc_hi"]] = [0.6, -0.3, -0.1]
    noisy = tables | {"validation": rows, "strata": tables["strata"].iloc[:0]}
    run = tables["summary"]["run"].item()
    table = strata(noisy, run, False)
    assert "<th scope=row class=t>neg_likely †</th>" in table and table.count("†") == 2
    assert "†: more than half of the rows have |dH| under two noise floors" in table
    assert table.count("‡") == len(PLANTED) + 1 and "the other sign than over all tokens" in table
    calm = strata(tables, run, False)
    assert "†" not in calm
    places = tables["quadrants"]
    under = places["quadrant"].map(lambda q: 0.9 if q == "zero" else 0.1)
    assert "A = 0 †" in signs(tables | {"quadrants": places.assign(under_floor=under)}, run, False)


def test_figures_lie_beside_the_report(page) -> None:
    _, _, report = page
    names = {p.name for p in (report.parent / "figures").iterdir()}
    for figure in ("predicted_vs_actual", "calibration", "entropy_reward", "quadrants", "regions"):
        assert {f"{figure}.pdf", f"{figure}.png"} <= names
    assert not list(report.parent.glob("*.tmp"))


def test_figures_follow_the_theme_and_printers_get_a_light_page(page) -> None:
    text, _, _ = page
    inline = re.findall('<svg class="figure".*?</svg>', text, re.DOTALL)
    assert len(inline) >= 4  # calibration, entropy_reward, quadrants, regions
    assert text.count('class="for-light"') == text.count('class="for-dark"') >= 1  # a raster
    used = {name for svg in inline for name in re.findall(r"var\((--k\d+)\)", svg)}
    light, dark, system, printed = (
        dict(re.findall(r"(--[a-z0-9-]+):(#[0-9a-f]{6})", text.split(mark)[1].split("}")[0]))
        for mark in (":root{", "[data-theme=dark]{", ":not([data-theme=light]){", "root:root{")
    )
    assert used and used <= light.keys() and light == printed and dark == system
    assert all(light[name] != dark[name] for name in used)
    labels = re.findall('<svg class="figure" role="img" aria-label="([^"]+)"', text)
    assert len(labels) == len(inline)


def test_warnings_stand_in_the_report(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=8, audit=5e-3)
    found = analyze([tmp_path / "run"])
    text = write_report(found.tables, found.out, "x").read_text()
    assert "gradient audit 5.0e-03 is above 1e-03" in text
    assert "only 3 probed steps" in text


def test_a_run_without_token_rows_still_gets_a_report(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=8, probed=False)
    found = analyze([tmp_path / "run"])
    text = write_report(found.tables, found.out, "x").read_text()
    assert "What happened" in text and "Needs token rows with a measured change" in text
    assert "Token rows were not read (--no-tokens)" in text
    assert any("no token rows" in line for line in summary_lines(found.tables))


def test_the_terminal_summary_is_about_ten_lines_with_the_best_first(page) -> None:
    _, tables, _ = page
    lines = summary_lines(tables)
    assert 8 <= len(lines) <= 14
    names = [line.split()[0] for line in lines]
    assert names.index("softmax_state") < names.index("steer") < names.index("cov")
    row = tables["validation"].query(
        "scope == 'within_step' and stratum == 'all' and predictor == 'cov'"
    )
    (line,) = (x for x in lines if x.startswith("cov "))
    assert f"{row['pcc'].item():.2f} [{row['pcc_lo'].item():.2f}" in line


@pytest.mark.parametrize(
    ("first", "last", "word"),
    [(0.5, 0.2, "collapsed"), (0.5, 0.4, "fell"), (0.5, 0.51, "held"), (0.5, 0.7, "rose")],
)
def test_the_verdict_names_what_entropy_did(first: float, last: float, word: str) -> None:
    nan = float("nan")
    summary = {"entropy_first": first, "entropy_last": last, "steps": 9,
               "reward_first": nan, "reward_last": nan}  # fmt: skip
    (line,) = verdict(summary, pd.DataFrame(), pd.DataFrame())
    assert line.startswith(f"Entropy {word}: {first:.3f} to {last:.3f} nats")
    assert "reward" not in line


@pytest.mark.parametrize(
    ("low", "slope", "expected"),
    [
        (0.95, 1.1, "Close to exact"),
        (0.75, 1.0, "Good"),
        (0.45, 40.0, "real changes are 40 times"),
        (0.25, -3.0, "of the opposite sign"),
        (0.05, 1.0, "Hardly any use"),
        (-0.05, 1.0, "Not distinguishable from no relation"),
    ],
)
def test_trust_follows_the_lower_end_of_the_interval(
    low: float, slope: float, expected: str
) -> None:
    validation = pd.DataFrame(
        [{"stratum": "all", "scope": "within_step", "predictor": "p", "pcc": low + 0.02,
          "pcc_lo": low, "pcc_hi": low + 0.04, "slope": slope}]
    )  # fmt: skip
    nan = float("nan")
    summary = {"entropy_first": nan, "entropy_last": nan, "steps": 9}
    lines = verdict(summary, validation, pd.DataFrame())
    assert lines[0] == "No entropy was logged in 9 steps."
    assert any(expected in line for line in lines[1:])


def test_a_kind_of_token_is_blamed_only_where_its_interval_is_clear_of_zero() -> None:
    nan = float("nan")
    summary = {"entropy_first": nan, "entropy_last": nan, "steps": 9}
    row = {"quantity": "dH", "share": 0.3, "contribution_lo": -3e-3, "contribution_hi": -1e-3}
    other = {**row, "quadrant": "zero", "contribution": 1e-4}
    sure = pd.DataFrame([{**row, "quadrant": "pos_likely", "contribution": -2e-3}, other])
    lines = verdict(summary, pd.DataFrame(), sure)
    assert "What lowers it most: likely tokens pushed up (A > 0), 30% of the tokens" in lines[-1]
    unsure = sure.assign(contribution_hi=1e-3)
    assert "No kind of token stands out" in verdict(summary, pd.DataFrame(), unsure)[-1]


def test_tables_escape_text_but_not_our_own_html() -> None:
    text = table(["a<b"], [[EVIL], [Raw("<b>1</b>")]])
    assert "a&lt;b" in text and EVIL not in text and "<b>1</b>" in text


def test_an_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=2, probed=False)
    found = analyze([tmp_path / "run"])
    (found.out / "report.html").mkdir()
    with pytest.raises(RunError, match="cannot write .*report.html"):
        write_report(found.tables, found.out, "x")
