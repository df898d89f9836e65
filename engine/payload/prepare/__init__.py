"""From a data file and a model's tokenizer to checked token ids, and the report about them."""
