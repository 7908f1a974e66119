"""Builds the images of one commit through the Docker API."""
