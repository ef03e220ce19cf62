import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from afmrl_jax.config import MarketplaceSettings
from afmrl_jax.data.catalogue.check import check_catalogue
from afmrl_jax.data.catalogue.load import load_catalogue, require_teaching
from afmrl_jax.data.catalogue.readers import open_rows
from afmrl_jax.data.marketplace import cache
from afmrl_jax.data.marketplace.build import IDEAL, LISTINGS, draw_marketplace
from afmrl_jax.data.marketplace.cache import cache_name, marketplace_folder, read_ideal
from afmrl_jax.data.marketplace.stream import Stream
from afmrl_jax.errors import CatalogueError, ConfigError
from afmrl_jax.testing import change_a_bit
from tests.data.marketplace.conftest import tiny

SMALL = tiny(distill_families=2, train_families=2, test_families=2)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    draw_marketplace(SMALL, folder, workers=1)
    return folder


@pytest.fixture
def draws(monkeypatch):
    """Counts how often a marketplace is drawn."""
    counts = []

    def counted(settings, folder):
        counts.append(folder)
        draw_marketplace(settings, folder)

    monkeypatch.setattr(cache, "draw_marketplace", counted)
    return counts


def test_two_processes_draw_the_same_bytes_as_one(drawn, tmp_path):
    draw_marketplace(SMALL, tmp_path, workers=2)
    for name in (LISTINGS, IDEAL):
        assert (tmp_path / name).read_bytes() == (drawn / name).read_bytes()


def test_another_seed_draws_other_listings(drawn, tmp_path):
    draw_marketplace(tiny(seed=1), tmp_path, workers=1)
    assert (tmp_path / LISTINGS).read_bytes() != (drawn / LISTINGS).read_bytes()


def test_a_failed_process_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CatalogueError, match="exit status 1"):
        draw_marketplace(SMALL, tmp_path, workers=2)
    assert not (tmp_path / LISTINGS).exists()


def test_a_catalogue_is_drawn_once_and_then_found(own_cache, draws):
    one, again = (load_catalogue("marketplace", marketplace=SMALL) for _ in range(2))
    assert len(draws) == 1
    assert one.fingerprint == again.fingerprint
    assert one.name == "marketplace"
    require_teaching(one)
    names = {x for x in os.listdir(own_cache) if not x.startswith(".")}
    assert names == {cache_name(SMALL)}
    assert own_cache.stat().st_mode & 0o777 == 0o700


def test_listings_have_what_each_split_needs(own_cache):
    catalogue = load_catalogue("marketplace", marketplace=SMALL)
    for x in catalogue.listings:
        assert (x.oracle is not None) == (x.split == "distill")
        assert (x.part is not None) == (x.split == "reward")
        assert x.category == x.attributes["type"]
        assert x.seller
    copied = [x for x in catalogue.listings if x.duplicate_of]
    assert all(x.split == "train" and x.true_product != x.product_id for x in copied)


def test_the_check_finds_nothing(own_cache):
    problems = []
    options = {"small": 1}
    with pytest.raises(ConfigError, match="small: unknown name"):
        check_catalogue("marketplace", problems.append, options=options)
    wanted = {key: getattr(SMALL, key) for key in ("distill_families", "train_families")}
    wanted |= {"reward_families": 3, "test_families": 2}
    found = check_catalogue("marketplace", problems.append, options=wanted)
    assert problems == []
    assert found["coverage"]["attributes"] == 1.0
    assert open_rows("marketplace", wanted).count == found["listings"]


@pytest.mark.parametrize("name", [LISTINGS, IDEAL, "about.json"])
def test_a_damaged_cache_is_noticed_and_drawn_again(own_cache, draws, capfd, name):
    folder = marketplace_folder(SMALL)
    before = (folder / LISTINGS).read_bytes()
    change_a_bit(folder / name)
    if name == "about.json":
        (folder / name).write_text("{}")
    assert marketplace_folder(SMALL) == folder
    assert len(draws) == 2
    assert "drawn again" in capfd.readouterr().err
    assert (folder / LISTINGS).read_bytes() == before
    (folder / name).unlink()
    marketplace_folder(SMALL)
    assert len(draws) == 3


def test_two_starts_at_once_draw_once(own_cache, draws):
    with ThreadPoolExecutor(3) as pool:
        folders = {x.result() for x in [pool.submit(marketplace_folder, SMALL) for _ in range(3)]}
    assert len(folders) == len(draws) == 1


def test_a_cache_that_others_may_write_is_refused(own_cache):
    own_cache.mkdir()
    own_cache.chmod(0o777)
    with pytest.raises(CatalogueError, match="AFMRL_MARKETPLACE_CACHE"):
        marketplace_folder(SMALL)


def test_the_name_depends_on_all_that_the_bytes_depend_on(monkeypatch):
    names = {cache_name(SMALL), cache_name(tiny()), cache_name(MarketplaceSettings.small())}
    monkeypatch.setattr("PIL.__version__", "1.0")
    names.add(cache_name(SMALL))
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    names.add(cache_name(SMALL))
    assert len(names) == 5


def test_the_ideal_lies_beside_the_listings(own_cache, tmp_path):
    found = read_ideal(marketplace_folder(SMALL))
    assert found.tasks["fine"]["ideal"]["R@1"] == 100.0
    assert found.tasks["text_to_image"].keys() == {"ideal", "chance"}
    assert json.loads((marketplace_folder(SMALL) / IDEAL).read_text())["queries"] == found.queries
    with pytest.raises(CatalogueError, match="drawn marketplace"):
        read_ideal(tmp_path)


def test_a_script_without_a_guard_may_ask_for_it(own_cache, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from afmrl_jax.config import MarketplaceSettings\n"
        "from afmrl_jax.data.marketplace.build import draw_marketplace\n"
        "draw_marketplace(MarketplaceSettings(distill_families=1, train_families=1,\n"
        "    reward_families=3, test_families=1), Path('.'), workers=2)\n"
    )
    root = str(Path(__file__).parents[3])
    environment = os.environ | {"PYTHONPATH": root}
    subprocess.run([sys.executable, str(script)], cwd=tmp_path, check=True, env=environment)
    assert (tmp_path / LISTINGS).is_file()


def test_the_stream_is_a_function_of_seed_and_number():
    one = Stream(seed=4, photos=2)
    sample = one[10]
    assert sample == Stream(seed=4, photos=2)[10]
    assert sample != one[11]
    assert sample != Stream(seed=5, photos=2)[10]
    assert len({*sample.photos}) == 2
    assert len(sample.titles) == len(sample.captions) == len(sample.lists) == 2
    assert Stream(seed=4)[10].attributes == sample.attributes
    with pytest.raises(ConfigError, match="1 to 20 photos"):
        Stream(seed=4, photos=21)
