"""Commands that have a file of their own; `memberscope.cli` registers them."""
