"""`python -m afmrl_jax.cli`."""

from afmrl_jax.cli.main import main

if __name__ == "__main__":
    main()
