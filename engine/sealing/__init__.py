"""Package format, key release, sealed adapters and keys at rest."""
