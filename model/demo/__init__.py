"""Makes the default model: a pinned dense checkpoint becomes a Mixtral."""
