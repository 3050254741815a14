"""Fills the four seams, where fast code plugs in, with torch alone; each function has a slow, obvious reference."""
