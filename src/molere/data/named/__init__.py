"""Data sets by name: what is known of each, where it is looked for, and how its files are read."""
