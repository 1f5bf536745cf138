import pytest
import torch


@pytest.fixture(autouse=True)
def _reproducible():
    """One thread (the machine may be small) and a fixed seed for the tests' own random numbers."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
