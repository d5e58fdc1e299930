"""The report and its token viewer in headless Chromium, opened from disk (make test-browser)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import Page, axe_source, chromium, why_not
from entropy_lab import load
from entropy_lab.analysis import analyze
from entropy_lab.record import read_vocab
from entropy_lab.report import write_report
from entropy_lab.report.figures import Figures
from entropy_lab.types import HELD_OUT
from tiny import TINY
from viewer_runs import write_texts

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def report_of(path: Path) -> Path:
    found = analyze([path])
    return write_report(found.tables, found.out, f"entropy-lab analyze {path}", read_runs=True)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run directory, report) of the real trainer on a tiny model."""
    from entropy_lab.train.launch import run_training

    out = tmp_path_factory.mktemp("real") / "run"
    run_training(None, [*TINY, "probe.deep_every=3"], out)
    return out, report_of(out)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The viewer alone is looked at: nothing is drawn."""
    monkeypatch.setattr(Figures, "html", lambda *_: "")


def number(shown: str) -> float:
    """A number as the page writes it."""
    digits, _, power = shown.strip().replace("−", "-").replace("+", "").partition("×10")
    raised = power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    return float(digits) * 10.0 ** int(raised or 0)


def panel(page: Page) -> dict[str, str]:
    rows = page.texts("#tv-panel tbody tr")
    heads, values = page.texts("#tv-panel tbody th"), page.texts("#tv-panel tbody td:nth-child(2)")
    assert len(rows) == len(heads) == len(values)
    return dict(zip(heads, values, strict=True))


def test_every_number_of_a_token_is_that_of_the_log(browser, real) -> None:
    run = load(real[0])
    rows = run.tokens(step=3).query(f"flags < {HELD_OUT}").sort_values(["uid", "pos"])
    page = Page(browser, real[1])
    page.open_viewer()
    go = "n => {n.value = 3; n.dispatchEvent(new Event('change'))}"
    page.tab.eval_on_selector("#tv-step", go)
    page.wait_for("#tv-title", "Step 3,")
    first = rows[rows["uid"] == rows["uid"].min()]
    assert len(page.texts("#tv-card-0 ~ .tv-tokens [data-token]")) == len(first)
    page.tab.hover("#tv-card-0 ~ .tv-tokens [data-token='1']")
    found = panel(page)
    row = first.iloc[1]
    for label, column in (
        ("dH, measured", "dH"),
        ("entropy before the step", "entropy"),
        ("predicted by jvp", "dH_pred_jvp"),
        ("predicted by cov", "dH_pred_cov"),
        ("influence", "influence"),
        ("influence_marginal", "influence_marginal"),
        ("c = −∂L/∂logp", "grad_logp"),
        ("weight", "weight"),
    ):
        assert number(found[label]) == pytest.approx(row[column], rel=0.01), label
    assert found["token id"] == str(int(row["token_id"]))
    word = read_vocab(real[0])[int(row["token_id"])]
    assert page.texts("#tv-panel .tv-word") == [word]
    assert page.complaints == []


def test_colours_have_the_sign_of_the_change_and_the_legend_its_size(browser, real) -> None:
    rows = load(real[0]).tokens(step=0).query(f"flags < {HELD_OUT}").sort_values(["uid", "pos"])
    first = rows[rows["uid"] == rows["uid"].min()]
    page = Page(browser, real[1])
    page.open_viewer()
    spans = page.tab.query_selector_all("#tv-card-0 ~ .tv-tokens [data-token]")
    for span, change in zip(spans, first["dH"], strict=True):
        assert ("rise" in span.get_attribute("class")) == (change > 0)
        assert ("fall" in span.get_attribute("class")) == (change < 0)
    page.tab.select_option("#tv-scale", "step")
    limit = rows["dH"].abs().sort_values().iloc[int(0.98 * len(rows))]
    marks = page.texts("#tv-legend .marks span")
    assert number(marks[-1]) == pytest.approx(limit, rel=0.02) and marks[1] == "0"
    assert number(marks[0]) == -number(marks[-1])
    assert "nats" in page.texts("#tv-legend .about")[0]


def test_the_keyboard_reaches_all_of_it(browser, real) -> None:
    page = Page(browser, real[1])
    tab = page.tab
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the verdict"
    page.open_viewer()
    tab.focus("#tv-list")
    tab.keyboard.press("ArrowDown")
    page.wait_for("#tv-title", "group 2")
    assert tab.get_attribute("#tv-list", "aria-activedescendant") == "tv-list-1"
    tab.focus("#tv-card-0 ~ .tv-tokens [data-token='0']")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.dataset.token") == "1"
    assert page.texts("#tv-panel tbody td")[0] == "1"
    tab.keyboard.press("End")
    last = tab.evaluate("document.activeElement.dataset.token")
    assert int(last) == len(page.texts("#tv-card-0 ~ .tv-tokens [data-token]")) - 1
    tab.keyboard.press("Tab")  # out of a response in one step, into the next
    assert tab.evaluate("document.activeElement.closest('.tv-card h4, .tv-card')") is not None
    assert page.complaints == []


def test_search_filter_order_and_the_strongest_tokens(browser, real) -> None:
    run = load(real[0])
    samples = run.samples()
    page = Page(browser, real[1])
    tab = page.tab
    page.open_viewer()
    word = str(samples[samples["step"] > 0]["prompt"].iloc[0])
    tab.check("#tv-everywhere")
    tab.fill("#tv-search", word)
    page.wait_for("#tv-count", "found")
    held = samples[samples["prompt"].str.contains(word, regex=False)
                   | samples["response"].str.contains(word, regex=False)]  # fmt: skip
    groups = held.groupby(["rollout", "group"]).ngroups
    assert page.texts("#tv-count")[0].startswith(f"{groups} group")
    tab.fill("#tv-search", "")
    tab.select_option("#tv-filter", "unequal")
    spread = samples.groupby(["rollout", "group"])["reward"].nunique().gt(1).sum()
    page.wait_for("#tv-count", f"{spread} group")
    tab.click(".tv-strongest summary")
    tab.select_option("#tv-range", "run")
    rows = run.tokens().query(f"flags < {HELD_OUT}")
    strongest = rows.loc[rows["dH"].abs().idxmax()]
    tab.click("#tv-strongest li:first-child button")
    page.until("document.activeElement.dataset.token !== undefined")
    assert number(panel(page)["dH, measured"]) == pytest.approx(strongest["dH"], rel=0.01)
    assert f"Step {int(strongest['step'])}," in page.texts("#tv-title")[0]
    assert page.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser, real, scheme: str) -> None:
    source = axe_source()
    page = Page(browser, real[1], scheme=scheme)
    page.open_viewer()
    page.tab.click("#tv-card-0 ~ .tv-tokens [data-token='0']")
    page.tab.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
    assert page.serious(source) == []


def test_the_switch_changes_the_theme_and_the_figures(browser, real) -> None:
    page = Page(browser, real[1])
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.tab.evaluate(paper) == "rgb(255, 255, 255)"
    fill = "getComputedStyle(document.querySelector('svg.figure [style*=\"var(--k\"]')).fill"
    light = page.tab.evaluate(fill)
    page.tab.select_option("#theme", "dark")
    assert page.tab.evaluate(paper) == "rgb(22, 25, 29)"
    assert page.tab.evaluate(fill) != light
    page.tab.emulate_media(media="print")
    assert page.tab.evaluate(paper) == "rgb(255, 255, 255)"
    assert page.tab.evaluate(fill) == light


def test_it_loads_nothing_and_fits_narrow_windows(browser, real) -> None:
    for width in (1280, 400):
        page = Page(browser, real[1], width=width)
        page.open_viewer()
        assert page.overflows() <= 0
        assert page.requests == [real[1].resolve().as_uri()]
        assert page.complaints == []
        words = page.tab.evaluate("document.querySelector('main').innerText")
        for bad in ("NaN", "undefined", "null", "None", "Infinity", "[object"):
            assert bad not in words, bad


HOSTILE = [
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "\"'`&amp;&lt;<!--",
    "\u202egnol\u202c \u2066x\u2069 \u200f",
    "a\x00b\x07c",
    "x" * 100_000,
    "",
    "\ud800",
    "{{constructor}} ${window.pwned = 1} %00",
]


def test_hostile_texts_are_shown_as_text(browser, tmp_path: Path, no_figures) -> None:
    # Lone surrogates fit no Parquet text, but a vocabulary holds them.
    texts = [t.replace("\ud800", "?") for t in HOSTILE]
    responses = [(text, text, list(range(len(HOSTILE)))) for text in texts for _ in range(2)]
    write_texts(tmp_path / "<img src=x onerror=window.pwned=1>", responses, HOSTILE)
    (run,) = tmp_path.iterdir()
    page = Page(browser, report_of(run))
    page.open_viewer()
    for i in range(len(HOSTILE)):
        page.tab.focus(f"#tv-card-1 ~ .tv-tokens [data-token='{i}']")
    words = page.texts("#tv-card-1 ~ .tv-tokens [data-token]")
    assert words[:3] == HOSTILE[:3]
    assert words[3] == "⟨U+202E⟩gnol⟨U+202C⟩ ⟨U+2066⟩x⟨U+2069⟩ ⟨U+200F⟩"
    assert words[4] == "a␀b␇c"
    assert words[5].startswith("xxx") and words[5].endswith("… [100,000 characters]")
    assert words[6:8] == ["∅", "⟨U+D800⟩"] and words[8] == HOSTILE[8]
    page.tab.focus("#tv-list")
    for _ in HOSTILE:
        page.tab.keyboard.press("ArrowDown")
    page.wait_for("#tv-prompt", "{{")
    assert page.tab.evaluate("window.pwned === undefined")
    assert page.complaints == [] and page.overflows() <= 0


def test_many_long_responses_stay_few_nodes(browser, tmp_path: Path, no_figures) -> None:
    """2,000 responses of 500 tokens: what is not looked at is not in the page."""
    ids = [[(7 * i + j) % 50 for j in range(500)] for i in range(100)]
    responses = [(f"problem {i // 8}", "w " * 500, ids[i]) for i in range(100)]
    write_texts(tmp_path / "run", responses, [f" w{i}" for i in range(50)], steps=20, group_size=8)
    page = Page(browser, report_of(tmp_path / "run"))
    page.open_viewer()
    assert "all 2,000 responses" in page.texts("#viewer .note")[0]
    page.tab.check("#tv-everywhere")
    page.wait_for("#tv-count", "260 groups")
    assert len(page.texts("#tv-list [role=option]")) < 30
    assert page.tab.evaluate("document.querySelectorAll('*').length") < 10_000
    page.tab.focus("#tv-list")
    page.tab.keyboard.press("End")
    page.wait_for("#tv-title", "Step 19,")
    page.tab.focus("#tv-card-3 ~ .tv-tokens [data-token='0']")
    page.tab.keyboard.press("End")  # token 499 is built only now
    assert page.tab.evaluate("document.activeElement.textContent").startswith(" w")
    assert page.texts("#tv-panel tbody td")[0] == "499"
    assert page.complaints == []


def test_without_a_vocabulary_or_a_change_tokens_are_ids_and_entropy_leads(
    browser, tmp_path: Path, no_figures
) -> None:
    write_texts(tmp_path / "run", [("p", "r", [5, 9])] * 2, measured=False)
    page = Page(browser, report_of(tmp_path / "run"))
    page.open_viewer()
    assert page.texts("#tv-card-0 ~ .tv-tokens [data-token]") == ["#5 ", "#9 "]
    assert page.tab.evaluate("document.querySelector('#tv-quantity').value") == "entropy"
    assert "no vocab.json" in page.texts("#viewer .note")[0]
    assert page.complaints == []
