"""What is looked at before anything is queued, and what `doctor` prints."""
