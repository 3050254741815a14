"""Holds the HTTP that knows no model: errors, JSON, streams, keys, limits, health, metrics, the page."""
