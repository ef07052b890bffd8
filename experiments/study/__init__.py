"""What the four studies share: cells that are trained and kept, tables and figures of them."""
