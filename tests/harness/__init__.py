"""What tests and benches share. Imported as ``harness``."""
