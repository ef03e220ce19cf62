"""Stages of the method, each resumable: distill, agcl, rar, cit."""
