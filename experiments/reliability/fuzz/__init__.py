"""The campaign of broken and hostile inputs: mutators, targets, and a runner for many cases."""
