"""How far checkpoints are from a reference: what each does with the same images, compared and summed up.

`observation` runs one model, `reference` keeps what the first one did, `comparison` holds another one against
it turn by turn, `summary` makes figures of that with the help of `statistics`, `candidate` knows sizes.
"""
