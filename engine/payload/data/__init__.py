"""Data files as samples: where the bytes come from, how they are split into records, and what each record means."""
