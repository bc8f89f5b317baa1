"""How the nodes come to agree: Raft, on pysyncobj."""
