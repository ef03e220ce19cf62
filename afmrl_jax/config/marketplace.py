"""Settings of the drawn marketplace."""

from __future__ import annotations

from dataclasses import dataclass

from afmrl_jax.config.validation import MAX_COUNT, Settings, require

MARKETPLACE = "marketplace"
"""Name of the catalogue that is drawn."""
MAX_FAMILIES = 10**6


@dataclass(frozen=True)
class MarketplaceSettings(Settings):
    """The catalogue `marketplace`: how large it is, and how its sellers and its oracle behave.

    The same settings draw the same catalogue. Rates whose source is not named are the middle of
    the range that a study should sweep, because no published figure was found.
    """

    seed: int = 0
    """Which products, photos and texts are drawn."""
    distill_families: int = 1400
    """Families that the generator learns from."""
    train_families: int = 1000
    """Families that the embedder learns from."""
    reward_families: int = 450
    """Families that RAR asks for; in three equal parts: learn, choose and report."""
    test_families: int = 1000
    """Families of the evaluation."""
    products: tuple[int, int] = (2, 3)
    """Fewest and most products of a family: near-twins that differ in one or two attributes."""
    offers: tuple[int, int] = (3, 4)
    """Fewest and most listings of a product, each by another seller."""
    pixels: int = 96
    """Side of a picture."""
    title_share: tuple[float, float] = (0.3, 0.5)
    """Smallest and largest share of its attributes that a title states."""
    title_synonyms: float = 0.3
    """Probability that a title writes a value in another word than the usual one."""
    badges: float = 0.25
    """Probability that a seller puts a badge on a photo."""
    duplicate_share: float = 0.1
    """Share of `train` products that other sellers list under a second product id with the same
    photos, re-encoded and cropped, some with a badge. Sweep 0 to 0.3: no published rate was found.
    The other splits have none."""
    duplicates_known: bool = False
    """The shop knows these second ids (`duplicate_group`), so that training may mask them;
    otherwise only the evaluation does (`duplicate_of`)."""
    mention_obvious: float = 0.95
    """Probability that the oracle mentions an attribute that nobody misses, such as color."""
    mention_middle: float = 0.7
    """The same for an attribute of middling salience, such as sleeve or pattern. Sweep 0.4 to 1."""
    mention_fine: float = 0.55
    """The same for a fine detail, such as trim or pocket. Sweep 0.1 to 1."""
    oracle_synonyms: float = 0.3
    """Probability that the oracle writes a value as a synonym. Sweep 0 to 0.6."""
    oracle_fluff: float = 0.25
    """Probability that the oracle's list has a pair that says nothing, such as `style: modern`.
    Sweep 0 to 0.5."""
    oracle_errors: float = 0.05
    """Probability that the oracle writes a wrong value of a key. Sweep 0 to 0.1."""
    oracle_shuffled: float = 0.3
    """Probability that the oracle's list is in another order than the usual one. Sweep 0 to 0.6."""

    def __post_init__(self) -> None:
        super().__post_init__()
        families = (1, MAX_FAMILIES)
        self._within(
            seed=(0, MAX_COUNT),
            distill_families=families,
            train_families=families,
            # A family at least for each of its three parts.
            reward_families=(3, MAX_FAMILIES),
            test_families=families,
            products=(1, 4),
            offers=(1, 8),
            # Below that no one can see a pocket.
            pixels=(48, 384),
            title_share=(0, 1),
        )
        for name in ("products", "offers", "title_share"):
            low, high = getattr(self, name)
            require(low <= high, f"marketplace.{name} must not descend, found {low} and {high}")
        rates = ("title_synonyms", "badges", "duplicate_share")
        for name, value in vars(self).items():
            if name in rates or name.startswith(("mention_", "oracle_")):
                require(0 <= value <= 1, f"marketplace.{name} must lie in [0, 1], found {value}")

    @classmethod
    def small(cls, seed: int = 0) -> MarketplaceSettings:
        """A few hundred listings, drawn in seconds: a smoke test, not a result."""
        return cls(
            seed=seed,
            distill_families=18,
            train_families=14,
            reward_families=9,
            test_families=9,
            duplicate_share=0.2,
        )
