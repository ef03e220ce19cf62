"""RAR: the generator reinforced with retrieval as its reward."""
