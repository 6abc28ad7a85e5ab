"""The files that users have: which of them to read, and the texts or token ids in them."""
