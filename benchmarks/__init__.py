"""Measures Octavo, alone and beside peers. The product never imports it."""
