"""The language the four services speak, and the log in which what they said is kept."""
