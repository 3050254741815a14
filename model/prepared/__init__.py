"""Tile files: weights that were prepared once, in the layout in which they are computed. Torch is not imported here."""
