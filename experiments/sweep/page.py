"""The page experiments/SCALING.md."""


def page(programs, given):
    return "pending\n"
