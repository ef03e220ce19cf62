"""Whatever a text is, a parser gives a value of its type or an error of ours."""

import json

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from afmrl_jax.config import RunConfig, from_dict, to_dict
from afmrl_jax.data.attributes.captioner import ReplyCache, tidy
from afmrl_jax.data.attributes.text_format import (
    MalformedAttributes,
    format_attributes,
    is_malformed,
    parse_attributes,
    salvage_attributes,
)
from afmrl_jax.data.catalogue import tables
from afmrl_jax.data.catalogue.tables.columns import parse_columns
from afmrl_jax.errors import AfmrlError, ConfigError
from afmrl_jax.runs.search import Query, read_queries
from afmrl_jax.runtime import run_mirror
from afmrl_jax.runtime.json_files import checked, parse_json
from afmrl_jax.runtime.run_mirror import STATE, WorkingCopy
from tests.fuzz.strategies import attribute_texts, changed, json_texts, spliced, texts, values

# The same examples every time: a failure of `make test` can be repeated.
few = settings(
    max_examples=80,
    # Making a failing example small takes longer than a test may.
    phases=[Phase.explicit, Phase.generate],
    report_multiple_bugs=False,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def encoded(text):
    return text.encode("utf-8", "surrogatepass")


@few
@given(spliced() | json_texts)
def test_json_is_a_value_or_an_error_that_names_the_place(text):
    for given_text in (text, encoded(text)):
        try:
            value = parse_json(given_text, "notes.json")
        except AfmrlError as error:
            assert str(error).startswith("notes.json ")  # noqa: PT017
        else:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


@few
@given(st.binary(max_size=200))
def test_bytes_are_a_value_or_an_error(data):
    try:
        parse_json(data, "notes.json", nan=True)
    except AfmrlError as error:
        assert "notes.json" in str(error)  # noqa: PT017


@few
@given(spliced(attribute_texts) | attribute_texts)
def test_attributes_are_pairs_or_malformed(text):
    try:
        pairs = parse_attributes(text)
    except MalformedAttributes:
        assert is_malformed(text)
    else:
        assert parse_attributes(format_attributes(pairs)) == pairs
        assert len(dict(pairs)) == len(pairs)


@few
@given(spliced(attribute_texts) | attribute_texts)
def test_what_is_saved_of_a_text_is_well_formed(text):
    saved = salvage_attributes(text)
    assert not saved or not is_malformed(saved)


@few
@given(st.one_of(attribute_texts, attribute_texts.map(lambda x: f"```\n{x}\n```")))
def test_a_reply_becomes_attributes_without_control_characters_or_nothing(text):
    tidied, _ = tidy(text)
    assert not tidied or not is_malformed(tidied)
    assert not [x for x in tidied if x < " " and x not in "\t\n"]


@few
@given(changed(to_dict(RunConfig())))
def test_a_config_is_typed_and_finite_or_refused(value):
    try:
        config = from_dict(RunConfig, value)
    except ConfigError:
        return
    checked(RunConfig, to_dict(config), "what was read")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@few
@given(
    st.lists(
        spliced()
        | st.fixed_dictionaries(
            {}, optional={"id": values, "text": values, "image": values, "x": values}
        ).map(json.dumps),
        max_size=3,
    )
)
def test_queries_are_queries_or_an_error_that_names_the_line(folder, lines):
    path = folder / "queries.jsonl"
    path.write_bytes(b"\n".join(map(encoded, lines)))
    try:
        for query in read_queries(path):
            assert isinstance(query, Query)
            (query.name + (query.text or "")).encode()
    except AfmrlError as error:
        assert "queries.jsonl" in str(error)  # noqa: PT017


cells = st.text('a,;"\t\n\r\0\ufeff\u202e\xe9', max_size=8) | texts


@few
@given(st.lists(cells, max_size=12), st.lists(cells, max_size=6), cells)
def test_a_csv_is_rows_of_texts_or_problems_that_name_the_line(folder, parts, names, columns):
    path = folder / "x.csv"
    head = ",".join(["listing_id,product_id,title,image", *names])
    path.write_bytes(encoded("\n".join([head, *parts])))
    problems = []
    try:
        for where, row in tables.rows([path], problems.append, parse_columns(columns)):
            assert where.startswith("x.csv, line ")
            "".join([*row, *row.values()]).encode()
    except ConfigError as error:
        assert str(error).startswith("--columns")  # noqa: PT017
    assert all(x.record == "file" or x.record.startswith("line ") for x in problems)
    assert all(x.file == str(path) and x.what and x.remedy for x in problems)


@few
@given(st.lists(changed({"key": "k", "listing_id": "x", "reply": "a: b"}), max_size=3))
def test_kept_replies_are_texts_or_an_error_that_names_the_line(folder, records):
    path = folder / "replies.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in records))
    try:
        with ReplyCache(path) as cache:
            for record in records:
                assert isinstance(cache.get(record["key"]), str)
    except AfmrlError as error:
        assert "replies.jsonl" in str(error)  # noqa: PT017


GOOD = {
    "state": "s1",
    "files": {
        "config.json": {"size": 2, "sent": "s1"},
        "a/b": {"size": 2, "sent": "s1", "at": "c"},
    },
    "rubbish": [],
}


# S2, F17
@few
@given(changed(GOOD))
def test_a_home_gives_a_run_or_an_error_and_touches_nothing_outside(tmp_path_factory, state):
    base = tmp_path_factory.mktemp("home")
    home, folder = base / "inner" / "home", base / "inner" / "work" / "copy"
    home.mkdir(parents=True)
    for name in ("config.json", "c"):
        (home / name).write_text("{}")
    (home / STATE).write_text(json.dumps(state))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_mirror.time, "sleep", lambda _: None)
        try:
            WorkingCopy(home, folder).bring()
        except AfmrlError as error:
            assert str(home) in str(error) or "copy" in str(error)  # noqa: PT017
    assert [x.name for x in base.iterdir()] == ["inner"]
    assert {x.name for x in (base / "inner").iterdir()} <= {"home", "work"}
    assert all(x.name.strip(".").startswith("copy") for x in folder.parent.glob("*"))
