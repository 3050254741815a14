"""Makes the text that the default model's experts are trained on, from packages whose licences allow it."""
