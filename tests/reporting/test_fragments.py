"""Pieces of the report for notebooks: whole, safe with any title, and nothing leaks out of them."""

import re

import pytest

from afmrl_jax.errors import RunError
from afmrl_jax.reporting import fragments
from afmrl_jax.runtime.files import write_json
from afmrl_jax.testing import draw_badge

from .conftest import FINE, HOSTILE, ROWS, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "demo")


def pieces(run):
    return [fragments.status(run, 1.0), fragments.curves(run), fragments.results(run)]


def test_no_rule_of_their_style_reaches_the_page_around(run):
    for html in pieces(run):
        (style,) = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL)
        depth, outside = 0, ""
        for letter in style:
            depth += (letter == "{") - (letter == "}")
            assert depth >= 0
            outside += letter if depth == 0 else ""
        assert depth == 0
        assert outside.split() == [".afmrl.afmrl.afmrl", "}"]


def test_the_table_has_every_row_and_its_value(run):
    html = fragments.results(run)
    for name, value in zip(ROWS, FINE, strict=True):
        assert name in html
        assert f"{value:.2f}" in html
    assert "Text to image" not in html, "only what fits the width"


def test_the_gallery_has_so_many_queries_and_escapes_them(run):
    html = fragments.gallery(run, 2)
    assert html.count("<article") == 2
    assert "data:image/jpeg;base64," in html
    assert HOSTILE not in html
    assert HOSTILE not in fragments.gallery(run, 3)


def test_the_main_curves_are_drawn(run):
    html = fragments.curves(run)
    for title in ("distillation loss", "contrastive loss", "best in its batch", "RAR: reward"):
        assert title in html
    assert html.count("<svg") == 4


def test_a_run_without_a_step_has_no_curve_yet(tmp_path):
    assert "<svg" not in fragments.curves(tmp_path)


def test_status_tells_the_stage_that_runs(tmp_path):
    write_json(tmp_path / "config.json", {})
    done = {"inputs": {}, "fingerprint": "0", "outputs": {}, "seconds": 31.2}
    write_json(tmp_path / "tokenizer" / "DONE.json", done)
    write_json(tmp_path / "distill" / "inputs.json", {"inputs": {}, "fingerprint": "0"})
    html = fragments.status(tmp_path, 75.0, f"distill: 6/12 {HOSTILE}")
    assert re.search(r'class="done">✓ tokenizer 31 s<', html)
    assert re.search(r'class="now">distill …<', html)
    assert "1 min 15 s" in html
    assert HOSTILE not in html
    assert 'class="now"' not in fragments.status(tmp_path, 75.0, running=False)


def test_what_is_not_there_yet_is_said(tmp_path):
    for show in (fragments.results, lambda run: fragments.gallery(run, 1)):
        with pytest.raises(RunError, match="let the run finish"):
            show(tmp_path)


def test_a_search_is_shown_with_pictures_and_attributes(rng):
    picture = draw_badge("circle", "red", "a", rng)
    hits = [
        {"listing_id": "a", "title": HOSTILE, "score": 0.5, "attributes": "shape: circle"},
        {"listing_id": "b", "title": "badge", "score": 0.25, "attributes": "; ; broken"},
        {"listing_id": "c", "title": "badge", "score": 0.125},
    ]
    html = fragments.found(picture, HOSTILE, "colour: red", hits, {"a": picture})
    assert html.count("<li>") >= 3
    assert html.count("data:image/jpeg;base64,") == 2
    assert html.count("no readable picture</div>") == 2
    for text in ("0.500", "0.250", "0.125", "circle", "red", "malformed"):
        assert text in html
    assert HOSTILE not in html
    assert "A photo without words" in fragments.found(picture, None, "", hits, {})
