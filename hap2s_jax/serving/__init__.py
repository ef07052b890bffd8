"""Using what was trained: the encoder of a working directory, searching, thresholds, exports, the demo."""
