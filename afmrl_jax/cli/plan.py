"""`afmrl plan`: what a published model takes in memory, before anything is allocated."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

from afmrl_jax.config import to_dict
from afmrl_jax.models.licenses import preset_origin
from afmrl_jax.parallel.mesh import simulate_devices
from afmrl_jax.performance import plan as planning
from afmrl_jax.performance.request import Request


@dataclass(frozen=True)
class Plan(Request):
    """Report how much memory a published model takes on each device of a mesh, and whether it fits.

    Nothing is allocated and no accelerator is needed; exit status 1 if it does not fit.
    """

    compile: bool = True
    """Get the temporaries from XLA on simulated CPU devices; otherwise a formula estimates them."""
    as_json: bool = False
    """Print one JSON object, in bytes."""

    def execute(self) -> None:
        """Run the command."""
        data, model = self.axes
        if self.compile and data * model <= planning.MOST_SIMULATED:
            simulate_devices(data * model)
        plan = planning.make_plan(self, compile_step=self.compile)
        published = preset_origin(self.preset)
        license_of = None if published is None else f"license of {published}"
        if self.as_json:
            asked = {"license": license_of, "request": to_dict(self)}
            print(json.dumps(plan.as_dict() | asked))
        else:
            print(plan.text() if license_of is None else f"{plan.text()}\n{license_of}")
        if plan.verdict == "does not fit":
            sys.exit(1)
