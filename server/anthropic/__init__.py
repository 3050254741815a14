"""Serves Anthropic's API."""
