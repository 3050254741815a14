"""The four seams where fast code plugs in, filled by torch alone; each with a slow, obvious reference."""
