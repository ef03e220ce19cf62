"""What hypothesis makes of JSON, attribute texts and their damage."""

import json

from hypothesis import strategies as st

texts = st.text(st.characters(), max_size=30)
"""Any text, halves of surrogate pairs and control characters included."""
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 10**9, 2**63, 10**4000, 1e308]),
    st.floats(),
    texts,
    st.sampled_from(
        ["../../planted", "/etc/passwd", "a\0b", "\ud800", "\x1b]0;own\x07", "x" * 300]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
"""Any JSON value, and some that only Python writes."""
json_texts = st.one_of(
    values.map(lambda x: json.dumps(x, ensure_ascii=True)),
    values.map(lambda x: json.dumps(x, indent=1)),
    texts,
    st.integers(1, 200_000).map(lambda n: "[" * n),
    st.integers(1, 200_000).map(lambda n: '{"a":' * n + "1" + "}" * n),
    st.integers(1, 10_000).map(lambda n: "7" * n),
    texts.map(lambda x: f'{{"a": 1, "a": {json.dumps(x)}}}'),
)
parts = st.text("aB ;:\n\t\0\u0130\u202e1-", max_size=8)
attribute_texts = st.one_of(
    texts,
    st.lists(st.tuples(parts, parts), max_size=8).map(
        lambda pairs: "; ".join(f"{key}: {value}" for key, value in pairs)
    ),
    st.lists(parts, max_size=12).map(";".join),
    st.lists(parts, max_size=12).map(":".join),
)


@st.composite
def spliced(draw, sources=json_texts):
    """A text with a piece cut out and another put in."""
    text, other = draw(sources)[:5000], draw(sources)[:50]
    begin, length = draw(st.integers(0, len(text))), draw(st.integers(0, 8))
    return text[:begin] + other + text[begin + length :]


@st.composite
def changed(draw, value):
    """A JSON value with something else in one of its places."""
    if not isinstance(value, dict) or not value or draw(st.integers(0, 5)) == 0:
        return draw(values)
    key = draw(st.sampled_from(sorted(value)))
    if draw(st.integers(0, 6)) == 0:
        return {k: x for k, x in value.items() if k != key} | draw(st.just({}) | st.just({"x": 1}))
    return value | {key: draw(changed(value[key]))}
