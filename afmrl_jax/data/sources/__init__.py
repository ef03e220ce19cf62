"""Which rows make up batch number i, and the Grain loader that reads them."""
