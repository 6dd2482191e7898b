"""What people look at: figures in one style, the report as one offline page, pictures in notebooks, trackers."""
