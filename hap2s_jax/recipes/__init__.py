"""Configs that configs share: every key with its default, and the published recipes over them."""
