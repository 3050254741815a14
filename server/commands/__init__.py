"""Holds a file for each subcommand. With cli.py they are the composition root, which joins all three folders."""
