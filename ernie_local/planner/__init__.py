"""What a model will take of a machine and how fast it will run there, said before anything is loaded.

Pure Python over numbers: no torch, no measuring.
"""
