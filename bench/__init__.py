"""Side-by-side measurements: Hythe's parts against the tools people would otherwise use, on the same machine in the same run.

Never a test: a figure tells how fast, a test tells whether it is right.
"""
