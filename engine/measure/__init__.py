"""What a measurement means: overhead, precision, stored series and the digest of tensors."""
