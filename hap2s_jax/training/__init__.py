"""Training: state, step, optimiser, loop, checkpoints. Models, losses and data arrive as arguments."""
