"""What featlib does beside what people would use instead, in one run; `make bench` prints it. See README.md here."""
