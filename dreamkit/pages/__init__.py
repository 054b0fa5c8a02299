"""What HTML pages have in common: their frame and colours, images and charts. No module here loads torch."""
