"""A gallery that grows: images, the decisions about them, and search among them."""
