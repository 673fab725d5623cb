"""Defenses: what makes a model give less away, one file a family; each says where it acts."""
