"""The parts that screens are made of. They know the views and the tones, never the store."""
