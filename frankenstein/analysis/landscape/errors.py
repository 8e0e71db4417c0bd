"""What is wrong with the input, in one line for the user."""


class LandscapeError(ValueError):
    """Snapshots, a plane, a landscape or a model cannot be used as asked; the message is one line."""
