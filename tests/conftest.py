import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--accelerator", default="cuda", help="device of the tests marked cuda; cpu rehearses them")


@pytest.fixture(autouse=True)
def _reproducible():
    """One thread (the machine may be small) and a fixed seed for the tests' own random numbers."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
