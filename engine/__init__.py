"""Decides which tokens run when, and keeps every promise made to a request; it speaks token ids, not text."""
