"""Stages of the method, each resumable: distill, agcl, rar, cit, and the pipeline that chains them."""
