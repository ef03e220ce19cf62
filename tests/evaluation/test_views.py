"""Which list each view of an evaluated listing reads, without a model."""

from types import SimpleNamespace

import numpy as np

from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.catalogue.records import Listing
from afmrl_jax.evaluation.evaluate import EvaluationData, SingleViews, embed_views
from afmrl_jax.inference.systems import System, subject_of

LISTINGS = [Listing(f"l{n}", f"p{n // 2}", f"title {n}", b"", family_id="f") for n in range(6)]
BUILDER = SimpleNamespace(listings=LISTINGS)
DATA = EvaluationData(BUILDER, SimpleNamespace(listings=[]))
IDS = [x.listing_id for x in LISTINGS]
TOLD = Lists(
    {x: f"both {x}" for x in IDS}, {x: f"image {x}" for x in IDS}, {x: f"text {x}" for x in IDS}
)


class Recorder:
    """An encoder that writes down what it is asked to embed."""

    def __init__(self, identity="one"):
        self.identity = identity
        self.asked = []

    def embed(self, builder, indices, attributes=None, *, title=True, picture=True):
        shown = {(True, True): "both", (True, False): "text", (False, True): "image"}
        texts = [(attributes or {}).get(builder.listings[n].listing_id) for n in indices]
        self.asked.append((shown[title, picture], texts))
        return np.zeros((len(indices), 2), np.float32)


def asked(lists):
    encoder = Recorder()
    single = SingleViews.of(DATA, encoder, lists, None)
    embed_views(DATA, encoder, lists.both, None, single)
    return dict(encoder.asked)


def test_each_view_reads_what_was_written_from_it_alone():
    found = asked(TOLD)
    for shown in ("both", "text", "image"):
        assert found[shown] == [f"{shown} {x}" for x in IDS]


def test_without_lists_of_their_own_lone_views_read_none():
    found = asked(Lists(TOLD.both))
    assert found == {"both": [f"both {x}" for x in IDS], "text": [None] * 6, "image": [None] * 6}


def test_lone_views_are_embedded_once_as_long_as_they_read_the_same():
    encoder = Recorder()
    first = SingleViews.of(DATA, encoder, TOLD, None)
    same = Lists({}, dict(TOLD.image), dict(TOLD.text))
    assert SingleViews.of(DATA, encoder, same, first) is first
    assert SingleViews.of(DATA, encoder, Lists({}), first) is not first
    assert SingleViews.of(DATA, Recorder("two"), TOLD, first) is not first


def test_a_control_reads_the_lists_of_other_products():
    row = System("agcl+shuffled", "agcl-shuffled", "distill", "agcl+distilled", shuffled=True)
    subject = subject_of(row, Recorder(), {"distill": TOLD}, DATA, 0)
    assert subject.control_of == "agcl+distilled"
    product = {x.listing_id: x.product_id for x in LISTINGS}
    for shown in ("both", "text", "image"):
        for own, text in subject.test_lists.of(shown).items():
            source, donor = text.split()
            assert source == shown
            assert product[donor] != product[own]


def test_the_same_embedder_without_lists_reads_none():
    row = System("agcl+distilled-bare", "agcl-distilled", None, "agcl+distilled")
    subject = subject_of(row, Recorder(), {"distill": TOLD}, DATA, 0)
    assert subject.test_lists is None
    assert subject.train_lists is None
