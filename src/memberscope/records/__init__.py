"""How records are found, verified, read and kept; `memberscope.data_loader` is the door to all of it."""
