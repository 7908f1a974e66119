"""What is measured: each file is one contestant, started as a process of its own, which prints one line of JSON when its time is over.

The peers run in the bench's own virtual environment, ours in the product's. Both are started the same way and timed by the same
`stopwatch`, so that a difference is theirs and not the harness's.
"""
