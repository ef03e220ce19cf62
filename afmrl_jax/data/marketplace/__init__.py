"""The drawn marketplace: garments of fifteen attributes, photographed and described by sellers.

Pillow and NumPy only. Everything is a function of the settings and of numbers, so that listings may
be drawn in any order, by any number of processes.
"""
