"""For all four studies: cells that are trained and kept, tables and figures of them."""
