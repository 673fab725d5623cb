"""Federations: trained on Flower, recorded as each party sees them, attacked from every seat."""
