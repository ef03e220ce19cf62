"""An HTTP service over an index: search, embed, annotate, and change its listings."""
