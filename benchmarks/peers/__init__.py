"""Programs that people write instead of using featlib, each run in a fresh process, and featlib itself."""
