"""What trains, decodes, grades, times and draws; the claims; checkpoint files; command line."""
