"""Converts between text and token ids: the tokenizer, chat templates, stop strings."""
