"""What a worker decides, without doing any of it: plain synchronous Python."""
