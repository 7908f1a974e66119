"""Brings a Compose stack to a commit, checks that it runs, and takes it back when it does not."""
