"""The `ernie-local` command: arguments in, text or one JSON object out. The work is done below."""
