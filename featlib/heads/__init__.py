"""From the features of a video's frames or clips to one vector a video."""
