"""How measured values are computed: overhead, precision, stored series and the digest of tensors."""
