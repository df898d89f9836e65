"""Evidence, policy, verifier, results and receipts."""
