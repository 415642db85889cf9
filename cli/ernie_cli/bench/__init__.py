"""The command `ernie-local bench`."""
