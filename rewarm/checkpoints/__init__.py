"""Model directories: finding, reading and writing them, and their lineage."""
