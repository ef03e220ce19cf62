"""What checks annotations while the tests run."""

from beartype import BeartypeConf, beartype

# A whole number is a float, as PEP 484 has it.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
