"""The embedded catalogue: rendered furniture with real names, sizes and 3-D models.

Built by `experiments/furniture/build_furniture.py`; creators and licences are in `ATTRIBUTION.md`.
"""
