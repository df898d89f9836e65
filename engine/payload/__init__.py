"""What a run trains on: token ids, initial adapter and model as files, built from a plan without torch."""
