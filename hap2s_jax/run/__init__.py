"""The run of a config from start to end: building, training, results."""
