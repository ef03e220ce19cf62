"""The parts of experiments/studies/agcl_study.py."""
