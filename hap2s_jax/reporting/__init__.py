"""Reports of a run: metric log, progress bar, tables, curves and pictures.

Nothing here is imported eagerly: Matplotlib, Pillow, tensorboardX, tqdm and rich load when they are first
used, so the base install can import every module of this package.
"""
