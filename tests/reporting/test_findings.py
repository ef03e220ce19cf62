"""The sentences at the top of the report say what the tests say, and no more."""

import copy

import pytest

from afmrl_jax.reporting.findings import findings_of, key_shares, moved, unlearned
from afmrl_jax.reporting.gallery import compare_attributes, read_changes, read_gallery
from afmrl_jax.reporting.report import build_report

from .conftest import changed_card, evaluation, gallery, write_json, write_run


@pytest.fixture(scope="module")
def found():
    return {x.step: x for x in findings_of(evaluation())}


def test_a_sentence_for_every_step(found):
    assert list(found) == ["attributes", "AGCL", "RAR", "CIT", "text to image"]
    assert found["attributes"].headline == "a gain is shown: R@1 +6.4 [+4.3, +8.6]."
    assert found["CIT"].headline == "not in this run."


def test_an_interval_beyond_zero_is_no_gain_without_the_corrected_test(found):
    assert found["RAR"].headline == "no effect is shown: R@1 +0.9 [+0.1, +1.7]."


def test_harm_in_one_metric_is_said_of_that_metric(found):
    assert found["AGCL"].headline.startswith("harmful in MRR, not in R@1: ")


def test_text_to_image_is_compared_with_chance_and_the_ideal(found):
    assert found["text to image"].headline.startswith("better than chance: R@1 +20.1")
    assert found["text to image"].comparisons[0].effects[0].ideal == 46.1


def test_metrics_that_disagree_are_not_called_a_gain():
    values = evaluation()
    values["primary"][1] |= {"difference": -2.0, "low": -3.0, "high": -1.0}
    step = findings_of(values)[0]
    assert (step.said, step.headline[:19]) == ("mixed", "metrics disagree: R")


def test_an_evaluation_without_tests_is_read_by_its_intervals():
    values = evaluation()
    del values["primary"]
    found = {x.step: x for x in findings_of(values)}
    assert found["attributes"].said == found["RAR"].said == "gain"
    assert found["attributes"].comparisons[0].effects[0].p is None
    assert found["text to image"].said == "missing"
    assert findings_of(None) == findings_of({"rows": []}) == []


def test_a_run_below_its_baselines_says_so_first(tmp_path):
    assert unlearned(evaluation()) is None
    values = evaluation()
    values["baselines"]["raw pixels"]["R@1"] = 70.0
    assert unlearned(values).small is None
    values["listings"] = 1480
    assert unlearned(values).small == 1480
    run = write_run(tmp_path / "run")
    write_json(run / "evaluation.json", values)
    page = build_report(run).read_text(encoding="utf-8")
    warning = page.index("Nothing here beats a method without learning")
    assert warning < page.index('id="findings"')
    assert "1,480 listings is too small" in page
    assert "pretrained" in page[warning : warning + 700]


def test_a_report_of_one_seed_says_so(tmp_path):
    page = build_report(write_run(tmp_path / "run")).read_text(encoding="utf-8")
    assert "This is one seed" in page
    assert page.index("a gain is shown") < page.index('id="results"')


def test_keys_that_came_and_went():
    shares = key_shares(evaluation())
    assert [x.key for x in shares][:2] == ["type", "color"]
    assert moved(shares, "came") == ["dims"]
    assert moved(shares, "went") == ["style"]
    assert key_shares(None) == []


def test_a_changed_answer_names_its_key():
    (found,) = read_changes(gallery())
    assert (found.gained, found.decisive, found.effect) == (True, "neckline", pytest.approx(14))
    assert (found.read.correct, found.without.correct) == (True, False)
    assert len(read_gallery(gallery())) == len(gallery()) - 1


def test_a_loss_is_blamed_on_the_key_that_helped_the_wrong_one():
    card = copy.deepcopy(changed_card())
    card["changed"] |= {"gained": False, "effects": {"neckline": 0.1, "color": -0.02}}
    (found,) = read_changes([card])
    assert (found.decisive, found.read.correct) == ("color", False)
    card["changed"]["effects"] = {"neckline": 0.1}
    assert read_changes([card])[0].decisive == ""


def test_half_a_letter_is_malformed():
    before, after = compare_attributes("type: chair\N{REPLACEMENT CHARACTER}", "type: chair")
    assert before.malformed
    assert not after.malformed
