"""The endpoint of Anthropic's API."""
