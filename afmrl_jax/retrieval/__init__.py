"""From vectors to results: encoding, exact search on the device, ScaNN, one Index protocol."""
