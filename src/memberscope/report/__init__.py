"""What a run leaves for readers: figures, tables, and one HTML report that is a pure function of results.json."""
