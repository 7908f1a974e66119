"""The demonstration: a push to a running, healthy stack, shown as it happens."""
