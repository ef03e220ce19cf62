"""Everything that matters about an accelerator, measured by one command within a time limit."""
