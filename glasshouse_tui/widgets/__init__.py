"""The widgets of the screens. They use the store's views and the tones, never the store itself."""
