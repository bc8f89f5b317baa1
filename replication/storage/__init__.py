"""What is on the disk: the log, the snapshots, and what a member must remember of itself and of others."""
