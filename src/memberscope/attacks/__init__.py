"""Attacks: one file a family, one class an attack; `registry` lists them."""
