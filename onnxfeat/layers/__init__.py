"""Find the layers of a graph: what belongs to each, and what it is called."""
