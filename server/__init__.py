"""Handles HTTP and text: what a client sends and reads."""
