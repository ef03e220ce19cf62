"""What every command is."""

from __future__ import annotations

from typing import Protocol


class Command(Protocol):
    """Options, and what is done with them."""

    def execute(self) -> None:
        """Run the command."""
        ...
