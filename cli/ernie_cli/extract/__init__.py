"""The command `ernie-local extract`."""
