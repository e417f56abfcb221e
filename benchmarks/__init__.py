"""Our losses and the published ones, measured in turn; one command per module."""
