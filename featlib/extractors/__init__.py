"""Networks by name: what each wants of a video, and how it is built, loaded and cut at a layer."""
