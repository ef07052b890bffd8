"""A config's run from start to end: what it builds, how it trains, what it leaves behind."""
