"""The parts of `accelerator.py`: each has `run(record, seeds)`."""
