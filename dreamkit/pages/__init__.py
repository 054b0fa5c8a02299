"""The shared parts of HTML pages: frame, colours, images and charts. No module here loads torch."""
