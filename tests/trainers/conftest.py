import frankenstein.experiments.torchvision_anywhere  # noqa: F401  before the test files, which import what imports torchvision
