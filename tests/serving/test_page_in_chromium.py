"""The page in a real browser, over the shipped models and a few drawn garments."""

import dataclasses
import socket
import threading
import time
from contextlib import ExitStack, closing

import pytest
import uvicorn

from afmrl_jax.config import MarketplaceSettings
from afmrl_jax.data.catalogue.load import load_catalogue
from afmrl_jax.data.catalogue.records import Catalogue
from afmrl_jax.inference.shipped import BARE, WITH_LISTS, ShippedModels
from afmrl_jax.runs.embed import embed_catalogue
from afmrl_jax.serving.app import build_app
from afmrl_jax.serving.engine import Engine
from afmrl_jax.serving.settings import Limits, ServiceSettings
from tests.serving.chromium import browser, require_chromium

require_chromium()
pytestmark = [
    pytest.mark.slow,
    # Selenium and gradio are not held to the warnings of this package.
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning",
        "ignore::ResourceWarning",
        "ignore::pytest.PytestUnraisableExceptionWarning",
    ),
]

FEW = MarketplaceSettings(
    seed=29, distill_families=1, train_families=1, reward_families=3, test_families=5, pixels=192
)
HOSTILE = (
    '<img src=x onerror="window.hacked=1"><script>window.hacked=2</script>'
    "${window.hacked=3} {{constructor}} </div>"
)
LIMITS = Limits(requests=24, body_bytes=1 << 20)
SCREENS = [(1400, False), (1400, True), (400, False), (400, True)]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Garments with prices, brands and addresses; the title of the first is an attack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFMRL_MARKETPLACE_CACHE", str(tmp_path_factory.mktemp("drawn") / "cache"))
        drawn = load_catalogue("marketplace", marketplace=FEW).subset("test").listings
    listings = []
    for n, x in enumerate(drawn):
        extra = {"price": 10 + n, "currency": "EUR", "brand": ("Acme", "Zenith")[n % 2]}
        extra["url"] = f"https://shop.example/{n}" if n else "javascript:window.hacked=4"
        listings.append(dataclasses.replace(x, extra=extra, title=x.title if n else HOSTILE))
    return Catalogue("few", tuple(listings))


class Running:
    """A service in a thread of this process."""

    def __init__(self, app):
        taken = socket.create_server(("127.0.0.1", 0))
        self.base = f"http://127.0.0.1:{taken.getsockname()[1]}"
        self.service = app.state.service
        config = uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        run = self._server.run
        self._thread = threading.Thread(target=run, kwargs={"sockets": [taken]}, daemon=True)
        self._thread.start()
        end = time.monotonic() + 300
        while self.service.failure is None:
            try:
                self.service.get()
                return
            except Exception:
                assert time.monotonic() < end
                time.sleep(0.1)
        raise AssertionError(self.service.failure)

    def stop(self):
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def running(shop, tmp_path_factory):
    models, folder = ShippedModels(), tmp_path_factory.mktemp("indexes")
    for name in (WITH_LISTS, BARE):
        embed_catalogue(models, name, shop, folder / name, thumbnails=192)
    settings = ServiceSettings(batch=1, limits=LIMITS, write_within=60)

    def engine(name, **options):
        return lambda metrics: Engine(models, folder / name, settings, metrics.batch, **options)

    found = Running(build_app(engine(WITH_LISTS), settings, engine(BARE, writes=False)))
    yield found
    found.stop()


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def page(window, running):
    window.size(1400)
    window.driver.get(running.base)
    window.one("#search")
    # The load event fills in the filters.
    window.until(
        lambda: window.run("return document.querySelector('#photo-file') !== null"), "form"
    )
    return window


def type_and_search(page, words):
    from selenium.webdriver.common.keys import Keys

    page.one("#words textarea").send_keys(words, Keys.ENTER)
    page.until(lambda: page.all(".hit, .problem"), "answer")


def photo_of(shop, number, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(shop.listings[number].read_image_bytes())
    return path


def field_of_conditions(page):
    """Where conditions are typed, which appears a moment after the filters are opened."""

    def found():
        fields = page.all("textarea")
        return next((x for x in fields if "brand" in x.get_attribute("placeholder")), None)

    return page.until(found, "the field of conditions")


def test_typed_words_find_listings_with_pictures_prices_and_links(page):
    type_and_search(page, "striped dress")
    hits = page.texts(".hit")
    assert len(hits) == 12
    shown = "return [...document.images].filter(x => x.src.includes('thumbnails') && x.complete"
    page.run("document.querySelectorAll('.hit img').forEach(x => x.loading = 'eager')")
    page.until(lambda: page.run(f"{shown} && x.naturalWidth > 0).length") == 12, "pictures")
    assert all("EUR" in x and "similarity" in x for x in hits)
    links = [x.get_attribute("href") for x in page.all(".hit h3 a")]
    assert links
    assert all(x.startswith("https://shop.example/") for x in links)
    assert "Written for your query" in page.text


def test_a_photo_and_title_find_their_listing_and_attributes_are_marked(page, shop, tmp_path):
    from selenium.webdriver.common.keys import Keys

    page.one("#photo-file").send_keys(str(photo_of(shop, 7, tmp_path)))
    page.said("will be sent")
    words = page.one("#words textarea")
    words.send_keys(shop.listings[7].title)
    page.one("#search").click()
    first = page.one(".hit")
    assert shop.listings[7].listing_id in first.get_attribute("textContent")
    marks = {x.split()[-1] for x in page.texts(".hit .pairs li")}
    assert {"same", "differs"} <= marks
    page.one("#photo button").click()
    page.said("No photo.")
    words.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.BACKSPACE)
    page.one("#search").click()
    page.said("Type some words, drop a photo, or both.")


def test_results_are_filtered(page):
    from selenium.webdriver.common.keys import Keys

    next(x for x in page.all("button") if "Filters" in x.text).click()
    for end, value in (("from", 14), ("to", 24)):
        page.one(f"#price-{end} textarea").send_keys(value, Keys.TAB)
    assert "price from" in page.text
    where = field_of_conditions(page)
    where.send_keys("brand=Acme")
    type_and_search(page, "skirt")
    prices = set(page.texts(".hit .price"))
    assert prices == {f"{x} EUR" for x in (14, 16, 18, 20, 22, 24)}
    choices = page.one("[role=combobox], input[aria-label^='Attributes']")
    choices.click()
    option = page.until(lambda: page.all("[role=option]"), "attributes to choose")[0]
    chosen = option.text.rpartition(" (")[0].lstrip("✓ ").strip()
    option.click()
    choices.send_keys(Keys.ESCAPE, Keys.TAB)
    page.one("#search").click()
    page.until(lambda: all(chosen in x for x in page.texts(".hit")), chosen)


def test_two_systems_are_compared_on_one_query(page, shop, tmp_path):
    page.one("#photo-file").send_keys(str(photo_of(shop, 3, tmp_path)))
    page.said("will be sent")
    next(x for x in page.all("[role=tab]") if "Compare" in x.text).click()
    page.one("#compare").click()
    page.said("found by both systems")
    sides = page.all(".sides section")
    assert [x.get_attribute("aria-label") for x in sides] == [WITH_LISTS, BARE]
    assert all(len(x.splitlines()) > 8 for x in page.texts(".sides section"))
    assert "in both; place" in page.text
    assert page.text.count("No attributes were written") == 1


def test_a_broken_and_a_large_photo_are_refused_in_words(page, tmp_path):
    broken, large = tmp_path / "broken.jpg", tmp_path / "large.jpg"
    broken.write_bytes(b"this is no picture")
    large.write_bytes(b"x" * (2 << 20))
    page.one("#photo-file").send_keys(str(broken))
    page.said("cannot show it")
    page.one("#search").click()
    problem = page.one(".problem")
    assert "Please change the query" in problem.text
    assert "Traceback" not in page.text
    page.one("#photo-file").send_keys(str(large))
    page.said("too large")


def test_hostile_texts_are_shown_and_do_nothing(page, shop):
    type_and_search(page, "img src onerror script window hacked constructor")
    next(x for x in page.all("button") if "Filters" in x.text).click()
    where = field_of_conditions(page)
    where.send_keys("price=10")
    page.one("#search").click()
    page.until(lambda: len(page.all(".hit")) == 1, "the hostile listing")
    heading = page.one(".hit h3")
    assert heading.text == HOSTILE
    assert not page.all(".hit h3 a")
    assert page.run("return window.hacked") is None


def test_nothing_is_asked_of_other_hosts(page, running):
    page.requested()
    page.driver.get(running.base)
    type_and_search(page, "dress")
    asked = page.requested()
    assert len(asked) > 20
    assert all(x.startswith(running.base) for x in asked), asked
    said = [x["message"] for x in page.driver.get_log("browser")]
    assert not [x for x in said if "Content Security" in x]


def test_it_is_used_by_keyboard_and_named_for_screen_readers(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.run("document.querySelector('#words textarea').focus()")
    reached = []
    for _ in range(12):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        reached.append(page.run("const x = document.activeElement; return x.id || x.innerText"))
    assert "photo-file" in reached
    assert "search" in reached
    assert any("Filters" in x for x in reached)
    assert any("Results" in x for x in reached)
    type_and_search(page, "green jacket")
    assert page.unnamed() == []
    page.until(lambda: "listings" in page.one("#said").get_attribute("textContent"), "announcement")


@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_it_fits_small_and_large_screens_light_and_dark(page, running, shop, tmp_path, width, dark):
    page.size(width, dark=dark)
    page.driver.get(running.base)
    page.one("#photo-file").send_keys(str(photo_of(shop, 7, tmp_path)))
    page.said("will be sent")
    type_and_search(page, shop.listings[7].title)
    page.run("document.querySelectorAll('.hit img').forEach(x => x.loading = 'eager')")
    page.until(
        lambda: page.run("return [...document.images].every(x => x.complete || !x.src)"), "pictures"
    )
    wide, seen = page.run(
        "const x = document.documentElement; return [x.scrollWidth, x.clientWidth]"
    )
    assert wide <= seen
    pixels = page.picture(tmp_path / f"page-{width}-{'dark' if dark else 'light'}.png")
    assert pixels.std() > 10, "blank"
    assert (pixels[:20].mean() < 100) == dark


def test_refusals_of_a_busy_service_are_said(page, running):
    type_and_search(page, "dress")
    host, port = running.base.removeprefix("http://").split(":")
    head = f"POST /search HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    with ExitStack() as held:
        for _ in range(LIMITS.requests):
            waiting = held.enter_context(closing(socket.create_connection((host, int(port)))))
            waiting.sendall(f"{head}Content-Length: 99\r\n\r\n{{".encode())
        time.sleep(0.5)
        page.one("#search").click()
        page.said("(429)")
        page.said("try again")
    page.one("#search").click()
    page.until(lambda: "(429)" not in page.text, "answer")


def test_a_stopped_service_is_said(page, running):
    """The last test: it stops the service."""
    type_and_search(page, "dress")
    running.stop()
    page.one("#search").click()
    page.said("does not answer")
    assert "Traceback" not in page.text
