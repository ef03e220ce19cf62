"""`afmrl oracle`, and a run that learns from what it wrote."""

import dataclasses
import json

import pytest

from afmrl_jax.cli.main import main
from afmrl_jax.config import OracleConfig, RunConfig
from afmrl_jax.data.attributes.captioner import Replies
from afmrl_jax.data.attributes.oracle import oracle_inputs, taught_texts
from afmrl_jax.data.attributes.text_format import read_attributes
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.errors import CatalogueError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.huggingface.folder import save_model
from afmrl_jax.runs.oracle import oracle_by_checkpoint
from afmrl_jax.testing import tiny_config


def test_replies_become_a_file_that_a_run_learns_from(badges, tmp_path, monkeypatch, capsys):
    def answer(listings, endpoint, cache):
        assert endpoint.model == "captioner"
        assert cache == tmp_path / "oracle.jsonl.replies.jsonl"
        texts = {x.listing_id: f"letter: {x.title[0].lower()}" for x in listings[1:]}
        return Replies(texts, [], {listings[0].listing_id: "no reply"})

    monkeypatch.setattr("afmrl_jax.runs.oracle.ask_endpoint", answer)
    out = tmp_path / "oracle.jsonl"
    main(
        [
            "oracle",
            "--catalogue",
            str(badges),
            "--out",
            str(out),
            "--url",
            "http://x/v1",
            "--model",
            "captioner",
        ]
    )
    said = capsys.readouterr().out
    assert "no reply" in said
    assert "1 listings have no attributes" in said
    catalogue = load_catalogue(badges)
    config = OracleConfig(file=str(out))
    taught, texts = taught_texts(catalogue, config, 0)
    assert texts == list(read_attributes(out).values())
    assert len(taught.listings) == len(catalogue.subset("distill").listings) - 1
    before = oracle_inputs(config)
    out.write_text(out.read_text().replace("letter", "sign"))
    assert oracle_inputs(config) != before


def test_a_checkpoint_writes_the_attributes_of_every_listing(
    badges, tokenizer, tmp_path, monkeypatch
):
    # The published layout with small pictures.
    small = dataclasses.replace(
        RunConfig.pretrained(),
        image=RunConfig().image,
        text=dataclasses.replace(RunConfig.pretrained().text, max_attribute_tokens=8),
    )
    monkeypatch.setattr(RunConfig, "pretrained", classmethod(lambda cls: small))
    config = tiny_config(
        "qwen2_5_vl", vocab_size=tokenizer.vocab_size, image_token_id=tokenizer.image_pad_id
    )
    architecture = Architecture.of(config)
    save_model(tmp_path / "captioner", architecture, architecture.init(0), tokenizer=tokenizer)
    catalogue = load_catalogue(badges).subset("distill")
    out = tmp_path / "oracle.jsonl"
    texts = oracle_by_checkpoint(catalogue, tmp_path / "captioner", out, batch_size=16)
    assert list(texts) == [x.listing_id for x in catalogue.listings]
    assert read_attributes(out) == texts


def test_an_oracle_needs_one_source(badges, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["oracle", "--catalogue", str(badges), "--out", str(tmp_path / "x.jsonl")])
    assert "--checkpoint" in capsys.readouterr().err


def test_a_file_of_another_catalogue_is_refused(badges, tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text(json.dumps({"listing_id": "zz", "attributes": "a: b"}) + "\n")
    with pytest.raises(CatalogueError, match="afmrl oracle"):
        taught_texts(load_catalogue(badges), OracleConfig(file=str(path)), 0)
    path.write_text('{"listing_id": "zz"}\n')
    with pytest.raises(CatalogueError, match="line 1"):
        taught_texts(load_catalogue(badges), OracleConfig(file=str(path)), 0)
    with pytest.raises(CatalogueError, match="cannot be read"):
        taught_texts(load_catalogue(badges), OracleConfig(file=str(tmp_path / "none")), 0)
