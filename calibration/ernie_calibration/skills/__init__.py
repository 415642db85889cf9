"""Asks for more than one printed answer: places, JSON, what is not there, what words say beyond the print."""
