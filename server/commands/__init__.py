"""The subcommands of `octavo`, a file each. With cli.py they are the composition root: they join all three folders."""
