"""Networks that torchvision lacks, as bare modules: they know nothing of weights, presets or sampling."""
