"""The methods, one file each; their names are in `molere.registry`."""
