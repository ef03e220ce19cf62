"""Builds the embedded furniture catalogue from Debian's sweethome3d-furniture package."""
