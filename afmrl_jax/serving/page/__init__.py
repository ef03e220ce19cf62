"""The page at `/`: what the service can do, for people."""
