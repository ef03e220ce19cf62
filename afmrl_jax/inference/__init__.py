"""Using trained models: a finished run, its systems, its generator."""
