"""Reading raw folders in the tests of published datasets."""

from afmrl_jax.data.catalogue.published import layout_of


class Fatal(AssertionError):
    pass


def fatal(problem):
    raise Fatal(str(problem))


def read(folder, report=fatal, **options):
    return list(layout_of(folder).rows(folder, report, **options))


def known(row):
    """The columns that say something."""
    return {name: value for name, value in row.items() if value is not None}


def row(listing, product, title, image, **more):
    return {
        "listing_id": listing, "product_id": product, "title": title, "image": image, **more
    }  # fmt: skip
