"""What a run trains on: token ids, adapter start and model as files, made from a plan without torch."""
