"""Health checks: who is asked, where that may go, how it is asked, and what the answers add up to."""
