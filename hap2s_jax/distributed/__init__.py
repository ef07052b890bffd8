"""Many devices and many processes as one machine, and TPU slices compiled for without owning them."""
