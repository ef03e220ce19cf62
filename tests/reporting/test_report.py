"""The report: whole, self-contained, and safe with any title."""

import html.parser
import re

import pytest

from afmrl_jax.errors import RunError
from afmrl_jax.reporting.report import build_report
from afmrl_jax.reporting.stages import expected_stages
from afmrl_jax.reporting.tables import markdown_table, text_table
from afmrl_jax.runtime.files import write_json

from .conftest import DIFFERENCES, FINE, HOSTILE, ROWS, evaluation, write_run

MEANS = ("recall", "reciprocal_rank")


class Page(html.parser.HTMLParser):
    """Tags and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href") and v]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def page(run):
    return Page(build_report(run).read_text(encoding="utf-8"))


def test_it_needs_no_other_file_and_runs_nothing(page):
    assert "script" not in page.tags
    assert "link" not in page.tags
    for link in page.links:
        # Pictures are inside; a reader may follow a link to the paper.
        assert link.startswith(("data:", "#", "https://arxiv.org")), link


def test_every_row_and_its_value_is_shown(page):
    for name, value in zip(ROWS, FINE, strict=True):
        assert name in page.text
        assert f"{value:.1f}" in page.text


def test_the_papers_table_stands_beside_ours(page):
    assert "2604.20135" in page.text
    for value in ("48.05", "51.06", "52.42", "54.28"):
        assert value in page.text


def test_differences_are_shown_with_their_intervals(page):
    for _, _, difference, _, _ in DIFFERENCES:
        assert f"{difference:+.1f}" in page.text.replace("−", "-")


def test_curves_of_every_kind_are_drawn(page):
    assert page.tags.count("svg") >= 5
    for word in ("reward", "KL", "dead", "attribute", "loss"):
        assert word.lower() in page.text.lower()


def test_the_third_part_of_the_queries_speaks(tmp_path):
    run = write_run(tmp_path / "demo")
    figure = {"before": 0.4, "after": 0.45, "gain": 0.05, "gain_error": None}
    found = {"k": 7, "queries": 120, "families": 30, "reward": figure | {"gain_error": 0.02}}
    write_json(run / "rar" / "report.json", found | dict.fromkeys(MEANS, figure))
    text = Page(build_report(run).read_text(encoding="utf-8")).text
    assert "120 reward queries of 30 families neither taught the generator" in text
    assert "R@7 from 0.400 to 0.450 ( +0.050 )" in text
    assert "+0.050 , standard error 0.020" in text


def test_stages_of_further_cycles_stand_in_their_order():
    config = {"cit": {"cycles": 2, "rar_between": True}, "controls": True}
    names = expected_stages(config)
    assert names[names.index("agcl-shuffled") + 1 :] == [
        *("rar", "annotate-reinforced", "cit-1", "cit-control-1"),
        *("rar-2", "annotate-reinforced-2", "cit-2", "cit-control-2", "evaluate"),
    ]


def test_details_stand_below_the_results(page):
    text = page.text
    for word in ("M5Product's definitions", "Macro means", "By category: afmrl+cit"):
        assert word in text
    assert f"{FINE[-1] - 1.7:.2f}" in text  # macro
    assert text.count("Image to image R@1 ") == 1
    assert f"{FINE[0] - 20:.2f}" in text
    assert "-0.72" in text  # what ScaNN costs
    assert "A processor, 2 cores" in text
    assert "12.35" in text or "12.34" in text
    assert "other (4 categories)" in text


def test_recall_is_drawn_against_the_dimension(run):
    source = (run / "report.html").read_text(encoding="utf-8")
    assert f"{FINE[0] - 21:.3g} at dimension 32, {FINE[0]:.3g} at dimension 128" in source


def test_a_wide_block_is_split_at_its_tasks():
    found = evaluation()
    found["baselines"]["a baseline with a rather long name of its own"] = {"R@1": 1.0}
    text = text_table(found)
    assert {"Fine-grained", "Coarse", "Image to image (I>I)"} <= {*text.splitlines()}
    assert max(map(len, text.splitlines())) <= 80


def test_a_title_is_text_whatever_it_says(run, page):
    assert "<script" not in (run / "report.html").read_text(encoding="utf-8").lower()
    assert HOSTILE.split("'")[0] in page.text or "alert(" in page.text


def test_gallery_marks_right_and_wrong_and_malformed(page):
    text = page.text.lower()
    assert "malformed" in text
    assert "right" in text or "correct" in text or "✓" in text


def test_an_unfinished_run_still_gives_a_report(tmp_path):
    (tmp_path / "run").mkdir()
    text = Page(build_report(tmp_path / "run").read_text(encoding="utf-8")).text
    assert "paper" in text.lower()


def test_a_broken_file_is_named_and_no_report_is_left(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "evaluation.json").write_text("{")
    with pytest.raises(RunError, match=r"evaluation\.json"):
        build_report(run, tmp_path / "new.html")
    assert not (tmp_path / "new.html").exists()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(RunError, match="no run directory"):
        build_report(tmp_path / "nowhere")


@pytest.mark.parametrize("table", [text_table, markdown_table])
def test_tables_hold_every_row(table):
    text = table(evaluation())
    for name, value in zip(ROWS, FINE, strict=True):
        (line,) = [
            x for x in text.splitlines() if re.search(rf"(^|\s|\|){re.escape(name)}(\s|$|\|)", x)
        ][:1]
        assert f"{value:.2f}" in line or f"{value:.1f}" in line
    assert "raw pixels" in text


def test_tables_do_without_what_a_catalogue_lacks():
    found = evaluation()
    for row in found["rows"]:
        row.update(coarse=None, classification=None, clustering=None)
        del row["truncation"], row["per_category"], row["macro"]
    del found["baselines"], found["comparisons"], found["latency"], found["scann"]
    assert "Coarse" not in text_table(found).splitlines()[0]
