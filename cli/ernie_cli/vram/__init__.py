"""The command `ernie-local vram`."""
