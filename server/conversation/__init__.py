"""Turns requests for conversations into chat requests, and the text of answers into parts."""
