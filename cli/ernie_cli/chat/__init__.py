"""The command `ernie-local chat`."""
