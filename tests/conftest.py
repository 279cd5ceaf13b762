import mmhf  # noqa: F401  (first: it makes torchvision importable beside a CPU build of torch)
