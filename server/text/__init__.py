"""Between text and token ids: the tokenizer, chat templates, stop strings."""
