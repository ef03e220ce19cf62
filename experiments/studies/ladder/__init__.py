"""Whether each step of the method gains where it should, and not where it should not."""
