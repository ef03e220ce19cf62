"""AGCL by tiles: values and gradients without a matrix of all pairs."""
