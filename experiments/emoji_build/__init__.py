"""Builds the embedded emoji set from six npm icon packages; see `build`."""
