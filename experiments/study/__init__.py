"""The parts of experiments/agcl_study.py."""
